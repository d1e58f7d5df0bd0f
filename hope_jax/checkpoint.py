"""Checkpoints: what a run needs to go on as if it had not stopped, and what an evaluation needs of it.

    directory/<step>/params      the parameters, so that an evaluation reads nothing else
                     train       everything else in TrainState: step, optimizer, random key, streams' fast state
                     iterator    the data iterator's state, JSON
                     meta        JSON: "config" (config.to_json), "tokenizer" (digest), and what the trainer adds

A step is written under another name and renamed when it is whole. Orbax stays inside this file.

    with Checkpoints(workdir / "checkpoints", keep=2) as saved:
      if saved.latest() is not None:
        state, iterator_state, meta = saved.restore(saved.latest(), state)
      saved.save(step, state, iterator.get_state(), meta)
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from hope_jax import config as config_lib

PARTIAL = ".orbax-checkpoint-tmp"  # Orbax's mark on a step it is still writing; ours on one being deleted
TRAIN_COMMAND = "python -m hope_jax.launch --config=configs/smoke.py --workdir=runs/smoke"
DISK_ERRORS = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "file too large"}

# Each Orbax thread logs a failed write with its whole traceback, a thousand lines; `wait` raises that error once.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())


class Checkpoints:
  """A run's checkpoints: the last `keep` steps in `directory`, written in the background.

  Creating it makes the directory, tries a write and removes what an interrupted save left.
  Raises OSError when the directory cannot be written, so that a run fails before it trains.
  """

  def __init__(self, directory: str | Path, keep: int):
    if keep < 1:
      raise ValueError(f"keep is {keep}; a run keeps at least 1 checkpoint: set train.keep")
    self.directory = Path(directory).absolute()
    self.keep = keep
    self._pending = None  # (step, Orbax's response)
    _try_write(self.directory)
    for leftover in self.directory.glob(f"*{PARTIAL}*"):
      shutil.rmtree(leftover)

  def save(self, step: int, state: Any, iterator_state: Any, meta: dict) -> bool:
    """Copies the state to the host and returns; the write goes on behind. A step already there is kept: False.

    `meta` holds at least "config" and "tokenizer". Raises the error of the save before this one, if it failed.
    """
    if missing := {"config", "tokenizer"} - meta.keys():
      raise ValueError(f"meta has no {sorted(missing)}; an evaluation could not load this checkpoint: add them")
    items = {"params": state.params, "train": state.replace(params=None),
             "iterator": _json(iterator_state, "the iterator's state"), "meta": _json(meta, "meta")}
    return self._start(step, items)

  def _start(self, step: int, items: dict) -> bool:
    self.wait()
    if step in steps(self.directory):
      return False
    registry = ocp.handlers.local_registry()
    for name in {"iterator", "meta"} & items.keys():
      registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)  # else stored as arrays
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.async_options.create_directories_asynchronously = False  # a failure there leaves threads waiting minutes
    try:
      with context:
        self._pending = step, ocp.save_checkpointables_async(self.directory / str(step), items)
    except Exception as error:
      self._fail(step, error)
    return True

  def wait(self) -> None:
    """Blocks until the last save is whole, then deletes steps beyond `keep`.

    Raises OSError when the disk was full, RuntimeError when that save failed for another reason.
    """
    if self._pending is None:
      return
    step, response = self._pending
    self._pending = None
    try:
      response.result()
    except Exception as error:
      self._fail(step, error)
    for old in steps(self.directory)[:-self.keep]:
      doomed = self.directory / f"{old}{PARTIAL}-deleted"
      os.rename(self.directory / str(old), doomed)  # a kill while deleting must not leave half a step
      shutil.rmtree(doomed)

  def _fail(self, step: int, error: Exception) -> NoReturn:
    last = self.latest()
    good = "no step is whole yet" if last is None else f"step {last} is whole and a restart goes on from it"
    code = _disk_error(error)
    if code is None:
      raise RuntimeError(f"saving step {step} in {self.directory} failed ({good}): {error}") from error
    free = shutil.disk_usage(self.directory).free / 2**20
    raise OSError(code, f"saving step {step} failed: {DISK_ERRORS[code]} in {self.directory} ({free:,.0f} MiB free); "
                        f"{good}; free some space or choose another --workdir, then start again") from None

  def latest(self) -> int | None:
    """The last step on disk, or None. Waits for a save under way, and so does every other read."""
    self.wait()
    found = steps(self.directory)
    return found[-1] if found else None

  def restore(self, step: int, like_state: Any) -> tuple[Any, Any, dict]:
    """(state, iterator's state, meta) as saved, bit for bit, placed like `like_state` (arrays or ShapeDtypeStructs).

    Raises FileNotFoundError without that step, ValueError when an array has another shape, type or name.
    """
    self.wait()
    path = _step_path(self.directory, step)
    rest = like_state.replace(params=None)
    check_architecture(ocp.metadata(path, "params").metadata, like_state.params)
    check_architecture(ocp.metadata(path, "train").metadata, rest, "optimizer or state")
    loaded = ocp.load_checkpointables(
        path, {"params": _abstract(like_state.params), "train": _abstract(rest), "iterator": None, "meta": None})
    return loaded["train"].replace(params=loaded["params"]), loaded["iterator"], loaded["meta"]

  def meta(self, step: int) -> dict:
    """What was saved as `meta`; reads no array."""
    self.wait()
    return read_meta(self.directory, step)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.wait()


def steps(directory: str | Path) -> list[int]:
  """The whole steps in a directory, ascending; empty when there is no such directory."""
  directory = Path(directory)
  names = os.listdir(directory) if directory.is_dir() else []
  return sorted(int(n) for n in names if n.isdecimal() and (directory / n).is_dir())


def read_meta(directory: str | Path, step: int | None = None) -> dict:
  """`meta` of a step (None: the last) without its arrays. Raises FileNotFoundError when it is missing."""
  return ocp.load_checkpointables(_step_path(directory, step), {"meta": None})["meta"]


def load_params(
    directory: str | Path, like_params: Any = None, step: int | None = None) -> tuple[Any, ConfigDict, dict]:
  """(params, config, meta) for evaluation and generation, of a step (None: the last); the optimizer is not read.

  Placed like `like_params` (arrays or ShapeDtypeStructs); None: as stored, on the first device. Writes nothing.
  Raises FileNotFoundError when it is missing, ValueError for a checkpoint of another architecture.
  """
  path = _step_path(directory, step)
  meta = read_meta(directory, step)
  stored = ocp.metadata(path, "params").metadata
  if like_params is None:
    like_params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
  check_architecture(stored, like_params)
  params = ocp.load(path, _abstract(like_params), checkpointable_name="params")
  return params, config_lib.from_json(meta["config"]), meta


def save_fast(directory: str | Path, fast: Any, meta: dict) -> None:
  """Saves a conversation's fast state, replacing the one in `directory` once the new one is whole.

  `meta` holds at least {"fingerprint": fingerprint(params)}: a fast state means nothing to another model.
  """
  if "fingerprint" not in meta:
    raise ValueError("meta has no fingerprint; add meta['fingerprint'] = checkpoint.fingerprint(params)")
  with Checkpoints(directory, keep=1) as saved:
    last = saved.latest()
    saved._start(0 if last is None else last + 1, {"fast": fast, "meta": _json(meta, "meta")})


def load_fast(directory: str | Path, like: Any, model: str) -> tuple[Any, dict]:
  """(fast, meta) as saved, placed like `like`. `model`: the fingerprint of the parameters it goes on with.

  Raises FileNotFoundError when there is none, ValueError for the state of another model.
  """
  meta = read_meta(directory)
  if meta["fingerprint"] != model:
    raise ValueError(
        f"the fast state in {directory} belongs to another model: it was written by {meta['fingerprint']}, these "
        f"parameters are {model}; load the checkpoint it was written with, or start a fresh conversation")
  path = _step_path(directory, None)
  check_architecture(ocp.metadata(path, "fast").metadata, like, "fast state")
  return ocp.load(path, _abstract(like), checkpointable_name="fast"), meta


def conversation(directory: str | Path) -> list[int]:
  """Steps of the fast state saved in a folder; ValueError if it holds a run's checkpoints: saving there would delete them."""
  saved = steps(directory)
  if not all((Path(directory) / str(step) / "fast").is_dir() for step in saved):
    raise ValueError(f"{directory} holds a run's checkpoints, not a conversation: choose another directory")
  return saved


def fingerprint(params: Any) -> str:
  """16 hex digits that change with any parameter's name, shape, type or value."""
  digest = hashlib.sha256()
  for name, leaf in sorted(_leaves(params).items()):
    digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
    digest.update(jax.device_get(leaf).tobytes())
  return digest.hexdigest()[:16]


def check_architecture(stored: Any, expected: Any, what: str = "architecture") -> None:
  """ValueError unless two trees (leaves with shape and dtype) agree in every path, shape and type."""
  a, b = ({name: f"{leaf.shape} {leaf.dtype}" for name, leaf in _leaves(tree).items()} for tree in (stored, expected))
  differ = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
  if not differ:
    return
  lines = [f"  {name}: checkpoint {a.get(name, 'has none')}, this configuration {b.get(name, 'has none')}"
           for name in differ[:5]]
  if len(differ) > 5:
    lines.append(f"  and {len(differ) - 5} more")
  raise ValueError(f"checkpoint of another {what}: {len(differ)} of {len(a.keys() | b.keys())} arrays differ\n"
                   + "\n".join(lines)
                   + "\nuse the checkpoint's own configuration (config.json beside it) or another workdir")


def check_tokenizer(meta: dict, digest: str) -> None:
  """ValueError unless the checkpoint was trained with the tokenizer of this digest (meta["tokenizer"])."""
  if meta["tokenizer"] != digest:
    raise ValueError(f"the tokenizer does not match the checkpoint: it was trained with {meta['tokenizer']}, this one "
                     f"is {digest}; use the tokenizer.model kept beside the checkpoint")


def _step_path(directory: str | Path, step: int | None) -> Path:
  directory = Path(directory).absolute()
  found = steps(directory)
  if found and (step is None or step in found):
    return directory / str(found[-1] if step is None else step)
  if found:
    there = "steps " + ", ".join(map(str, found))
  elif directory.is_dir():
    there = ", ".join(sorted(os.listdir(directory))[:8]) or "nothing"
  else:
    there = "no such directory"
  raise FileNotFoundError(f"no checkpoint{'' if step is None else f' of step {step}'} in {directory} (there: {there}); "
                          f"train one with: {TRAIN_COMMAND}")


def _try_write(directory: Path) -> None:
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as probe:
      probe.write(b"checkpoint")
  except OSError as error:
    raise type(error)(error.errno, f"checkpoints cannot be written in {directory}: {error.strerror}; "
                                   "choose another --workdir or change its permissions") from error


def _disk_error(error: BaseException | None) -> int | None:
  """The errno in a chain of exceptions that says the disk is full; TensorStore gives its own only as text."""
  while error is not None:
    for code in DISK_ERRORS:
      if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
        return code
    error = error.__cause__ or error.__context__
  return None


def _json(value: Any, what: str) -> Any:
  if json.loads(json.dumps(value)) != value:
    raise TypeError(f"{what} changes when written as JSON (tuples, or keys that are not text): {value!r}")
  return value


def _leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: leaf} with equal paths for a tree and for Orbax's description of it; a random key by its data."""
  named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    named[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
  return named


def _abstract(tree: Any) -> Any:
  """What Orbax restores into. An array without a place goes to the first device, wherever it was saved."""
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def leaf(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first)

  return jax.tree.map(leaf, tree)
