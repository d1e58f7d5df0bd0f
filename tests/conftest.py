"""What tests share: CPU by default, a persistent compilation cache, float64 on request, `slow`."""

from importlib import metadata
import os
import pathlib

# The environment, and before jax is imported: processes that a test starts inherit it.
CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# compiling is most of the time
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# later ones do not know it, and an unknown flag ends the process
if metadata.version("jaxlib").startswith("0.10."):
  FLAGS += " --xla_cpu_use_fusion_emitters=false"
  # eight devices on two busy cores wait for each other longer than the 40 seconds that are allowed
  FLAGS += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

from tests import small_data


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: one of the longest; leave out with -m 'not slow': "
                                     "three minutes on two cores")
  config.addinivalue_line("markers", "nightly: another case of a slow law that CI tests in part; "
                                     "with -m '' all run")


@pytest.fixture
def x64():
  """float64 within one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Texts with a built data folder beside them; tests that damage it copy it first."""
  return small_data.build(tmp_path_factory.mktemp("data"))
