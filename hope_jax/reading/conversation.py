"""A conversation on disk: its stream's fast state, which means nothing to any other model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from hope_jax import versions
from hope_jax.checkpoints import arrays, sidecar, stored
from hope_jax.checkpoints.checkpoint import Checkpoints
from hope_jax.model import plan
from hope_jax.runtime import lock, program

PATIENCE = 60  # seconds to wait for another that is saving there: what was learned is not lost


def owner(config: ConfigDict, params: Any) -> dict:
  """Whose a fast state is: the model's fingerprint, and the levels that it writes in context."""
  levels = {plan.path(name): dataclasses.asdict(level)
            for name, level in plan.of(config).levels.items()}
  return {"version": versions.NOW, "fingerprint": arrays.fingerprint(params), "levels": levels}


def steps(directory: str | Path) -> list[int]:
  """Of what is saved in a folder; ValueError for a run's checkpoints, which saving would delete."""
  found = sidecar.steps(directory)
  if not all((Path(directory) / str(step) / "fast").is_dir() for step in found):
    raise ValueError(f"{directory} holds a run's checkpoints, not a conversation: choose another "
                     "directory")
  return found


def ready(directory: str | Path) -> None:
  """OSError if nothing could be saved there; ValueError as `steps`. Before the work, not after it.
  """
  steps(directory)
  program.ready(Path(directory) / "state")


def save(directory: str | Path, fast: Any, meta: dict) -> None:
  """Replaces the one in `directory` once the new one is whole. Raises ValueError as `steps`.

  `meta` holds at least what `owner` says.
  """
  if missing := {"fingerprint", "levels"} - meta.keys():
    raise ValueError(f"meta has no {' and no '.join(sorted(missing))}: add "
                     "conversation.owner(config, params)")
  with lock.held(Path(directory) / ".lock", "another folder for the state", PATIENCE):
    step = max(steps(directory), default=-1) + 1  # another may just have saved there
    with Checkpoints(directory, keep=1) as saved:
      saved.write(step, {"fast": fast, "meta": meta}, {"model": meta["fingerprint"]})


def load(directory: str | Path, like: Any, own: dict) -> tuple[Any, dict]:
  """(fast, meta) as saved, placed like `like`. `own`: the `owner` that goes on with it.

  Raises FileNotFoundError when there is none, ValueError when it is damaged or another model's.
  """
  path = stored.good(directory)
  meta = stored.read(path, {"meta": None})["meta"]
  if meta["fingerprint"] != own["fingerprint"]:
    raise ValueError(
        f"the fast state in {directory} belongs to another model: it was written by "
        f"{meta['fingerprint']}, these parameters are {own['fingerprint']}; load the checkpoint it "
        "was written with, or start a fresh conversation")
  theirs, ours = meta.get("levels", {}), own["levels"]
  if differ := [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]:
    def has(levels):
      return f"{differ[0]}={levels.get(differ[0], 'nothing')}"
    raise ValueError(f"the fast state in {directory} was written by other levels: it has "
                     f"{has(theirs)}, this configuration has {has(ours)}; set the same levels, or "
                     "start a fresh conversation")
  version = meta.get("version", 1)
  if version > versions.NOW:
    raise ValueError(f"the fast state in {directory} is of version {version}, this hope_jax reads "
                     f"up to {versions.NOW}: install a newer one")
  shapes = stored.shapes(path, "fast")
  named = {versions.fast_path(name, version): leaf for name, leaf in arrays.leaves(like).items()}
  arrays.check_architecture(shapes, named, "fast state")
  then = jax.tree.unflatten(jax.tree.structure(shapes),
                            [named[name] for name in arrays.leaves(shapes)])
  found = arrays.leaves(stored.read(path, {"fast": then})["fast"])
  return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in named]), meta
