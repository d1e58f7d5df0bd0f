"""What every program does first: quiet libraries, and compiled programs that are kept."""

import os
from pathlib import Path

from absl import logging
import jax


def prepare() -> None:
  """Compiled programs go to JAX_COMPILATION_CACHE_DIR or the user's cache folder; Orbax no longer tells every file."""
  logging.set_verbosity(logging.WARNING)
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", Path.home() / ".cache" / "hope_jax" / "xla")
  jax.config.update("jax_compilation_cache_dir", str(folder))
