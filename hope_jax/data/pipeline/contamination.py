"""Which documents have words in a row of an evaluation's texts.

    index = contamination.index(texts, n=13, least=8)         # {length: numbers, sorted}
    contamination.Finder(index).found(document_text)          # the words, or None

An evaluation's text of n words or more counts with each of its runs of n; a shorter one, of `least`
or more, as a whole. The law: no document that stays has such a run. Words: words.py.
"""

from collections.abc import Iterable, Iterator
import json
from pathlib import Path

import numpy as np

from hope_jax.data import files, units
from hope_jax.data.pipeline import words


def texts(places: Iterable[str]) -> Iterator[str]:
  """Of files and folders: each string of a JSON (lines) file's records; any other file as a whole.

  ValueError for what is not there or no text.
  """
  for place in places:
    root = Path(place).expanduser()
    if not root.exists():
      raise ValueError(f"decontaminate.files: {place} does not exist; give a file or a folder")
    for path in files.below(root):
      text = files.text(path)
      if "\0" in text:
        raise ValueError(f"decontaminate.files: {path} is no text: leave it out")
      yield from _strings(path, text) if units.kind_of(path) == "jsonl" else (text,)


def _strings(path: Path, text: str) -> Iterator[str]:
  try:
    records = [json.loads(text)]
  except ValueError:  # not one value, so lines of them
    records = _lines(path, text)
  waiting = list(records)
  while waiting:
    value = waiting.pop()
    if isinstance(value, str):
      yield value
    elif isinstance(value, (list, dict)):
      waiting += value.values() if isinstance(value, dict) else value


def _lines(path: Path, text: str) -> list:
  found = []
  for number, line in enumerate(text.split("\n"), 1):
    try:
      found += [json.loads(line)] if line.strip() else []
    except ValueError as error:
      raise ValueError(f"decontaminate.files: {path}:{number}: not JSON ({error}): mend the line, "
                       "or leave the file out") from None
  return found


def index(texts: Iterable[str], n: int, least: int) -> dict[int, np.ndarray]:
  """{words in a row: their numbers, sorted}."""
  found = {}
  for text in texts:
    ids = words.ids(words.split(text))
    if len(ids) >= least:
      length = min(n, len(ids))
      found.setdefault(length, []).append(words.grams(ids, length))
  return {length: np.unique(np.concatenate(runs)) for length, runs in sorted(found.items())}


def save(path: Path, index: dict[int, np.ndarray]) -> None:
  with open(path, "wb") as file:
    np.savez(file, **{str(length): numbers for length, numbers in index.items()})


def load(path: Path) -> dict[int, np.ndarray]:
  with np.load(path) as stored:
    return {int(length): stored[length] for length in stored.files}


class Finder:
  """Looks documents up in an index."""

  def __init__(self, index: dict[int, np.ndarray]):
    self._index = index
    # whether any number begins with these bits: few others have to be searched for
    self._first = {}
    for length, known in index.items():
      bits = min(24, max(8, len(known).bit_length() + 4))
      shift = np.uint64(64 - bits)
      table = np.zeros(2**bits, bool)
      table[known >> shift] = True
      self._first[length] = shift, table

  def found(self, text: str) -> str | None:
    """The first words in a row that are an evaluation's, of the shortest length; None: none."""
    if not self._index:
      return None
    split = words.split(text)
    for length, numbers in words.runs(words.ids(split), self._index):
      shift, table = self._first[length]
      perhaps = np.flatnonzero(table[numbers >> shift])
      known = self._index[length]
      place = np.minimum(np.searchsorted(known, numbers[perhaps]), len(known) - 1)
      hits = perhaps[known[place] == numbers[perhaps]]
      if len(hits):
        return " ".join(split[hits[0]:hits[0] + length])
    return None
