"""What glibc keeps: by itself it returns a large array to the system and asks again for the next.

A step's arrays are then new pages, which the system clears one by one: a third of the time of a
small training step. `keep` tells glibc to use one arena, to map no array by itself and to return
nothing. A process then holds as much as it once needed.
"""

import ctypes
import importlib.util
import os

# of malloc.h: what is set, and to what
KEPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep() -> bool:
  """Call before jax is imported; whether anything was set.

  Only with glibc, where no accelerator's plugin is installed, and where the environment does not
  say how memory is to be had (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD).
  """
  try:
    glibc = os.confstr("CS_GNU_LIBC_VERSION")
  except (AttributeError, ValueError):
    return False
  said = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
             for name in os.environ)
  if not glibc or said or importlib.util.find_spec("jax_plugins"):
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all(mallopt(number, value) for number, value in KEPT.values())
