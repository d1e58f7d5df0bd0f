"""A recipe in minutes on two cores, from what every Python carries: its documentation and sources.

    pip install 'hope_jax[data]'
    python -m hope_jax.data --config=configs/data/sample.py
    python -m hope_jax.data --config=configs/data/sample.py:texts     # every file below ./texts

A model trains on it with c.data.dir = recipe.shards(r), c.data.sources = recipe.training(r), where
r is what get_config() returns, and c.model.vocab = r.tokenizer.vocab.
"""

from hope_jax.data.pipeline import recipe


def get_config(folder=""):
  c = recipe.base()
  c.dir = "runs/data/sample"
  c.sources = (
      recipe.source("reference", "embedded", domains="reference", address="pydoc_data.topics",
                    licence="PSF-2.0"),
      # code has few words of English, and many lines twice
      recipe.source("library", "embedded", domains="library", filters=(),
                    address="the standard library", licence="PSF-2.0"),
  )
  if folder:
    c.sources = (recipe.source("texts", "mixed", folder),)
  c.part_bytes = 2_000_000
  c.tokenizer.vocab = 4096
  c.tokenizer.chars = 5_000_000
  return c
