"""Muon of embeddings too, tables being matrices; vectors, which have no spectrum, by AdamW.

Its fields are those of muon. Embeddings then decay as matrices do.
"""

FIELDS = {}
WHOLE = True


def make(config, rate, matrices):
  """With muon.lr for all that has two axes."""
  import functools

  from hope_jax.optimizers import muon
  return muon.make(config, rate, functools.partial(matrices, groups=("matrix", "embedding")))
