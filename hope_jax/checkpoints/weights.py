"""Parameters alone: of a run's checkpoint, or in a step of their own."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hope_jax import config as configs
from hope_jax.checkpoints import arrays, checkpoint, sidecar, stored


def load(directory: str | Path, like: Any = None, step: int | None = None,
         dtype: Any = None) -> tuple[Any, ConfigDict, dict]:
  """(params, config, meta) for evaluation and generation.

  The optimizer is neither read nor hashed, and nothing is written. `meta` has the number of the
  step, too, as "step".

  Args:
    like: places and types (arrays or ShapeDtypeStructs); None: as stored, on the first device.
    step: None: the newest whose parameters are good.
    dtype: of all floating-point parameters, whatever was stored; None: they must be stored as
      `like` has them.

  Raises FileNotFoundError when it is missing, ValueError for a damaged step or a checkpoint of
  another architecture.
  """
  path = stored.good(directory, step, ("params", "meta"))
  found = arrays.cast(stored.shapes(path, "params"), dtype)
  like = found if like is None else arrays.cast(like, dtype)
  arrays.check_architecture(found, like)
  items = stored.read(path, {"params": like, "meta": None})
  return (items["params"], configs.from_json(items["meta"]["config"]),
          items["meta"] | {"step": int(path.name)})


def save(directory: str | Path, step: int, params: Any, meta: dict) -> None:
  """Saves them for evaluation, generation and --init_from; no training goes on from such a step.

  `meta`: "config" and "tokenizer". Raises FileExistsError when the directory has a step already.
  """
  if found := sidecar.steps(directory):
    raise FileExistsError(f"{directory} has step {found[-1]} already: choose another --workdir")
  with checkpoint.Checkpoints(directory, keep=1) as saved:
    saved.write(step, {"params": params, "meta": meta}, checkpoint.digests(meta))
