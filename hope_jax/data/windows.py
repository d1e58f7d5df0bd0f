"""Packing: documents into windows of `seq` tokens, by arithmetic on their offsets in a shard.

The documents, in a fixed random order, each on a multiple of `align` slots, form one long row that
is cut every `seq` slots. So a document, and every piece of one that continues in the next window,
starts at a multiple of `align`.

A window: int32 [seq] `tokens` (0 in padding), `labels` (the document's next token, also when it
lies in the next window; -1 at its end and in padding), `segments` (1, 2, ... by document; 0 in
padding). Every next-token pair occurs exactly once.
"""

import functools
from pathlib import Path

import numpy as np

from hope_jax.data.shard import Shards


class Lanes:
  """Rows of batches that read on: row r of batch i goes on where row r of batch i - 1 ended.

  The packed row of an epoch is cut into as many runs of windows as there are rows, equally long to
  one window; a row that has read its run begins that of the next epoch, whose documents have
  another order. `segments` are numbers of documents, the same in every window that a document
  reaches into.
  """

  def __init__(self, folder: Path, source: str, seq: int, align: int, seed: int, rows: int):
    def epoch(number: int) -> Windows:
      return Windows(folder, source, "train", seq, align, (seed, number))
    self._epoch = functools.lru_cache(4)(epoch)
    count = len(self._epoch(0))
    if count < rows:
      raise ValueError(f"{folder}: {count} training windows of {source} are fewer than the {rows} "
                       "rows that read it; give more text (data.sources), or lower data.batch or "
                       "data.seq")
    self._first = [row * count // rows for row in range(rows + 1)]

  def window(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Of one of its rows, at an optimizer step."""
    epoch, place = divmod(step, self._first[row + 1] - self._first[row])
    window = self._epoch(epoch).numbered(self._first[row] + place)
    again = np.int32(epoch % 2 * 2**30)  # the last of an epoch and the first of the next differ
    return window | {"segments": np.where(window["segments"] > 0, window["segments"] + again, 0)}


class Windows:
  """Random access to packed windows of a source and split (of one domain, if given its number)."""

  def __init__(self, folder: Path, source: str, split: str, seq: int, align: int,
               seed: int | tuple, domain: int | None = None):
    if align < 1 or seq < 1 or seq % align:
      raise ValueError(f"data.seq {seq} is not a multiple of data.align {align}; "
                       f"set data.seq to {max(1, seq // max(align, 1)) * max(align, 1)}")
    stem = folder / f"{source}.{split}"
    offsets, domains = np.load(f"{stem}.offsets.npy"), np.load(f"{stem}.domains.npy")
    self._shard = Shards(stem)
    chosen = np.arange(len(domains)) if domain is None else np.flatnonzero(domains == domain)
    chosen = np.random.default_rng(seed).permutation(chosen)
    # in the shard, in packed order
    self._starts, self._lengths = offsets[chosen], np.diff(offsets)[chosen]
    # in the packed row, in blocks of `align` slots
    self._ends = np.cumsum(-(-self._lengths // align))
    self._seq, self._align = seq, align

  @property
  def padding(self) -> float:
    """The share of slots that hold no token."""
    slots = len(self) * self._seq
    return 1 - self._lengths.sum() / slots if slots else 0.0

  def __len__(self) -> int:
    blocks = int(self._ends[-1]) if len(self._ends) else 0
    return -(-blocks * self._align // self._seq)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    window = self.numbered(index)
    segments = window["segments"]
    return window | {"segments": np.where(segments > 0, segments - segments[0] + 1, 0)}

  def numbered(self, index: int) -> dict[str, np.ndarray]:
    """A window whose `segments` are the numbers of its documents, from 1 on, in packed order."""
    blocks = index * (self._seq // self._align) + np.arange(self._seq // self._align)
    # Blocks after the last document count as more of it: beyond its length, they are padding.
    document = np.minimum(np.searchsorted(self._ends, blocks, side="right"), len(self._ends) - 1)
    first = np.where(document > 0, self._ends[document - 1], 0)
    place = ((blocks - first) * self._align)[:, None] + np.arange(self._align)
    left = self._lengths[document][:, None] - place  # tokens from this slot to the document's end
    ahead = self._shard.read(self._starts[document] + place[:, 0], self._align + 1)
    nothing = np.int32(0)
    tokens = np.where(left > 0, ahead[:, :-1], nothing)
    labels = np.where(left > 1, ahead[:, 1:], np.int32(-1))
    segments = np.where(left > 0, (document + 1)[:, None].astype(np.int32), nothing)
    return dict(tokens=tokens.ravel(), labels=labels.ravel(), segments=segments.ravel())
