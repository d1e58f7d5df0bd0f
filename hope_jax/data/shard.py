"""Files of tokens: written in pieces, and read for days: retried where unreadable, an error when
replaced.
"""

import errno
import os
from pathlib import Path
import time
from typing import Self

import numpy as np

RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds to wait before reading again


class Shard:
  """A flat array in a .npy file, read in pieces while it is the file that it was at the start."""

  def __init__(self, path: Path):
    array = np.load(path, mmap_mode="r")
    self._path, self._dtype, self._first, self._size = path, array.dtype, array.offset, array.size
    self._mark = self._mark_of(path.stat())

  def read(self, starts_N: np.ndarray, count: int) -> np.ndarray:
    """int32 (N, count): so many numbers from each start on; 0 beyond the end.

    Tries again for a while when the file cannot be read, then raises OSError; ValueError for
    another file in its place.
    """
    for pause in (*RETRIES, None):
      try:
        return self._read(starts_N, count)
      except OSError as error:
        if pause is None:
          raise OSError(error.errno, f"{self._path} could not be read for {sum(RETRIES):.0f} s: "
                                     f"{error.strerror}") from error
        time.sleep(pause)

  def _read(self, starts_N, count):
    out = np.zeros((len(starts_N), count), np.int32)
    # not memory-mapped: a failing read would be a SIGBUS
    with open(self._path, "rb", buffering=0) as file:
      if self._mark_of(os.fstat(file.fileno())) != self._mark:
        raise ValueError(f"{self._path} was replaced or changed while it was read: put the old "
                         "file back; the checkpoint's position goes with it")
      for row, start in zip(out, starts_N.tolist()):
        there = min(count, max(self._size - start, 0))
        read = os.pread(file.fileno(), there * self._dtype.itemsize,
                        self._first + start * self._dtype.itemsize)
        if len(read) < there * self._dtype.itemsize:  # zeros in their place would be tokens
          raise OSError(errno.EIO, "fewer bytes were read than there are")
        row[:there] = np.frombuffer(read, self._dtype)
    return out

  @staticmethod
  def _mark_of(stat: os.stat_result) -> tuple:
    return stat.st_size, stat.st_mtime_ns

  def __len__(self) -> int:
    return self._size


class Shards:
  """The files <stem>.tokens.npy, or <stem>.tokens.00000.npy and on, as one array."""

  def __init__(self, stem: Path):
    whole = Path(f"{stem}.tokens.npy")
    paths = [whole] if whole.exists() else sorted(stem.parent.glob(f"{stem.name}.tokens.*.npy"))
    self._shards = list(map(Shard, paths or [whole]))
    self._ends = np.cumsum([len(shard) for shard in self._shards])

  def read(self, starts_N: np.ndarray, count: int) -> np.ndarray:
    """As of a shard; a run of numbers that begins in one file is 0 beyond that file's end."""
    owner_N = np.minimum(np.searchsorted(self._ends, starts_N, side="right"), len(self._ends) - 1)
    out = np.zeros((len(starts_N), count), np.int32)
    for i in np.unique(owner_N).tolist():
      before = self._ends[i] - len(self._shards[i])
      out[owner_N == i] = self._shards[i].read(starts_N[owner_N == i] - before, count)
    return out


class Writer:
  """A .npy file of a flat array that comes in pieces: the bytes that np.save would write."""

  def __init__(self, path: Path, dtype: type):
    self._file, self._dtype, self.size = open(path, "wb"), np.dtype(dtype), 0
    self._header()

  def add(self, array: np.ndarray) -> None:
    self._file.write(np.ascontiguousarray(array, self._dtype).data)
    self.size += len(array)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error) -> None:
    with self._file:
      self._file.seek(0)
      self._header()

  def _header(self) -> None:  # as long for any size
    np.lib.format.write_array_header_1_0(self._file, dict(
        descr=np.lib.format.dtype_to_descr(self._dtype), fortran_order=False, shape=(self.size,)))
