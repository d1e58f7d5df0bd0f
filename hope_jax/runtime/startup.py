"""What programs that use jax share: quiet libraries, devices, kept compilations, messages."""

import os
import sys

from absl import logging
import jax


def prepare(rows: int = 1, data: int = 0, fsdp: int = 1, tensor: int = 1) -> None:
  """Call before jax is used. Programs are kept in JAX_COMPILATION_CACHE_DIR or the user's cache.

  Args:
    rows: sequences that may be shared out. Without an accelerator, every core is then a device of
      its own, as far as the rows divide: small products use one core each. JAX_NUM_CPU_DEVICES
      overrides it.
    data, fsdp, tensor: config.mesh. Without an accelerator there are as many devices as it names;
      of many processes, each has its share of them, one or more.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax tells every file
  if "JAX_NUM_CPU_DEVICES" in os.environ:
    pass
  elif jax.distributed.is_initialized():
    jax.config.update("jax_num_cpu_devices",
                      max(1, max(data, 1) * fsdp * tensor // int(os.environ["JAX_NUM_PROCESSES"])))
  elif rows * fsdp * tensor > 1:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = [n for n in range(1, cores // (fsdp * tensor) + 1) if rows % (n * fsdp) == 0]
    jax.config.update("jax_num_cpu_devices", (data or max(fitting, default=1)) * fsdp * tensor)
  home = os.path.expanduser("~/.cache/hope_jax/xla")
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "" if home.startswith("~") else home)
  jax.config.update("jax_compilation_cache_dir", folder or None)  # without a home none is kept
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    raise RuntimeError(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no such device "
                       f"is here{f' ({error})' if str(error) else ''}; unset it, or set it to "
                       "cpu") from None


def say(text: str) -> None:
  """One line for the person who watches, from the first process, not to stdout."""
  if not jax.distributed.is_initialized() or jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)
