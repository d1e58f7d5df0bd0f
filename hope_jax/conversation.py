"""A conversation on disk: the fast state of its stream, which means nothing to another model than its own."""

from pathlib import Path
from typing import Any

from hope_jax import arrays, integrity, stored
from hope_jax.checkpoint import Checkpoints


def steps(directory: str | Path) -> list[int]:
  """Of what is saved in a folder; ValueError if it holds a run's checkpoints: saving there would delete them."""
  found = integrity.steps(directory)
  if not all((Path(directory) / str(step) / "fast").is_dir() for step in found):
    raise ValueError(f"{directory} holds a run's checkpoints, not a conversation: choose another directory")
  return found


def save(directory: str | Path, fast: Any, meta: dict) -> None:
  """Replaces the one in `directory` once the new one is whole. Raises ValueError as `steps`.

  `meta` holds at least {"fingerprint": arrays.fingerprint(params)}.
  """
  if "fingerprint" not in meta:
    raise ValueError("meta has no fingerprint; add meta['fingerprint'] = arrays.fingerprint(params)")
  step = max(steps(directory), default=-1) + 1
  with Checkpoints(directory, keep=1) as saved:
    saved.write(step, {"fast": fast, "meta": meta}, {"model": meta["fingerprint"]})


def load(directory: str | Path, like: Any, model: str) -> tuple[Any, dict]:
  """(fast, meta) as saved, placed like `like`. `model`: the fingerprint of the parameters it goes on with.

  Raises FileNotFoundError when there is none, ValueError when it is damaged or another model's.
  """
  path = stored.good(directory)
  meta = stored.read(path, {"meta": None})["meta"]
  if meta["fingerprint"] != model:
    raise ValueError(
        f"the fast state in {directory} belongs to another model: it was written by {meta['fingerprint']}, these "
        f"parameters are {model}; load the checkpoint it was written with, or start a fresh conversation")
  arrays.check_architecture(stored.shapes(path, "fast"), like, "fast state")
  return stored.read(path, {"fast": like})["fast"], meta
