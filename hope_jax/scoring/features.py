"""What a frozen model makes of a text, as a vector, and classifiers of such vectors.

    vectors = of(config, params, texts, batch=32)                  # lists of token ids
    nearest_mean(vectors, labels, queries); discriminant(vectors, labels, queries)

A vector is the mean over a text's tokens of what the head reads. The classifiers need no gradient
and no order: the classes seen so far are enough (Streaming LDA, arXiv 1909.01520; scikit-learn).
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model import lm
from hope_jax.scoring.choices import padded


@functools.lru_cache
def _program(config):
  """(params, tokens, lengths) -> mean of the last norm's outputs, (B, D)."""
  model = lm.build(config)

  @jax.jit
  def read(params, tokens_BxT, length_B):
    known_BxT = jnp.arange(tokens_BxT.shape[1]) < length_B[:, None]
    _, seen = model.apply({"params": params}, tokens_BxT, None, known_BxT.astype(jnp.int32),
                          capture_intermediates=lambda module, _: module.name == "norm",
                          mutable=["intermediates"])
    x_BxTxD = seen["intermediates"]["norm"]["__call__"][0]
    return jnp.sum(jnp.where(known_BxT[..., None], x_BxTxD, 0), 1) / length_B[:, None]

  return read


def of(config, params, texts: Sequence[Sequence[int]], batch: int = 32) -> np.ndarray:
  """(N, D) float32."""
  read, out = _program(lm.frozen(config)), [None] * len(texts)
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  for first in range(0, len(order), batch):
    some = order[first:first + batch]
    tokens = np.zeros((batch, padded(max(len(texts[i]) for i in some))), np.int32)
    lengths = np.ones(batch, np.int32)
    for row, i in enumerate(some):
      tokens[row, :len(texts[i])], lengths[row] = texts[i], len(texts[i])
    for i, vector in zip(some, np.asarray(read(params, tokens, lengths))):
      out[i] = vector
  return np.stack(out)


def nearest_mean(vectors, labels: Sequence[str], queries) -> list[str]:
  """The class whose mean is nearest to each query."""
  from sklearn.neighbors import NearestCentroid  # an extra: evals
  return list(NearestCentroid().fit(vectors, labels).predict(queries))


def discriminant(vectors, labels: Sequence[str], queries) -> list[str]:
  """Linear discriminant analysis with one covariance, shrunk as Ledoit and Wolf have it."""
  from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # an extra: evals
  model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
  return list(model.fit(vectors, labels).predict(queries))
