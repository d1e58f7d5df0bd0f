"""Batches of windows: endless, by the seed alone, for training; always the same for evaluation."""

import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from ml_collections import ConfigDict

from hope_jax.data import synthetic, tokenized
from hope_jax.data.windows import Lanes, Windows

_EVAL_SEED = 0  # not data.seed: runs with different seeds are evaluated on the same windows
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # batches read ahead


class Batches(Iterator):
  """Endless batches: dicts of int32 [data.batch, data.seq], by data.seed alone.

  Sources are mixed by weight, each reshuffled every epoch; with data.carry every row reads on in
  one of them. `rows`: only these of every batch, in this order; nothing else is read. `get_state`
  and `set_state` resume exactly, with any rows and, but for rows that read on, any size of a batch:
  the position is the number of sequences before it.
  """

  def __init__(self, windows: grain.MapDataset, size: int, rows: Sequence[int]):
    self._windows, self._size, self._rows = windows, size, rows
    self.set_state({"sequences": 0})

  def get_state(self) -> dict:
    """The position behind the last batch that was drawn; JSON."""
    return {"sequences": self._read}

  def set_state(self, state: dict) -> None:
    self._read = first = state["sequences"]
    windows, size, rows = self._windows, self._size, self._rows
    mine = grain.MapDataset.range(sys.maxsize).map(
        lambda i: windows[first + i // len(rows) * size + rows[i % len(rows)]])
    self._batches = iter(mine.batch(len(rows), drop_remainder=True).to_iter_dataset(_READ))

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self._read += self._size
    return batch


def train_batches(config: ConfigDict, rows: Sequence[int] | None = None) -> Batches:
  """The batches of a configuration. ValueError if its windows do not fill one batch."""
  if _task(config) != "text":
    windows = synthetic.dataset(config, "train")
  elif config.data.carry:
    windows = _Carried(config)
  else:
    folder = tokenized.build(config)
    parts = [Windows(folder, s.name, "train", config.data.seq, config.data.align, config.data.seed)
             for s in config.data.sources]
    count = sum(map(len, parts))
    if count < config.data.batch:
      raise ValueError(f"{folder}: {count} training windows are fewer than one batch of "
                       f"{config.data.batch}; give more text (data.sources), or lower data.batch "
                       "or data.seq")
    windows = grain.MapDataset.mix(
        [grain.MapDataset.source(p).seed(config.data.seed).shuffle().repeat() for p in parts],
        [s.weight for s in config.data.sources])
  return Batches(windows, config.data.batch, range(config.data.batch) if rows is None else rows)


class _Carried:
  """Rows that read on; row r of batch i is at i * data.batch + r."""

  def __init__(self, config: ConfigDict):
    folder, d = tokenized.build(config), config.data
    counts = _shares([source.weight for source in d.sources], d.batch)
    lanes = [Lanes(folder, source.name, d.seq, d.align, d.seed, count)
             for source, count in zip(d.sources, counts)]
    self._rows = [(own, row) for own, count in zip(lanes, counts) for row in range(count)]

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    step, row = divmod(index, len(self._rows))
    lanes, own = self._rows[row]
    return lanes.window(step, own)


def _shares(weights: Sequence[float], rows: int) -> list[int]:
  """Rows of each source, by weight; ValueError where one has none."""
  exact = np.array(weights) / sum(weights) * rows
  counts = np.floor(exact).astype(int)
  for i in np.argsort(counts - exact, kind="stable")[:rows - counts.sum()]:
    counts[i] += 1
  if not all(counts):
    raise ValueError(f"data.carry gives each source rows of its own, and {rows} rows for weights "
                     f"{list(weights)} leave one without: raise data.batch")
  return counts.tolist()


def eval_batches(config: ConfigDict,
                 batches: int) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
  """The first `batches` batches of the validation windows, always the same.

  They come in turn from every source and domain. Yields names [data.batch], "source/domain" of each
  row, and a batch as in training. There are fewer batches if the windows run out; the last one is
  then filled up with rows of name "" and nothing but padding.
  """
  size = config.data.batch
  rows = _eval_rows(config, batches * size)
  return (_stack(rows[i:i + size], size) for i in range(0, len(rows), size))


def _eval_rows(config: ConfigDict, count: int) -> list[tuple[str, Sequence, int]]:
  """(name, windows, index) of each row."""
  if (task := _task(config)) != "text":
    windows = synthetic.dataset(config, "validation")
    return [(task, windows, i) for i in range(count)]
  folder = tokenized.build(config)
  kept = tokenized.manifest(folder)["domains"]
  parts = [(f"{source.name}/{domain}",
            Windows(folder, source.name, "validation", config.data.seq, config.data.align,
                                               _EVAL_SEED, domain=number))
           for source in config.data.sources for number, domain in enumerate(kept[source.name])]
  rounds = range(max(len(windows) for _, windows in parts))
  rows = [(name, windows, i) for i in rounds for name, windows in parts if i < len(windows)]
  if not rows:
    raise ValueError(f"{folder}: no validation document; "
                     "raise data.val_fraction or split the sources into more documents")
  return rows[:count]


def _stack(rows: list[tuple[str, Sequence, int]],
           size: int) -> tuple[list[str], dict[str, np.ndarray]]:
  windows = [windows[i] for _, windows, i in rows]
  empty = dict(tokens=np.zeros_like(windows[0]["tokens"]),
               labels=np.full_like(windows[0]["labels"], -1),
               segments=np.zeros_like(windows[0]["segments"]))
  missing = size - len(rows)
  return [name for name, _, _ in rows] + [""] * missing, {
      key: np.stack([w[key] for w in windows] + [empty[key]] * missing) for key in empty}


def _task(config: ConfigDict) -> str:
  if config.data.task not in ("text", *synthetic.TASKS):
    raise ValueError(f"unknown data.task {config.data.task!r}; set it to text, "
                     f"{', '.join(synthetic.TASKS)}")
  return config.data.task
