"""Near duplicates are found as often as the theory says, by how similar they are."""

import random

import numpy as np
import pytest

pytest.importorskip("datatrove")

from ml_collections import ConfigDict

from hope_jax.data.pipeline import near, words
from tests import raw_data

PAIRS = 150
NEAR = ConfigDict(dict(n=5, buckets=14, hashes=8, seed=1))


def similarity(a, b):
  """Of the sets of runs of five words, by a loop."""
  one, other = ({tuple(w[i:i + 5]) for i in range(len(w) - 4)}
                for w in map(words.split, (a, b)))
  return len(one & other) / len(one | other)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
  """(similarities, whether found) by the share of words that were edited; strangers found."""
  rng, folder = random.Random(0), tmp_path_factory.mktemp("near")
  shares = (0.005, 0.01, 0.05, 0.1, 0.2, 0.4)
  first = [raw_data.english(rng, 16) for _ in range(PAIRS * len(shares))]
  second = [raw_data.edited(rng, text, shares[i // PAIRS]) for i, text in enumerate(first)]
  near.sign(folder, NEAR, 0, first)
  near.sign(folder, NEAR, 1, second)
  for bucket in range(NEAR.buckets):
    near.pair(folder, NEAR, bucket)
  near.cluster(folder, NEAR)
  groups = [near.clusters(folder, rank) for rank in (0, 1)]
  gone = [near.removed(folder, rank) for rank in (0, 1)]
  found = np.array([groups[0].get(i, -1) == groups[1].get(i, -2) for i in range(len(first))])
  alike = np.array([similarity(a, b) for a, b in zip(first, second)])
  members = sum(len(g) for g in groups)
  assert members - len({*groups[0].values(), *groups[1].values()}) == sum(map(len, gone))
  return {share: (alike[i * PAIRS:][:PAIRS], found[i * PAIRS:][:PAIRS])
          for i, share in enumerate(shares)}, members - 2 * found.sum()


@pytest.mark.parametrize("share", [0.005, 0.01, 0.05, 0.1, 0.2, 0.4])
def test_recall_is_the_theorys(planted, share):
  alike, found = planted[0][share]
  likely = 1 - (1 - alike**NEAR.hashes)**NEAR.buckets
  spread = np.sqrt((likely * (1 - likely)).sum())
  assert abs(found.sum() - likely.sum()) <= 3 * spread + 1e-9 + (spread < 0.5)


def test_the_rate_falls_with_the_edits(planted):
  rates = [found.mean() for _, found in planted[0].values()]
  assert rates == sorted(rates, reverse=True) and rates[0] > 0.95 and rates[-1] == 0


def test_strangers_are_no_duplicates(planted):
  assert planted[1] == 0


def test_signatures_are_constant_in_memory_and_the_same(tmp_path, monkeypatch):
  step = near.Signatures(str(tmp_path), near.config(NEAR), language=near.filters.BLANKS)
  shingles = step.get_shingles(raw_data.english(random.Random(0), 400))
  whole = super(near.Signatures, step).get_signature(shingles)
  monkeypatch.setattr(near, "_AT_ONCE", 7)
  assert step.get_signature(shingles) == whole and len(shingles) > 1000


def test_what_is_killed_half_way_leaves_no_signatures(tmp_path):
  def dies():
    yield raw_data.english(random.Random(0))
    raise OSError("the disk is gone")

  with pytest.raises(OSError, match="the disk is gone"):
    near.sign(tmp_path, NEAR, 0, dies())
  assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
  near.sign(tmp_path, NEAR, 0, [])
  assert len([path for path in tmp_path.rglob("*.sig") if path.stat().st_size == 0]) == 14
