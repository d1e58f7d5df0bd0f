"""A file of tokens that is read for days: retried where unreadable, an error when replaced."""

import errno
import os
from pathlib import Path
import time

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
