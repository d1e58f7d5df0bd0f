"""What a needle is hidden in, and how: token ids of text, and places between its sentences.

    pool_N = text(["embedded"], "text", tokenizer, tokens=2048)
    ids, spans = hide(ring(pool_N, start, 2048 - needed), [(0.5, needle)], ends_V, tokenizer.begin)
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hope_jax.data import corpus, heldout

REACH = 64  # tokens that a place moves back, to the end of a sentence
LEAST = 200_000  # tokens of text that haystacks are cut from, where there are so many
# five sentences that say nothing, again and again
NOISE = ("Rain falls on the hill. The road is long. A dog sleeps by the door. We walk on. Then we "
         "turn round. ")


def text(names: Sequence[str], field: str, tokenizer, tokens: int) -> np.ndarray:
  """Ids of the first documents, at least `tokens` of them or all there are.

  names: as --haystack: JSON lines, text files, folders, or "embedded".
  """
  pool, wanted = [], max(tokens, LEAST)
  for ids in _documents(names, field, tokenizer):
    pool += ids
    if len(pool) >= wanted:
      break
  return np.array(pool, np.int32)


def _documents(names, field, tokenizer) -> Iterator[list[int]]:
  for source, _ in heldout.sources(list(names), field, (), 0.0):
    for document in corpus.read(source):
      yield tokenizer.encode(document.text.strip() + "\n\n")


def noise(tokenizer, tokens: int) -> np.ndarray:
  """At least `tokens` ids of the sentences that say nothing."""
  once = tokenizer.encode(NOISE)
  return np.array(once * (tokens // len(once) + 1), np.int32)


def sentence_ends(tokenizer) -> np.ndarray:
  """(V,) bool: tokens that may end a sentence or a line."""
  pieces = (tokenizer.decode_bytes([i]).rstrip(b" ") for i in range(tokenizer.size))
  return np.array([piece.endswith((b".", b"!", b"?", b"\n")) for piece in pieces])


def ring(pool_N: np.ndarray, start: int, tokens: int) -> np.ndarray:
  """So many ids from a start on; after the last comes the first."""
  return pool_N[(start + np.arange(tokens)) % len(pool_N)]


def hide(hay_N: np.ndarray, needles: Sequence[tuple[float, Sequence[int]]], ends_V: np.ndarray,
         begin: Sequence[int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
  """(all ids, where each needle lies) of needles at depths from 0 (the start) to 1 (the end).

  A needle goes to the last end of a sentence at most REACH tokens before its depth, else to the
  depth itself: eight tokens `It is late . They all go home`, a needle at 0.6 belongs after the
  fifth (round 4.8) and goes after the fourth, which ends a sentence. Of needles at one place the
  first comes first.
  """
  places = [_place(hay_N, round(depth * len(hay_N)), ends_V) for depth, _ in needles]
  pieces, spans, at, length = [np.array(begin, np.int32)], [None] * len(needles), 0, len(begin)
  for i in np.argsort(places, kind="stable"):
    needle = np.array(needles[i][1], np.int32)
    length += places[i] - at
    spans[i] = (length, length + len(needle))
    pieces += [hay_N[at:places[i]], needle]
    at, length = places[i], length + len(needle)
  return np.concatenate([*pieces, hay_N[at:]]), spans


def _place(hay_N, place: int, ends_V) -> int:
  if place in (0, len(hay_N)):
    return place
  first = max(0, place - REACH)
  ends = np.flatnonzero(ends_V[hay_N[first:place]])
  if len(ends):
    return first + int(ends[-1]) + 1
  return place if first else 0
