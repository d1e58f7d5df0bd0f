"""Files of a build: records as packed JSON lines, arrays, facts; each is whole or not there."""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
from pathlib import Path
import shutil

import numpy as np

from hope_jax.data import files, zstd

LINES = ".jsonl.zst"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Another name to write to, which becomes `path` at the end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    yield new
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)


@contextlib.contextmanager
def lines(path: Path) -> Iterator[Callable[[dict], None]]:
  """A function that adds a record to a file of JSON lines. Surrogate escapes are kept."""
  with whole(path) as new, open(new, "wb") as file:
    with zstd.library().ZstdCompressor(level=3).stream_writer(file) as packed:
      yield lambda record: packed.write(json.dumps(record).encode() + b"\n")


def read_lines(path: Path) -> Iterator[dict]:
  with files.unpacked(path) as rows:
    yield from map(json.loads, rows)


def write_facts(path: Path, facts: dict) -> None:
  with whole(path) as new:
    new.write_text(json.dumps(facts, indent=1) + "\n")


def read_facts(path: Path) -> dict:
  return json.loads(path.read_text())


def write_array(path: Path, array: np.ndarray) -> None:
  with whole(path) as new, open(new, "wb") as file:
    np.save(file, array)


def sweep(folder: Path) -> None:
  """Takes away what killed processes have left half written."""
  for path in list(folder.rglob(".*.partial")):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
