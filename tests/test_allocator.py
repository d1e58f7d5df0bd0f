"""glibc keeps what a step frees, where it is glibc and nobody says otherwise."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from hope_jax.runtime import allocator

ROOT = Path(__file__).resolve().parents[1]
HELD = """
import sys
import hope_jax
assert "jax" not in sys.modules
import numpy as np
def resident():
  return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
for _ in range(3):
  array = np.ones(40_000_000, np.uint8)
  del array
print((resident() - before) // 1_000_000)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}),
                    reason="not glibc")
@pytest.mark.parametrize("said, kept", [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False)])
def test_memory_that_is_freed_stays_unless_the_environment_says_how(said, kept):
  done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True,
                        env={name: value for name, value in os.environ.items()
                             if name != "MALLOC_ARENA_MAX"} | said)
  assert done.returncode == 0, done.stderr
  assert (int(done.stdout) >= 30) == kept


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_"])
def test_who_has_chosen_an_allocator_keeps_it(name, monkeypatch):
  monkeypatch.setenv(name, "")
  assert not allocator.keep()
