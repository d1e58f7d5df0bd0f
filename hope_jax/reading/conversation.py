"""A conversation on disk: its stream's fast state, which means nothing to any other model.

A folder holds one, or versions of it by name, as texts were learned one after the other.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import os
from pathlib import Path
import shutil
from typing import Any

import jax
from ml_collections import ConfigDict

from hope_jax import versions
from hope_jax.checkpoints import arrays, sidecar, stored
from hope_jax.checkpoints.checkpoint import Checkpoints
from hope_jax.config import Level
from hope_jax.model import plan
from hope_jax.runtime import lock


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


def kept(directory: str | Path) -> list[dict]:
  """What is known of each version in a folder, oldest first: "name" and what it was saved with.

  FileNotFoundError without any.
  """
  found = steps(directory) or [stored.find(directory)]
  return [{"name": str(step)} | stored.read_meta(directory, step) | {"step": step}
          for step in found]


def drop(directory: str | Path, name: str) -> list[str]:
  """Deletes a version and those after it, which go on from it; their names. ValueError: none."""
  with lock.held(Path(directory) / ".lock", "another folder for the state"):
    found = kept(directory)
    names = [each["name"] for each in found]
    if name not in names:
      raise ValueError(f"{directory} has no version {name}: choose from {', '.join(names)}")
    gone = found[names.index(name):]
    for each in reversed(gone):  # at any moment what is left is whole
      aside = Path(directory) / f"{each['step']}.dropped"
      shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
      os.rename(Path(directory) / str(each["step"]), aside)
      shutil.rmtree(aside)
  return [each["name"] for each in gone]


@contextlib.contextmanager
def writing(directory: str | Path, seen: list[int] | None = None) -> Iterator[Callable]:
  """A function to save with, save(fast, meta, name=None), while no other process can save there.

  Before the work, not after it: BlockingIOError says who else is at it, OSError that nothing can be
  written there, ValueError that it is a run's folder, or that another has saved there since it held
  the steps `seen`.
  """
  steps(directory)
  with lock.held(Path(directory) / ".lock", "another folder for the state"):
    if seen is not None and seen != steps(directory):
      raise ValueError(f"another has saved in {directory} since it was read here, and would lose "
                       "that: save in another folder")
    yield functools.partial(_save, directory)


def save(directory: str | Path, fast: Any, meta: dict, name: str | None = None) -> None:
  """`writing` once."""
  with writing(directory) as write:
    write(fast, meta, name)


def _save(directory: str | Path, fast: Any, meta: dict, name: str | None = None) -> None:
  """Replaces the one in `directory` once the new one is whole.

  Args:
    meta: holds at least what `owner` says.
    name: it becomes a version beside those that are there, which are kept; so does what is saved
      without a name where versions are.
  """
  if missing := {"fingerprint", "levels"} - meta.keys():
    raise ValueError(f"meta has no {' and no '.join(sorted(missing))}: add "
                     "conversation.owner(config, params)")
  found = steps(directory)
  step = max(found, default=-1) + 1
  taken = [each["name"] for each in kept(directory)] if found and (
      name or "name" in stored.read_meta(directory)) else []
  if name or taken:
    name = name or "conversation"
    again = (f"{name}.{i}" for i in itertools.count(2))
    meta = meta | {"name": name if name not in taken else next(n for n in again if n not in taken)}
  with Checkpoints(directory, keep=step + 1 if name or taken else 1) as saved:
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
  theirs = {name: dataclasses.asdict(Level(**level))  # with the fields that are new since
            for name, level in meta.get("levels", {}).items()}
  ours = own["levels"]
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
