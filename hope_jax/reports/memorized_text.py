"""A text, token by token: what reading it once has taught of it.

Of a file that memorize --output wrote. The ground of a token is blue where it is easier after the
text was learned, orange where it is harder; pointing at it says how much, and what its chunk wrote.
"""

import numpy as np

from hope_jax.reports import document, memorized
from hope_jax.reports.document import Section, Token

GAIN, LOSS = "0, 114, 178", "213, 94, 0"  # document.COLOURS
FULL = 4.0  # nats at which a colour is full


def colour(gain: float) -> str:
  """Of a ground that letters can be read on, light or dark."""
  return f"rgba({GAIN if gain > 0 else LOSS}, {0.6 * min(abs(gain) / FULL, 1):.2f})"


def wrote(data: dict, chunk: int) -> str:
  """How far a chunk moved each memory, mean over layers."""
  moves = {name: float(np.mean(memory["moved"][chunk])) for name, memory in data["memories"].items()
           if chunk < len(memory["moved"])}
  return "".join(f"; {name} moved {moved:.3g}" for name, moved in moves.items())


def tokens(data: dict) -> list[Token]:
  """Those of the text; its first has no loss, as nothing is before it."""
  own = data["by_token"]
  out = [Token(own["text"][0], "transparent", "the first token")]
  for i, text in enumerate(own["text"][1:]):
    before, read, after = (own["nats"][name][i] for name in ("before", "read", "after"))
    out.append(Token(text, colour(before - after),
                     f"{before:.2f} nats before, {read:.2f} as it was read, {after:.2f} after"
                     + wrote(data, i // data["chunk"])))
  return out


def sections(path) -> list[Section]:
  """ValueError for another file."""
  data = memorized.load(path)
  if "by_token" not in data:
    raise ValueError(f"{path} has no tokens: memorize --output of this version writes them")
  rows = [[name, f"{value:.4f}"] for name, value in data["nats_per_token"].items()]
  return [Section("nats per token", head=["", ""], rows=rows,
                  pictures=[document.drawn(memorized.draw(data))]),
          Section("the text", tokens=tokens(data), text="Blue: easier after it was learned. "
                  "Orange: harder. Point at a token to see how much.")]
