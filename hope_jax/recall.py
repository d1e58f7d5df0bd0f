"""Multi-query associative recall (MQAR; Arora et al. 2023, "Zoology"): a memory test without language.

    k1 v1 k2 v2 ... kn vn  .  .  k2 .  k1 .  .  .  kn      every key asked once, in any order, at any later place
                                 v2    v1          vn      labels: the value where the key is asked, -1 elsewhere

Ids: 0 fills, 1 ... keys are keys, keys + 1 ... 2 keys are values. Example i depends on (seed, split, i) only.
"""

import sys

import grain
import numpy as np
from ml_collections import ConfigDict

from hope_jax.corpus import SPLITS


def dataset(config: ConfigDict, split: str) -> grain.MapDataset:
  """Endless examples: dicts of int32 [data.seq] `tokens`, `labels`, `segments` (all 1).

  Raises ValueError when the sequence, the keys or the vocabulary are too few for data.recall_pairs.
  """
  data = config.data
  pairs, keys, seq = data.recall_pairs, data.recall_keys, data.seq
  if pairs < 1 or keys < pairs:
    raise ValueError(f"data.recall_pairs {pairs} must be between 1 and data.recall_keys {keys}: no key is used twice; "
                     f"set data.recall_keys to {max(pairs, 1)} or more")
  if 3 * pairs > seq:
    raise ValueError(f"data.seq {seq} is too short for data.recall_pairs {pairs}; set data.seq to {3 * pairs} or more")
  if config.model.vocab < 2 * keys + 1:
    raise ValueError(f"model.vocab {config.model.vocab} is too small for data.recall_keys {keys}; "
                     f"set model.vocab to {2 * keys + 1} or more")
  split = SPLITS.index(split)
  return grain.MapDataset.range(sys.maxsize).map(
      lambda i: example(np.random.default_rng([data.seed, split, i]), pairs, keys, seq))


def example(rng: np.random.Generator, pairs: int, keys: int, seq: int) -> dict[str, np.ndarray]:
  """One sequence. Keys are distinct, and so are values."""
  key = 1 + rng.choice(keys, pairs, replace=False)
  value = 1 + keys + rng.choice(keys, pairs, replace=False)
  where = 2 * pairs + rng.choice(seq - 2 * pairs, pairs, replace=False)  # unsorted: this is the order of the queries
  tokens, labels = np.zeros(seq, np.int32), np.full(seq, -1, np.int32)
  tokens[0:2 * pairs:2], tokens[1:2 * pairs:2] = key, value
  tokens[where], labels[where] = key, value
  return dict(tokens=tokens, labels=labels, segments=np.ones(seq, np.int32))
