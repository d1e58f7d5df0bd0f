"""A run's checkpoints: what it needs to go on as if never stopped, and what evaluations need.

    directory/<step>/params          the parameters: an evaluation reads nothing else
                     train           all else in TrainState: step, optimizer, key, fast state
                     iterator        the data iterator's state, JSON
                     meta            JSON: "config" (config.to_json), "tokenizer" (digest) and
                                     what the trainer adds
                     integrity.json  digests of all of it (sidecar.py), the step's validation loss

A step is written under another name, hashed, and renamed when it is whole. stored.py reads one.

    with Checkpoints(workdir / "checkpoints", keep=2) as saved:
      step = saved.newest_good()
      if step is not None:
        state, iterator_state, meta = saved.restore(step, state)
      saved.save(step, state, iterator.get_state(), meta)
"""

from concurrent import futures
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from hope_jax.checkpoints import sidecar, stored
from hope_jax.checkpoints.arrays import OWN, check_architecture, fingerprint
from hope_jax.runtime import hosts
from hope_jax.runtime.startup import say

PARTIAL = ".partial"  # mark on a step that is being written, hashed or deleted
FILE_BYTES = 2**27  # about; several files are hashed at once
NO_STEP, NONE_GOOD = -1, -2  # what the first process tells the others instead of a step
LAST_SAVE = 30  # seconds that a process with an error waits for a save under way
JSON = {"iterator": "the iterator's state", "meta": "meta"}  # items that are no arrays
DISK_ERRORS = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota exceeded",
               errno.EFBIG: "file too large"}

# Each Orbax thread logs a failed write with a traceback of a thousand lines; `wait` raises it.
logging.getLogger("absl").addFilter(
    lambda record: "_SignalingThread.run() raised" not in record.getMessage())


