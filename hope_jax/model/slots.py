"""Where the tokens of a call go: into slots, such that chunks are those of the documents.

Memories work on chunks counted from the start of the document, and a batch's streams may be
anywhere inside theirs. So a call's tokens are laid out in slots, S >= T of them, such that in every
stream a document's token at position p lies in a slot that is p modulo the grid: chunk boundaries
then fall on the same slots in all streams. Padding gets no slot.

Letters: B streams, T tokens of the call, S slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
  """Per slot, what lies there."""
  valid_BxS: jax.Array  # bool, a token lies here
  position_BxS: jax.Array  # of the token in its document
  document_BxS: jax.Array  # its number in this call; 0: the one that the state continues
  first_B: jax.Array  # slot of the stream's first token (0 when there is none)
  last_B: jax.Array  # slot of its last token (-1 when there is none)
  segment_B: jax.Array  # id of the document after the call
  count_B: jax.Array  # tokens read of it after the call
  source_BxS: jax.Array | None  # token in each slot; None: slot s holds token s
  slot_BxT: jax.Array | None  # slot of each token, S where it has none


def slots(tokens: int, grid: int, documents: int, aligned: bool) -> int:
  """Number of slots for a call of `tokens` tokens with at most `documents` documents a stream."""
  if not grid or tokens == 1 or aligned:
    return tokens
  return -(-(tokens + documents * (grid - 1)) // grid) * grid


def arrange(segments_BxT, segment_B, count_B, grid: int, documents: int = 1,
            aligned: bool = False) -> Layout:
  """Lays out a call.

  For example six tokens, grid 4, of a stream that has read 5 tokens of document 7:

      token      0  1  2  3  4  5
      segment    7  7  0  8  8  8
      position   5  6     0  1  2
      slot       1  2     4  5  6    of 12

  Document 7 goes on at position 5, inside a chunk: its slot is 5 % 4. Token 2 is padding. Document
  8 begins a chunk of its own, at the next multiple of 4: slot 3 stays empty.

  Args:
    segments_BxT: id of each token's document, 0 for padding; another id than the token before
      starts a new document.
    segment_B, count_B: the document that each stream is in, and the tokens read of it.
    grid: chunk boundaries are multiples of this; 0 where nothing depends on chunks, and tokens stay
      where they are.
    documents: at most so many documents begin or continue in a stream in this call; tokens of more
      get no slot, and read not-a-number.
    aligned: the caller vouches that every document starts, or goes on, at its own slot already: new
      documents at multiples of the grid, nothing continued in the middle of a chunk.
  """
  batch, tokens = segments_BxT.shape
  here, position, document, *_ = numbers = _number(segments_BxT, segment_B, count_B)
  last_B = jnp.max(jnp.where(here, jnp.arange(tokens), -1), 1)
  def at_last(a_BxT, otherwise_B):
    taken = jnp.take_along_axis(a_BxT, jnp.maximum(last_B, 0)[:, None], 1)[:, 0]
    return jnp.where(last_B >= 0, taken, otherwise_B)
  after = at_last(segments_BxT, segment_B), at_last(position + 1, count_B)
  def first(valid):
    return jnp.where(last_B >= 0, jnp.argmax(valid, 1), 0)
  if not grid or tokens == 1 or aligned:
    return Layout(here, position, document, first(here), last_B, *after, None, None)

  total = slots(tokens, grid, documents, aligned)
  slot_BxT = _slot(numbers, count_B, grid, total)
  def fill(values_BxT, empty):
    blank = jnp.full((batch, total), empty, values_BxT.dtype)
    return blank.at[jnp.arange(batch)[:, None], slot_BxT].set(values_BxT, mode="drop")
  source = fill(jnp.broadcast_to(jnp.arange(tokens), (batch, tokens)), tokens)
  valid = source < tokens
  last_slot_B = jnp.max(jnp.where(valid, jnp.arange(total), -1), 1)
  return Layout(valid, fill(position, 0), fill(document, 0), first(valid), last_slot_B, *after,
                source, slot_BxT)


class _Numbers(NamedTuple):
  """Per token, where it is in its stream and document; at padding, anything."""
  here_BxT: jax.Array  # bool, not padding
  position_BxT: jax.Array  # as in Layout
  document_BxT: jax.Array
  order_BxT: jax.Array  # number among the stream's tokens of the call
  new_BxT: jax.Array  # bool, the first of a document


def _number(segments_BxT, segment_B, count_B) -> _Numbers:
  """In the example: order 0 1 - 2 3 4, new at token 3, document 0 0 - 1 1 1."""
  batch, tokens = segments_BxT.shape
  here = segments_BxT > 0
  order = jnp.cumsum(here, 1, dtype=jnp.int32) - 1

  token_before = jax.lax.cummax(jnp.where(here, jnp.arange(tokens), -1), axis=1)
  token_before = jnp.concatenate([jnp.full((batch, 1), -1), token_before[:, :-1]], 1)
  taken = jnp.take_along_axis(segments_BxT, jnp.maximum(token_before, 0), 1)
  new = here & (segments_BxT != jnp.where(token_before >= 0, taken, segment_B[:, None]))
  document = jnp.cumsum(new, 1, dtype=jnp.int32)
  started = jax.lax.cummax(jnp.where(new, order, -1), axis=1)  # order of the document's first
  position = jnp.where(started >= 0, order - started, count_B[:, None] + order)
  return _Numbers(here, position, document, order, new)


def _slot(numbers: _Numbers, count_B, grid: int, total: int):
  """(B, T): a token's order, and the slots left empty before it; `total` for none.

  entered: before a stream's first token, which lies inside a chunk if its document goes on; in the
  example 5 % 4 = 1. skipped: before a new document, to the next multiple of the grid; -7 % 4 = 1.
  """
  here, position, _, order, new = numbers
  position_before = jnp.roll(_compact(position, order, here), 1, 1)
  position_before = jnp.take_along_axis(position_before, jnp.maximum(order, 0), 1)
  skipped = jnp.where(new & (order > 0), -(position_before + 1) % grid, 0)
  first_is_new = _compact(new, order, here)[:, :1]
  entered = jnp.where(first_is_new, 0, count_B[:, None] % grid)
  slot = jnp.where(here, order + jnp.cumsum(skipped, 1, dtype=jnp.int32) + entered, total)
  return jnp.minimum(slot, total)


def starts(layout: Layout):
  """(B,) bool: the stream's first token of the call begins a new document."""
  return jnp.take_along_axis(layout.document_BxS, layout.first_B[:, None], 1)[:, 0] > 0


