"""A run's folder for tests of programs: a tiny model with random parameters, and a tokenizer."""

from pathlib import Path

import jax
import jax.numpy as jnp

from hope_jax import config
from hope_jax.checkpoints import checkpoint
from hope_jax.data import tokenizer
from hope_jax.model import checks
from hope_jax.model.state import TrainState
from tests import tiny

VOCAB, STEP = 290, 7
WORDS = "read write memory chunk token slow fast level query value".split()


def tiny_text(i: int) -> str:
  """The same for the same number, in words, code signs and a letter of two bytes."""
  return " ".join(f"{WORDS[(i * j) % 10]}é_{WORDS[(i + j) % 10]}\n" for j in range(4 + 2 * (i % 5)))


def configured(kind: str, **teach):
  """tiny.tiny, with a vocabulary for text."""
  c = tiny.tiny(kind, **teach)
  c.model.vocab = VOCAB
  checks.validate(c)
  return c


def save(folder: Path, c) -> Path:
  """The folder of a run of this configuration, as the trainer leaves it."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.train([tiny_text(i) for i in range(40)], folder / "tokenizer.model", VOCAB)
  meta = {"config": config.to_json(c),
          "tokenizer": tokenizer.Tokenizer(folder / "tokenizer.model").digest}
  with checkpoint.Checkpoints(folder / "checkpoints", keep=1) as saved:
    saved.save(STEP, TrainState(jnp.int32(STEP), tiny.noisy(c), (), jax.random.key(0)), {}, meta)
  return folder
