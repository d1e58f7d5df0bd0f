"""Whether the tokenizer still reads a reference text as well as it did.

    python -m hope_jax.data --config=recipe.py --coverage=sample.txt --baseline=kept.json

The first call keeps the baseline; later ones end with an error when a number has moved by more than
`DRIFT`, because the text or the tokenizer is another. That shards and tokenizer belong together is
asserted before every run (tokenized.py).
"""

from pathlib import Path

import numpy as np

from hope_jax.data import files, tokenizer
from hope_jax.data.pieces import Pieces
from hope_jax.data.pipeline import store

DRIFT = dict(bytes_a_token=0.05, unknown=0.001, single=0.01)  # the first is relative
_PIECE = 1 << 20  # characters


def measure(tok: Pieces, text: str) -> dict:
  """Bytes per token; shares of tokens that stand for nothing (unknown), and for one character or
  byte of one (single), white space not counted.
  """
  ids = np.concatenate([np.asarray(row, np.int64) for row in tok.encode_batch(
      [text[i:i + _PIECE] for i in range(0, len(text), _PIECE)])] or [np.zeros(0, np.int64)])
  if not len(ids):
    raise ValueError("the reference text is empty: give some text of the kinds that are trained on")
  single = np.array([_is_single(tok.decode_bytes([i])) for i in range(tok.size)])
  return dict(tokens=len(ids), bytes_a_token=len(files.encode(text)) / len(ids),
              unknown=float((tok.token_bytes[ids] == 0).mean()), single=float(single[ids].mean()))


def _is_single(piece: bytes) -> bool:
  text = piece.decode("utf-8", "replace").strip()
  return len(text) == 1


def check(folder: Path, sample: str, baseline: str) -> str:
  """One line of what was measured; keeps the baseline where there is none. ValueError for drift."""
  tok = tokenizer.load(folder)
  now = measure(tok, files.text(sample)) | {"tokenizer": tok.digest}
  said = (f"{now['bytes_a_token']:.3f} bytes per token, {now['unknown']:.2%} unknown, "
          f"{now['single']:.2%} single characters")
  if not Path(baseline).exists():
    store.write_facts(Path(baseline), now)
    return f"{said}: kept in {baseline}"
  before = store.read_facts(Path(baseline))
  for key, most in DRIFT.items():
    moved = abs(now[key] - before[key]) / (before[key] if key == "bytes_a_token" else 1)
    if moved > most:
      other = "the same" if before["tokenizer"] == tok.digest else "another"
      raise ValueError(f"{sample}: {key} was {before[key]:.4f}, is {now[key]:.4f}, by {other} "
                       f"tokenizer: train it on such text, or delete {baseline} to keep a new one")
  return f"{said}: as in {baseline}"
