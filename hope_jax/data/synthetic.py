"""Tasks that need memory and no text: learned in minutes, and chance is known.

    data.task   tokens; what a label is, where there is one
    recall      facts, then keys; the value of each key (recall.py)
    copy        data.copied symbols among blanks, then marks; the symbols in order, one at each mark
                (selective copying: arXiv 2312.00752, section 4.1)
    in_context  pairs of a key and its value, drawn anew for each sequence; a key's value, from the
                second time on (arXiv 2403.17844, in-context recall)

and six formal languages, where the label at every symbol says which ones may follow, an end too:

    parity        0 and 1: is the number of ones even?
    aa, abab      (aa)*, (abab)*
    anbn, anbncn  a^n b^n, a^n b^n c^n
    shuffle2      brackets of two kinds, each kind balanced on its own

Strings have 2 to data.seq symbols in training, more than half as many as data.seq in validation, so
a longer data.seq asks for longer ones. Example i depends on (data.seed, split, i) alone. Ids: 0 is
a blank, then symbols (keys, then values), then what only labels or marks say.
"""

from collections.abc import Callable
import sys
from typing import NamedTuple

import grain
from ml_collections import ConfigDict
import numpy as np

from hope_jax.data import recall
from hope_jax.data.corpus import SPLITS


class Example(NamedTuple):
  """tokens_T, labels_T (-1: none); may be shorter than a sequence."""
  tokens: np.ndarray
  labels: np.ndarray


def _copy(rng, data, split) -> Example:
  del split
  places = data.seq - data.copied
  tokens, labels = np.zeros(data.seq, np.int32), np.full(data.seq, -1, np.int32)
  symbols = 1 + rng.integers(data.symbols, size=data.copied)
  where = np.sort(rng.choice(places, data.copied, replace=False))
  tokens[where], tokens[places:], labels[places:] = symbols, data.symbols + 1, symbols
  if data.recall_taught:
    labels[where] = symbols
  return Example(tokens, labels)


def _in_context(rng, data, split) -> Example:
  del split
  value_K = 1 + data.symbols + rng.integers(data.symbols, size=data.symbols)
  key_N = rng.integers(data.symbols, size=data.seq // 2)
  tokens, labels = (np.full(2 * len(key_N), -1, np.int32) for _ in range(2))
  tokens[0::2], tokens[1::2] = 1 + key_N, value_K[key_N]
  again_N = np.ones(len(key_N), bool)
  again_N[np.unique(key_N, return_index=True)[1]] = data.recall_taught
  labels[0::2] = np.where(again_N, value_K[key_N], -1)
  return Example(tokens, labels)


def _parity(rng, n):
  bits_T = rng.integers(2, size=n)
  return bits_T, np.cumsum(bits_T) % 2


def _aa(rng, n):
  del rng
  return np.zeros(n, int), np.arange(1, n + 1) % 2


def _abab(rng, n):
  del rng
  return np.arange(n) % 2, np.arange(1, n + 1) % 4


def _runs(letters: int) -> Callable:
  """a^n b^n ...: the same number of each letter; after the first b all is known."""
  def draw(rng, n):
    del rng
    each = n // letters
    symbols_T = np.repeat(np.arange(letters), each)
    # what follows: the same letter or the next (0), a known letter (1, 2, ...), the end (letters)
    labels_T = np.concatenate([np.zeros(each, int), symbols_T[each + 1:], [letters]])
    return symbols_T, labels_T
  return draw


def _shuffle2(rng, n):
  depth, symbols, labels = [0, 0], [], []
  for choice, side in zip(rng.integers(2, size=n), rng.random(n)):
    closes = depth[choice] > 0 and side < 0.5
    depth[choice] += -1 if closes else 1
    symbols.append(2 * choice + closes)
    labels.append(2 * (depth[0] > 0) + (depth[1] > 0))
  return np.array(symbols), np.array(labels)


LANGUAGES = {  # name: (draw, symbols, labels)
    "parity": (_parity, 2, 2), "aa": (_aa, 1, 2), "abab": (_abab, 2, 4), "anbn": (_runs(2), 2, 3),
    "anbncn": (_runs(3), 3, 4), "shuffle2": (_shuffle2, 4, 4)}


def _language(name: str) -> Callable:
  string, symbols, _ = LANGUAGES[name]
  def draw(rng, data, split) -> Example:
    least = 3 if split == "train" else max(3, data.seq // 2 + 1)
    symbols_T, labels_T = string(rng, int(rng.integers(least, data.seq + 1)))
    return Example(1 + symbols_T, 1 + symbols + labels_T)
  return draw


DRAW = {"copy": _copy, "in_context": _in_context} | {name: _language(name) for name in LANGUAGES}
TASKS = ("recall", *DRAW)


def chance(config: ConfigDict) -> float:
  """Accuracy of guessing among the labels that there are."""
  if config.data.task in LANGUAGES:
    return 1 / LANGUAGES[config.data.task][2]
  return 1 / (config.data.recall_keys if config.data.task == "recall" else config.data.symbols)


def vocabulary(config: ConfigDict) -> int:
  """Ids that a task needs."""
  data = config.data
  if data.task in LANGUAGES:
    return 1 + sum(LANGUAGES[data.task][1:])
  return {"copy": data.symbols + 2, "in_context": 2 * data.symbols + 1}[data.task]


def dataset(config: ConfigDict, split: str) -> grain.MapDataset:
  """Endless examples: dicts of int32 [data.seq] `tokens`, `labels` (-1: none), `segments`.

  ValueError when the vocabulary or the sequence is too short.
  """
  data = config.data
  if data.task == "recall":
    return recall.dataset(config, split)
  if config.model.vocab < vocabulary(config):
    raise ValueError(f"model.vocab {config.model.vocab} is too small for data.task={data.task}; "
                     f"set model.vocab to {vocabulary(config)} or more")
  least = 2 * data.copied if data.task == "copy" else 4
  if data.seq < least:
    raise ValueError(f"data.seq {data.seq} is too short for data.task={data.task}; set data.seq to "
                     f"{least} or more")
  number, draw = SPLITS.index(split), DRAW[data.task]

  def padded(i: int) -> dict[str, np.ndarray]:
    own = draw(np.random.default_rng([data.seed, number, i]), data, split)
    def filled(values_T, fill):
      return np.concatenate([values_T, np.full(data.seq - len(values_T), fill)]).astype(np.int32)
    return dict(tokens=filled(own.tokens, 0), labels=filled(own.labels, -1),
                segments=filled(np.ones(len(own.tokens)), 0))

  return grain.MapDataset.range(sys.maxsize).map(padded)