def _compact(values_BxT, order_BxT, here_BxT):
  """The stream's tokens without the padding between them, at the front."""
  batch, tokens = values_BxT.shape
  target = jnp.where(here_BxT, order_BxT, tokens)
  zeros = jnp.zeros_like(values_BxT)
  return zeros.at[jnp.arange(batch)[:, None], target].set(values_BxT, mode="drop")


def to_slots(layout: Layout, values_BxTx):
  """Token values in slot order, zeros where no token token."""
  if layout.source_BxS is None:
    return values_BxTx
  pad = jnp.concatenate([values_BxTx, jnp.zeros_like(values_BxTx[:, :1])], 1)
  return jnp.take_along_axis(pad, _index(layout.source_BxS, values_BxTx), 1)


def to_tokens(layout: Layout, values_BxSx):
  """Slot values in token order; not-a-number for a token without a slot."""
  if layout.slot_BxT is None:
    return values_BxSx
  total = values_BxSx.shape[1]
  pad = jnp.concatenate([values_BxSx, jnp.full_like(values_BxSx[:, :1], jnp.nan)], 1)
  return jnp.take_along_axis(pad, _index(jnp.minimum(layout.slot_BxT, total), values_BxSx), 1)


def _index(index_BxN, values):
  return index_BxN.reshape(*index_BxN.shape, *[1] * (values.ndim - 2))


def visible(position_BxS, document_BxS, key_position_BxL, key_document_BxL, key_valid_BxL,
            window: int):
  """Which keys a query may see: its document's, no later, at most `window` back (0: no limit)."""
  ago = position_BxS[:, :, None] - key_position_BxL[:, None]
  allowed = (ago >= 0) & (document_BxS[:, :, None]
                          == key_document_BxL[:, None]) & key_valid_BxL[:, None]
  return allowed & (ago < window) if window else allowed
