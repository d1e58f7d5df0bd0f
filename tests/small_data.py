"""A small data folder for tests: two sources of odd lengths."""

import random

from ml_collections import ConfigDict

from hope_jax import config
from hope_jax.data import tokenized


def small(folder, name="built"):
  """Two sources of odd lengths: 'words' with two domains, 'numbers' with one."""
  c = config.base()
  c.model.vocab = 400
  c.data.update(dict(dir=str(folder / name), val_fraction=0.2, tokenizer_chars=200_000, seq=64,
                     align=16, batch=4))
  c.data.sources = tuple(
      ConfigDict(dict(name=n, kind="text", path=str(folder / n), field="text", domains="",
                      weight=w))
      for n, w in (("words", 3.0), ("numbers", 1.0)))
  return c


def build(folder):
  """The folder, with texts and a built data folder in it."""
  rng = random.Random(0)
  words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(300)]
  for i in range(60):
    prose = " ".join(rng.choices(words, k=rng.randint(1, 120)))
    numbers = "\n".join(str(rng.random()) for _ in range(rng.randint(1, 20)))
    for path, text in ((f"words/{'prose' if i % 3 else 'lists'}/{i}.txt", prose),
                       (f"numbers/{i}.txt", numbers)):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).write_text(text)
  tokenized.build(small(folder))
  return folder
