"""Many processes that train one model: how they find each other, agree, and end together.

Each runs the same program and reads from its environment who it is (launch/ sets it):

    JAX_COORDINATOR_ADDRESS   host:port of process 0
    JAX_NUM_PROCESSES         how many there are
    JAX_PROCESS_ID            which one this is, from 0

A process that is gone is noticed by the others where they wait for it: at once on CPUs, within DEAD
seconds elsewhere. What started them (launch/local.sh, srun, JobSet) ends the rest.
"""

import logging
import os
import sys
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DEAD = 30  # seconds without a sign of life, or without coming to the end when others do


def connect() -> None:
  """Joins the processes the environment names, before jax is used; ValueError: what is missing."""
  given = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
  for name in NAMES[1:]:
    if not given.get(name, "0").isdecimal():
      raise ValueError(f"{name}={given[name]} is no number: see launch/local.sh for what each "
                       "process is told")
  if not given or int(given.get("JAX_NUM_PROCESSES", 2)) == 1:
    return
  if missing := [name for name in NAMES if name not in given]:
    known = ", ".join(f"{name}={value}" for name, value in given.items())
    raise ValueError(f"{known} without {' and '.join(missing)}: set all three, or start the "
                     "processes with launch/local.sh")
  address, count, number = given.values()
  if int(number) >= int(count):
    raise ValueError(f"JAX_PROCESS_ID={number} of JAX_NUM_PROCESSES={count}: they are numbered "
                     f"from 0 to {int(count) - 1}")
  jax.config.update("jax_enable_preemption_service", False)  # would catch SIGTERM before signals.py
  logging.getLogger("jax").setLevel(logging.WARNING)
  jax.distributed.initialize(address, int(count), int(number),
                             cluster_detection_method="deactivate",
                             heartbeat_timeout_seconds=DEAD, shutdown_timeout_seconds=DEAD)
  sys.excepthook = _fail_unforeseen


def highest(number: int) -> int:
  """The largest of the processes' numbers; all of them call this, and wait for each other."""
  return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def fail(error: Exception) -> NoReturn:
  """Ends the program with one line; one of many at once: the others may wait for it in a step."""
  text = f"{type(error).__name__}: {error}"
  if not jax.distributed.is_initialized():
    sys.exit(text)
  if isinstance(error, jax.errors.JaxRuntimeError):
    text += " (if another process died, its last line says why)"
  try:
    # the line and its end at once: others speak too
    sys.stderr.write(f"process {os.environ['JAX_PROCESS_ID']} of "
                     f"{os.environ['JAX_NUM_PROCESSES']}: {text}\n")
    sys.stderr.flush()
  finally:
    os._exit(1)


def _fail_unforeseen(kind, error, trace):
  sys.__excepthook__(kind, error, trace)
  fail(error)
