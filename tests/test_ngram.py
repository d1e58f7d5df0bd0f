"""The bigram baseline is a distribution, and learns what bigrams can know."""

import numpy as np
import pytest

from hope_jax.scoring.bigram import Bigram

VOCAB = 7


def trained(seed=0):
  tokens = np.random.default_rng(seed).integers(0, 5, (4, 50))
  model = Bigram(VOCAB)
  for row in tokens:  # in pieces, as batches come
    model.add(row[None, :-1], row[None, 1:])
  return model, tokens


def test_probabilities_sum_to_one_after_every_token_seen_or_not():
  model, _ = trained()
  v, w = np.meshgrid(np.arange(VOCAB), np.arange(VOCAB), indexing="ij")
  np.testing.assert_allclose(np.exp(-model.nats(v, w)).sum(1), 1, rtol=1e-9)


def test_equals_counts_by_hand():
  model, tokens = trained()
  pairs = [(a, b) for row in tokens.tolist() for a, b in zip(row, row[1:])]
  count = {p: pairs.count(p) for p in set(pairs)}
  once, twice = (sum(c == n for c in count.values()) for n in (1, 2))
  d = max(once, 1) / (max(once, 1) + 2 * max(twice, 1))
  contexts = [sum(b == w for _, b in count) for w in range(VOCAB)]
  total = sum(contexts)
  for v, w in ((0, 1), (3, 3), (2, 6), (6, 0)):
    unigram = max(contexts[w] - d, 0) / total + d * sum(c > 0 for c in contexts) / total / VOCAB
    of_v = sum(c for (a, _), c in count.items() if a == v)
    if of_v:
      p = max(count.get((v, w), 0) - d,
              0) / of_v + d * sum(a == v for a, _ in count) / of_v * unigram
    else:
      p = unigram
    assert model.nats(np.array([[v]]), np.array([[w]]))[0, 0] == pytest.approx(-np.log(p))


def test_no_label_costs_nothing_and_an_empty_model_is_refused():
  model, _ = trained()
  assert model.nats(np.array([[1, 2]]), np.array([[-1, 3]]))[0, 0] == 0
  with pytest.raises(ValueError, match="call add"):
    Bigram(VOCAB).nats(np.array([[1]]), np.array([[1]]))
