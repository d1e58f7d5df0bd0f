"""The baseline a language model must beat: an interpolated bigram model (Kneser-Ney, one discount).

    P(w | v) = max(c(v, w) - d, 0) / c(v) + d N(v, .) / c(v) P(w)
    P(w) from N(., w), the number of contexts of w

with d = n1 / (n1 + 2 n2) from the pairs seen once and twice (Ney, Essen, Kneser 1994). The unigram
part is itself interpolated with the uniform distribution, so nothing has probability 0.
"""

import numpy as np

TOGETHER = 2_000_000  # pairs counted at once


class Bigram:
  """Counts of (token, next token) pairs, as sorted unique keys."""

  def __init__(self, vocab: int):
    self.vocab = vocab
    self._keys, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    self._waiting = []  # pairs that are not counted yet: counting sorts, and is dear for a few

  def add(self, tokens: np.ndarray, labels: np.ndarray) -> None:
    """Counts the pairs of a batch; labels below 0 are none."""
    used = labels >= 0
    self._waiting.append(tokens[used].astype(np.int64) * self.vocab + labels[used])
    if sum(map(len, self._waiting)) > TOGETHER:
      self._count()

  def _count(self) -> None:
    if not self._waiting:
      return
    own, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
    self._keys, where = np.unique(np.concatenate([self._keys, own]), return_inverse=True)
    self._counts = np.bincount(where, np.concatenate([self._counts, counts])).astype(np.int64)
    self._waiting = []

  @property
  def tokens(self) -> int:
    """Pairs that were counted."""
    self._count()
    return int(self._counts.sum())

  def nats(self, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log P(label | token) of every pair, 0 without a label; ValueError before any counting."""
    self._count()
    if not len(self._keys):
      raise ValueError("the bigram model has seen no pair: call add with training batches first")
    once, twice = (self._counts == 1).sum(), (self._counts == 2).sum()
    discount = max(once, 1) / (max(once, 1) + 2 * max(twice, 1))
    first, second = np.divmod(self._keys, self.vocab)
    total = np.bincount(first, self._counts, self.vocab)
    followers = np.bincount(first, minlength=self.vocab)
    contexts = np.bincount(second, minlength=self.vocab)
    unseen = discount * (contexts > 0).sum() / contexts.sum()
    unigram = np.maximum(contexts - discount, 0) / contexts.sum() + unseen / self.vocab

    used = labels >= 0
    v, w = tokens[used].astype(np.int64), labels[used].astype(np.int64)
    at = np.minimum(np.searchsorted(self._keys, v * self.vocab + w), len(self._keys) - 1)
    count = np.where(self._keys[at] == v * self.vocab + w, self._counts[at], 0)
    known = np.maximum(total[v], 1)
    weight = np.where(total[v] > 0, discount * followers[v] / known, 1.0)
    out = np.zeros(labels.shape)
    out[used] = -np.log(np.maximum(count - discount, 0) / known + weight * unigram[w])
    return out
