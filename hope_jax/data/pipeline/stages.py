"""The stages of a build, each some tasks of datatrove's executor, which runs a task only once.

    with Workers(place, 4) as workers:
      workers.run(stage)

A task's result depends on its number alone, and its files appear when they are whole: killed at any
moment and started again, a build is what it would have been. `Place` says what lies where.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import functools
import multiprocessing
import os
from pathlib import Path
import resource
import sys
import threading
import time
from typing import Self

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from ml_collections import ConfigDict
from tqdm import tqdm

from hope_jax.data.pipeline import parts, recipe as recipes, store

_LOOK = 0.5  # seconds between two looks at how far tasks are
logger.disable("datatrove")  # its progress and errors are shown once, by the builder


@dataclasses.dataclass(frozen=True)
class Place:
  """A build: its recipe, and where its files are."""

  recipe: ConfigDict

  @property
  def folder(self) -> Path:
    return recipes.folder(self.recipe)

  @property
  def work(self) -> Path:
    """What later stages read; nobody needs it once all is made."""
    return self.folder / "work"

  @functools.cached_property
  def parts(self) -> list[parts.Part]:
    return parts.from_json(store.read_facts(self.work / "plan.json")["parts"])

  def source(self, rank: int) -> ConfigDict:
    """Of a part."""
    return self.recipe.sources[self.parts[rank].source]

  def kept(self, rank: int) -> Path:
    """Documents of a part that passed the filters."""
    return self.work / "kept" / f"{rank:05d}{store.LINES}"

  def documents(self, rank: int) -> Path:
    """Documents of a part that stay."""
    return self.folder / "documents" / self.source(rank).name / f"{rank:05d}{store.LINES}"

  def dropped(self, rank: int, stage: str) -> Path:
    return self.folder / "dropped" / f"{rank:05d}.{stage}{store.LINES}"

  def counts(self, stage: str, rank: int) -> Path:
    return self.work / "counts" / f"{stage}.{rank:05d}.json"


@dataclasses.dataclass(frozen=True)
class Stage:
  """work(place, rank, meter) does one of the tasks."""

  name: str
  tasks: int
  work: Callable


class Meter:
  """How far a task is: (documents, bytes of text), in a file that the builder looks at."""

  def __init__(self, path: Path):
    self._path, self._written, self.documents, self.bytes = path, 0.0, 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)

  def add(self, size: int) -> None:
    """One more document."""
    self.documents += 1
    self.bytes += size
    if time.monotonic() > self._written + _LOOK:
      self.write()

  def write(self) -> None:
    self._written = time.monotonic()
    self._path.write_text(f"{self.documents} {self.bytes}")


class Task(PipelineStep):
  """One stage, as datatrove wants it."""

  type, name = "hope_jax", "stage"

  def __init__(self, stage: Stage, place: Place):
    super().__init__()
    self.stage, self.place = stage, place

  def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
    began, cpu = time.monotonic(), time.process_time()
    meter = Meter(self.place.work / "progress" / f"{self.stage.name}.{rank:05d}")
    self.stage.work(self.place, rank, meter)
    meter.write()
    store.write_facts(self.place.work / "times" / f"{self.stage.name}.{rank:05d}.json", dict(
        documents=meter.documents, bytes=meter.bytes, seconds=time.monotonic() - began,
        processor=time.process_time() - cpu,
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


class Workers:
  """Processes that do tasks; they end with this one, however it ends.

  With one, this process does all. ValueError and OSError of a task are raised here, and so is that
  a process was killed.
  """

  def __init__(self, place: Place, count: int):
    self._place, self._count, self._pool = place, count, None
    self._held = place.work / ".workers"
    with open(self._held, "a") as file, contextlib.suppress(OSError):  # where there are no locks
      fcntl.flock(file, fcntl.LOCK_EX)  # those of a builder that was killed have ended

  def run(self, stage: Stage) -> None:
    """All tasks of a stage that were not done before."""
    executor = LocalPipelineExecutor([Task(stage, self._place)], tasks=stage.tasks,
                                     logging_dir=str(self._place.work / "tasks" / stage.name))
    ranks, over = executor.get_incomplete_ranks(), threading.Event()
    if not ranks:
      return
    shown = threading.Thread(target=_show, args=(stage, self._place, over))
    shown.start()
    try:
      one = executor._run_for_rank
      for _ in map(one, ranks) if self._count == 1 else self._started().map(one, ranks):
        pass
    except futures.process.BrokenProcessPool:
      raise OSError(f"{stage.name}: a process was killed, perhaps for want of memory: run it again "
                    "to go on, with lower workers") from None
    finally:
      over.set()
      shown.join()

  def _started(self) -> futures.ProcessPoolExecutor:
    if self._pool is None:
      context = multiprocessing.get_context("forkserver")
      # one process imports all; workers are copies of it
      context.set_forkserver_preload(["hope_jax.data.pipeline.build"])
      self._pool = futures.ProcessPoolExecutor(self._count, context, _begin,
                                               (os.getpid(), str(self._held)))
    return self._pool

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error) -> None:
    if self._pool is not None:
      self._pool.shutdown(cancel_futures=True)


def _begin(builder: int, held: str) -> None:
  """A worker: it holds the file until it ends, which it does when the builder has."""
  global _file
  _file = open(held, "a")
  with contextlib.suppress(OSError):
    fcntl.flock(_file, fcntl.LOCK_SH)
  threading.Thread(target=_watch, args=(builder,), daemon=True).start()


def _watch(builder: int) -> None:
  while True:
    try:
      os.kill(builder, 0)
    except OSError:
      os._exit(1)
    time.sleep(_LOOK)


def _show(stage: Stage, place: Place, over: threading.Event) -> None:
  """A bar of MB with documents/s, until it is over."""
  began = _so_far(stage, place)
  with tqdm(desc=f"{stage.name:10}", unit="B", unit_scale=True, initial=began[1],
            file=sys.stderr) as bar:
    while not over.wait(_LOOK):
      _move(bar, stage, place, began)
    _move(bar, stage, place, began)


def _move(bar: tqdm, stage: Stage, place: Place, began: tuple[int, int]) -> None:
  documents, size = _so_far(stage, place)
  seconds = max(bar.format_dict["elapsed"], 1e-9)
  bar.set_postfix_str(f"{documents} documents, {(documents - began[0]) / seconds:.0f}/s",
                      refresh=False)
  bar.update(size - bar.n)


def _so_far(stage: Stage, place: Place) -> tuple[int, int]:
  documents = size = 0
  for path in (place.work / "progress").glob(f"{stage.name}.*"):
    found = path.read_text().split()
    if len(found) == 2:  # else it is being written
      documents, size = documents + int(found[0]), size + int(found[1])
  return documents, size
