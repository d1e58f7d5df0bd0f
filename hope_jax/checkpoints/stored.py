"""A saved step, read: first found, then hashed, then loaded.

A step that is not as it was written is refused, and one that was not asked for by number gives way
to the newest good one before it, which is said.
"""

from collections.abc import Collection
import os
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from hope_jax.checkpoints import arrays, sidecar
from hope_jax.runtime.startup import say

TRAIN_COMMAND = "python -m hope_jax.launch --config=configs/smoke.py --workdir=runs/smoke"


def find(directory: str | Path, step: int | None = None) -> Path:
  """Folder of a step (None: the last). FileNotFoundError, naming what is there instead."""
  directory = Path(directory).absolute()
  found = sidecar.steps(directory)
  if found and (step is None or step in found):
    return directory / str(found[-1] if step is None else step)
  if found:
    there = "steps " + ", ".join(map(str, found))
  elif directory.is_dir():
    there = ", ".join(sorted(os.listdir(directory))[:8]) or "nothing"
  else:
    there = "no such directory"
  raise FileNotFoundError(f"no checkpoint{'' if step is None else f' of step {step}'} in "
                          f"{directory} (there: {there}); train one with: {TRAIN_COMMAND}")


def good(directory: str | Path, step: int | None = None,
         parts: Collection[str] | None = None) -> Path:
  """A step's folder (None: the newest good), its `parts` (None: all) as written, or ValueError."""
  path = find(directory, step)
  if step is None:
    newest, damaged = sidecar.newest_good(path.parent, parts)
    for later in damaged:
      say(f"{path.parent}: step {later} is damaged ({sidecar.brief(damaged[later])}): reading step "
          f"{newest}")
    path = path.parent / str(newest)
  elif faults := sidecar.check(path, parts):
    raise ValueError(f"{path} is damaged ({sidecar.brief(faults)}): bring it back from a copy or "
                     "choose another step")
  tell_strays(path)
  return path


def tell_strays(path: Path) -> None:
  """Says which files in a good step others have put there."""
  if found := sidecar.strays(path):
    say(f"{path}: {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}: not written with the "
        "step, and ignored")


def shapes(path: Path, item: str) -> Any:
  """The arrays of an item as ShapeDtypeStructs, without their devices, which need not be here."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                      ocp.metadata(path, item).metadata)


def read(path: Path, like: dict[str, Any]) -> dict[str, Any]:
  """Items of a step by name, placed like these (arrays or ShapeDtypeStructs); JSON like None."""
  return ocp.load_checkpointables(path, arrays.placed(like))


def read_meta(directory: str | Path, step: int | None = None) -> dict:
  """`meta` of a step (None: the newest whose meta is good) without its arrays. Raises as `good`."""
  return read(good(directory, step, ("meta",)), {"meta": None})["meta"]


def check_tokenizer(meta: dict, digest: str) -> None:
  """ValueError unless the checkpoint was trained with the tokenizer of this digest."""
  if meta["tokenizer"] != digest:
    raise ValueError("the tokenizer does not match the checkpoint: it was trained with "
                     f"{meta['tokenizer']}, this one is {digest}; use the tokenizer kept "
                     "beside the checkpoint")
