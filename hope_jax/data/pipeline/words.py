"""Words of a text as numbers, and runs of n of them, by numpy.

    ids = words.ids(words.split("The end. The END!"))     # uint64: the same number, the same word
    words.grams(ids, 2)                                   # "the end", "end the", "the end"

A word is a run of letters and digits, in small letters; its number is the same in every process.
"""

from collections.abc import Collection, Iterator
import re

import numpy as np
import xxhash

_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


class _Numbers(dict):
  """{word: number}, filled as words are met; emptied when large."""

  def __missing__(self, word: str) -> int:
    if len(self) >= 1_000_000:
      self.clear()
    self[word] = number = xxhash.xxh64_intdigest(word.encode("utf-8", "surrogateescape"))
    return number


_numbers = _Numbers()


def split(text: str) -> list[str]:
  """The words of a text."""
  return _WORD.findall(text.lower())


def ids(words: list[str]) -> np.ndarray:
  """uint64 (words,)."""
  return np.fromiter(map(_numbers.__getitem__, words), np.uint64, len(words))


def grams(ids: np.ndarray, n: int) -> np.ndarray:
  """uint64 (words - n + 1,): a number for every run of n words; none for fewer than n words.

  The same words in another order have another number: the run a, b, c has ((a * q) + b) * q + c,
  mixed, modulo 2^64.
  """
  return dict(runs(ids, [n]))[n]


def runs(ids: np.ndarray, lengths: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
  """(n, `grams` of n words), from the shortest on; what shorter ones cost serves the longer."""
  sums = np.zeros(len(ids) + 1, np.uint64)
  for n in range(1, max(lengths, default=0) + 1):
    sums = sums[:-1] * _ODD + ids[n - 1:]
    if n in lengths:
      total = (sums ^ (sums >> _SHIFT)) * _MIX
      yield n, total ^ (total >> _SHIFT)