class Checkpoints:
  """A run's checkpoints, written in the background.

  Keeps the last `keep` steps, besides the `keep_best` of lowest metric and every step divisible by
  `keep_every` (0: none). Creating it makes the directory, tries a write and removes what an
  interrupted save left. With many processes, all make the same calls; the first hashes, renames and
  deletes. Raises OSError when the directory cannot be written, so that a run fails before it
  trains.
  """

  def __init__(self, directory: str | Path, keep: int, keep_best: int = 0, keep_every: int = 0):
    if keep < 1:
      raise ValueError(f"keep is {keep}; a run keeps at least 1 checkpoint: set train.keep")
    self.directory = Path(directory).absolute()
    self.keep, self.keep_best, self.keep_every = keep, keep_best, keep_every
    self.failures = 0  # saves that failed while training went on
    self._pending = None  # (step, future of _finish, on_error)
    self._background = futures.ThreadPoolExecutor(1)
    self._checked = set()  # steps found good
    self._code = sidecar.code_version()
    _try_write(self.directory)
    self._clear()

  def save(self, step: int, state: Any, iterator_state: Any, meta: dict,
           on_error: str = "stop") -> bool:
    """Copies the state to the host; the write goes on behind. False: that step is there and kept.

    Args:
      meta: holds at least "config" and "tokenizer".
      on_error: when this save fails, now or behind: "stop" raises, now or at the next call; "warn"
        says it and counts it, but raises where there are many processes.
    """
    if missing := {"config", "tokenizer"} - meta.keys():
      raise ValueError(f"meta has no {sorted(missing)}; an evaluation could not load this "
                       "checkpoint: add them")
    items = {"params": state.params, "train": state.replace(params=None),
             "iterator": iterator_state, "meta": meta}
    facts = digests(meta) | {"rng": fingerprint({"rng": jax.random.key_data(state.rng)}),
                             "metric": None}
    return self.write(step, items, facts, on_error)

  def rate(self, step: int, loss: float) -> None:
    """Tells a step's validation loss, by which `keep_best` chooses; no such step: nothing."""
    self.wait()
    path = self.directory / str(step)
    if jax.process_index() == 0 and path.is_dir() and np.isfinite(loss):
      sidecar.rate(path, loss)
      self._retire()

  def write(self, step: int, items: dict, facts: dict, on_error: str = "stop") -> bool:
    """As `save`, of other items (trees of arrays by name, and JSON), with other sidecar facts."""
    registry = ocp.handlers.local_registry()
    for name in JSON.keys() & items.keys():
      _check_json(items[name], JSON[name])
      registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)  # else stored as arrays
    self.wait()
    if step in sidecar.steps(self.directory):
      return False
    self._clear()
    items = {name: item if name in JSON else _copied(item) for name, item in items.items()}
    context = ocp.Context()
    context.checkpointables.registry = registry
    # trained numbers shrink by a tenth, in ten times the time
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = FILE_BYTES
    # a failure there leaves threads waiting minutes
    context.async_options.create_directories_asynchronously = False
    try:
      with context:
        response = ocp.save_checkpointables_async(self.directory / f"{step}{PARTIAL}", items)
    except Exception as error:
      self._fail(step, error, on_error)
      return False
    facts = facts | {"step": step, "code": self._code}
    self._pending = step, self._background.submit(self._finish, step, response, facts), on_error
    return True

  def _finish(self, step: int, response: Any, facts: dict) -> None:
    response.result()
    if jax.process_index() == 0:
      partial = self.directory / f"{step}{PARTIAL}"
      sidecar.seal(partial, facts)
      os.rename(partial, self.directory / str(step))
      sidecar.sync(self.directory)  # before an older step is deleted
      self._retire()

  def _retire(self) -> None:
    """Deletes the steps that nothing keeps."""
    found = sidecar.steps(self.directory)
    metrics = {step: metric for step in found
               if (metric := sidecar.metric(self.directory / str(step))) is not None}
    kept = {*found[-self.keep:], *sorted(metrics, key=metrics.get)[:self.keep_best],
            *(step for step in found if self.keep_every and step % self.keep_every == 0)}
    for step in set(found) - kept:
      doomed = self.directory / f"{step}{PARTIAL}-deleted"
      # a kill while deleting must not leave half a step
      os.rename(self.directory / str(step), doomed)
      shutil.rmtree(doomed)

  def _clear(self) -> None:
    """Removes what interrupted or failed saves left."""
    if jax.process_index() == 0:
      for leftover in self.directory.glob(f"*{PARTIAL}*"):
        leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover, ignore_errors=True)

  def wait(self) -> None:
    """Blocks until the last save is whole and hashed, and steps beyond what is kept are deleted.

    Raises OSError when the disk was full, RuntimeError when that save failed for another reason.
    """
    if self._pending is None:
      return
    step, finish, on_error = self._pending
    self._pending = None
    error = finish.exception()
    if error is not None:
      self._fail(step, error, on_error)
    hosts.highest(0)  # all have written their part

  def _fail(self, step: int, error: BaseException, on_error: str) -> None:
    last = self.latest()
    good = ("no step is whole yet" if last is None
            else f"step {last} is whole and a restart goes on from it")
    code = _disk_error(error)
    if code is None:
      failure = RuntimeError(f"saving step {step} in {self.directory} failed ({good}): {error}")
    else:
      free = shutil.disk_usage(self.directory).free / 2**20
      failure = OSError(code, f"saving step {step} failed: {DISK_ERRORS[code]} in {self.directory} "
                              f"({free:,.0f} MiB free); {good}; free some space or choose another "
                              "--workdir, then start again")
    if on_error == "stop" or jax.process_count() > 1:  # the others wait for this one's part
      raise failure from (error if code is None else None)
    self.failures += 1
    say(f"{failure}; training goes on without it ({self.failures} failed so far)")

  def latest(self) -> int | None:
    """The last step on disk, or None. Waits for a save under way, and so does every other read."""
    self.wait()
    found = sidecar.steps(self.directory)
    return found[-1] if found else None

  def newest_good(self) -> int | None:
    """The last step that is as it was written; None: no step. Says what is wrong with later ones.

    Those are renamed to <step>.damaged, so that the run can write them again. Raises ValueError
    when no step is good, or it is one of weights.py, from which no training can go on.
    """
    self.wait()
    step, error = NO_STEP, None
    if jax.process_index() == 0 and sidecar.steps(self.directory):
      try:
        step, damaged = sidecar.newest_good(self.directory)
        for later in damaged:
          aside = sidecar.set_aside(self.directory / str(later))
          say(f"{self.directory}: step {later} is damaged ({sidecar.brief(damaged[later])}): kept "
              f"as {aside.name}, going on from step {step}")
        stored.tell_strays(self.directory / str(step))
      except ValueError as found:
        step, error = NONE_GOOD, found
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == NONE_GOOD:
      raise error or ValueError(f"no step in {self.directory} is good: the first process says what "
                                "is wrong")
    if step == NO_STEP:
      return None
    if not (self.directory / str(step) / "train").is_dir():
      raise ValueError(f"{self.directory}: step {step} is parameters alone, without an optimizer's "
                       "state to go on with: train another run that starts at them, with another "
                       f"--workdir and --init_from={self.directory.parent}")
    self._checked.add(step)
    return step

  def restore(self, step: int, like_state: Any) -> tuple[Any, Any, dict]:
    """(state, iterator's state, meta) as saved, bit for bit, placed like `like_state`.

    `like_state` has arrays or ShapeDtypeStructs. Any number of devices and any mesh will do,
    whatever it was saved from. Raises FileNotFoundError without that step, ValueError when it is
    damaged or an array has another shape, type or name.
    """
    self.wait()
    path = (stored.find if step in self._checked else stored.good)(self.directory, step)
    rest = like_state.replace(params=None)
    check_architecture(stored.shapes(path, "params"), like_state.params)
    check_architecture(stored.shapes(path, "train"), rest, "optimizer or state",
                       f"{OWN}; of an earlier version, start at its parameters in another workdir, "
                       f"with --init_from={self.directory.parent}")
    loaded = stored.read(path, {"params": like_state.params, "train": rest, "iterator": None,
                                "meta": None})
    return loaded["train"].replace(params=loaded["params"]), loaded["iterator"], loaded["meta"]

  def meta(self, step: int) -> dict:
    """What was saved as `meta`; reads no array."""
    self.wait()
    return stored.read_meta(self.directory, step)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None or jax.process_count() == 1:
      self.wait()
    elif self._pending is not None:  # the others may be elsewhere: without them
      futures.wait([self._pending[1]], LAST_SAVE)


def digests(meta: dict) -> dict:
  """Of the configuration and the tokenizer, for a step's sidecar."""
  return {"config": hashlib.sha256(meta["config"].encode()).hexdigest(),
          "tokenizer": meta["tokenizer"]}


def _copied(tree: Any) -> Any:
  """A copy on a CPU, where Orbax reads in place and a step that donates them would wait for it."""
  if jax.default_backend() != "cpu":
    return tree
  return jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)


def _try_write(directory: Path) -> None:
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as probe:
      probe.write(b"checkpoint")
  except OSError as error:
    raise type(error)(error.errno, f"checkpoints cannot be written in {directory}: "
                                   f"{error.strerror}; choose another --workdir or change its "
                                   "permissions") from error


def _disk_error(error: BaseException | None) -> int | None:
  """The errno of a full disk in a chain of exceptions; TensorStore gives its own only as text."""
  while error is not None:
    for code in DISK_ERRORS:
      if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
        return code
    error = error.__cause__ or error.__context__
  return None


def _check_json(value: Any, what: str) -> None:
  if json.loads(json.dumps(value)) != value:
    raise TypeError(f"{what} changes when written as JSON (tuples, or keys that are not text): "
                    f"{value!r}")
