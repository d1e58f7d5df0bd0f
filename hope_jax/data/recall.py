"""Multi-query associative recall (MQAR; Arora et al. 2023, "Zoology"): memory without language.

    k1 v1 k2 v2 ... kn vn  .  .  k2 .  k1 .  .  .  kn    every key once, in any order, later
                                 v2    v1          vn    labels: its value there, else -1

Ids: 0 fills, 1 ... keys are keys, keys + 1 ... 2 keys are values. Example i depends on (seed,
split, i) only.

With data.recall_gap, so many tokens lie between the pairs and the first place where a key may be
asked: out of reach of attention if layers * (window - 1) <= gap. Validation has the whole gap;
training draws each sequence's from 0 to it and fills up behind the queries. With
data.recall_fillers, what fills is drawn from so many ids after the values. With data.recall_taught,
the keys of the facts are labelled as well: a teach signal comes from labels alone.
"""

import sys

import grain
import numpy as np
from ml_collections import ConfigDict

from hope_jax.data.corpus import SPLITS

MIN_FILLERS = 16  # of a gap


def dataset(config: ConfigDict, split: str) -> grain.MapDataset:
  """Endless examples: dicts of int32 [data.seq] `tokens`, `labels`, `segments` (all 1).

  Raises ValueError when the sequence, the keys, the fillers or the vocabulary are too few.
  """
  data = config.data
  pairs, keys, gap, fillers, seq = (data.recall_pairs, data.recall_keys, data.recall_gap,
                                    data.recall_fillers, data.seq)
  if pairs < 1 or keys < pairs:
    raise ValueError(f"data.recall_pairs {pairs} must be between 1 and data.recall_keys {keys}: no "
                     f"key is used twice; set data.recall_keys to {max(pairs, 1)} or more")
  if min(gap, fillers) < 0:
    raise ValueError(f"data.recall_gap {gap}, data.recall_fillers {fillers}: set them to 0 or more")
  if gap and fillers < MIN_FILLERS:
    raise ValueError(f"data.recall_fillers {fillers} is too few for data.recall_gap {gap}, which "
                     "would be easy to tell from facts; set data.recall_fillers to "
                     f"{MIN_FILLERS} or more")
  if 3 * pairs + gap > seq:
    raise ValueError(f"data.seq {seq} is too short for data.recall_pairs {pairs} and "
                     f"data.recall_gap {gap}; set data.seq to {3 * pairs + gap} or more")
  if config.model.vocab < 2 * keys + 1 + fillers:
    raise ValueError(f"model.vocab {config.model.vocab} is too small for data.recall_keys {keys} "
                     f"and data.recall_fillers {fillers}; set model.vocab to "
                     f"{2 * keys + 1 + fillers} or more")
  number, places = SPLITS.index(split), seq - 2 * pairs - gap

  def draw(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([data.seed, number, i])
    own = int(rng.integers(gap + 1)) if gap and split == "train" else gap
    return example(rng, pairs, keys, seq, own, places, fillers, data.recall_taught)

  return grain.MapDataset.range(sys.maxsize).map(draw)


def example(rng: np.random.Generator, pairs: int, keys: int, seq: int, gap: int, places: int,
            fillers: int, taught: bool) -> dict[str, np.ndarray]:
  """One sequence: distinct keys, distinct values; queries in the `places` slots after the gap."""
  key = 1 + rng.choice(keys, pairs, replace=False)
  value = 1 + keys + rng.choice(keys, pairs, replace=False)
  # unsorted: this is the order of the queries
  where = 2 * pairs + gap + rng.choice(places, pairs, replace=False)
  labels = np.full(seq, -1, np.int32)
  tokens = 2 * keys + 1 + rng.integers(fillers, size=seq,
                                       dtype=np.int32) if fillers else np.zeros(seq, np.int32)
  tokens[0:2 * pairs:2], tokens[1:2 * pairs:2] = key, value
  tokens[where], labels[where] = key, value
  if taught:
    labels[0:2 * pairs:2] = value
  return dict(tokens=tokens, labels=labels, segments=np.ones(seq, np.int32))
