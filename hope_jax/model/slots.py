"""Where the tokens of a call go: documents within streams, positions within documents, slots within
chunks.

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
  """Per slot, what lies there. Documents of a call are numbered from 0,
  the one that the state continues.
  """
  valid_BxS: jax.Array  # bool, a token lies here
  position_BxS: jax.Array  # of the token in its document
  document_BxS: jax.Array  # its number in this call
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
  total = slots(tokens, grid, documents, aligned)
  here = segments_BxT > 0
  order = jnp.cumsum(here, 1, dtype=jnp.int32) - 1  # number of the token among the stream's tokens
  index = jnp.arange(tokens)

  last_before = jax.lax.cummax(jnp.where(here, index, -1), axis=1)
  last_before = jnp.concatenate([jnp.full((batch, 1), -1), last_before[:, :-1]], 1)
  before = jnp.where(last_before >= 0,
                     jnp.take_along_axis(segments_BxT, jnp.maximum(last_before, 0), 1),
                     segment_B[:, None])
  new = here & (segments_BxT != before)
  document = jnp.cumsum(new, 1, dtype=jnp.int32)
  started = jax.lax.cummax(jnp.where(new, order, -1), axis=1)
  position = jnp.where(started >= 0, order - started, count_B[:, None] + order)

  last = jnp.max(jnp.where(here, index, -1), 1)
  def take(a):
    return jnp.take_along_axis(a, jnp.maximum(last, 0)[:, None], 1)[:, 0]
  segment = jnp.where(last >= 0, take(segments_BxT), segment_B)
  count = jnp.where(last >= 0, take(position) + 1, count_B)
  if not grid or tokens == 1 or aligned:
    first = jnp.where(last >= 0, jnp.argmax(here, 1), 0)
    return Layout(here, position, document, first, last, segment, count, None, None)

  # a new document skips to the next multiple of the grid; a continued one starts inside its chunk
  position_before = jnp.roll(_compact(position, order, here), 1, 1)
  position_before = jnp.take_along_axis(position_before, jnp.maximum(order, 0), 1)
  skipped = jnp.where(new & (order > 0), -(position_before + 1) % grid, 0)
  entered = jnp.where(jnp.take_along_axis(_compact(new, order, here), jnp.zeros((batch, 1), int),
                                          1), 0, count_B[:, None] % grid)
  slot = jnp.where(here, order + jnp.cumsum(skipped, 1, dtype=jnp.int32) + entered, total)
  slot = jnp.minimum(slot, total)
  rows = jnp.arange(batch)[:, None]
  def fill(values, empty):
    return jnp.full((batch, total), empty, values.dtype).at[rows, slot].set(values, mode="drop")
  source = fill(jnp.broadcast_to(index, (batch, tokens)), tokens)
  valid = source < tokens
  slots_used = jnp.where(valid, jnp.arange(total), -1)
  first = jnp.where(last >= 0, jnp.argmax(valid, 1), 0)
  return Layout(valid, fill(position, 0), fill(document, 0), first, jnp.max(slots_used, 1), segment,
                count, source, slot)


def starts(layout: Layout):
  """(B,) bool: the stream's first token of the call begins a new document."""
  return jnp.take_along_axis(layout.document_BxS, layout.first_B[:, None], 1)[:, 0] > 0


def _compact(values_BxT, order_BxT, here_BxT):
  """The stream's tokens without the padding between them, at the front."""
  batch, tokens = values_BxT.shape
  target = jnp.where(here_BxT, order_BxT, tokens)
  return jnp.zeros_like(values_BxT).at[jnp.arange(batch)[:, None],
                                       target].set(values_BxT, mode="drop")


def to_slots(layout: Layout, values_BxTx):
  """Token values in slot order, zeros where no token lies."""
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
