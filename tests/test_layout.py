"""Where tokens lie, against a loop over them: slots congruent to positions, in order, none shared.

    python -m pytest tests/test_layout.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.model import slots

TOKENS, STREAMS = 17, 64  # patterns at once


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def arranged(segments, segment, count, grid, documents, aligned=False):
  """The layout, and token indices sent to slots and back."""
  layout = slots.arrange(segments, segment, count, grid, documents, aligned)
  index = jnp.broadcast_to(1.0 + jnp.arange(segments.shape[1]), segments.shape)
  there = slots.to_slots(layout, index)
  return layout, there, slots.to_tokens(layout, there)


def patterns(seed, most):
  """Random rows of at most `most` documents, padding anywhere, and the states they continue."""
  rng = np.random.default_rng(seed)
  segments, segment = np.zeros((STREAMS, TOKENS), int), rng.integers(0, 4, STREAMS)
  for row in range(STREAMS):
    ids = [segment[row] if rng.random() < 0.5 and segment[row] else 9]
    ids += [10 + i for i in range(rng.integers(0, most))]
    cuts = np.sort(rng.integers(0, TOKENS + 1, len(ids) - 1))
    for d, at in zip(ids, np.split(np.arange(TOKENS), cuts)):
      segments[row, at] = d
    segments[row, rng.random(TOKENS) < rng.choice([0, 0.3, 0.9])] = 0
    if rng.random() < 0.3:
      segments[row, rng.integers(0, TOKENS):] = 0
    if rng.random() < 0.3:
      segments[row, :rng.integers(0, TOKENS)] = 0
  count = np.where(segment > 0, rng.integers(1, 30, STREAMS), 0)
  return segments, segment, count


def walk(segments, segment, count):
  """Token by token: (position, document) of each token (-1 at padding), the state after."""
  position, document, number = [], [], 0
  for s in segments:
    if s == 0:
      position.append(-1), document.append(-1)
      continue
    if s != segment:
      segment, count, number = s, 0, number + 1
    position.append(count), document.append(number)
    count += 1
  return np.array(position), np.array(document), segment, count


def test_the_example_of_arrange():
  segments, segment, count = np.array([[7, 7, 0, 8, 8, 8]]), np.array([7]), np.array([5])
  layout = arranged(segments, segment, count, 4, 2)[0]
  want = slots.Layout(
      valid_BxS=[[0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0]],
      position_BxS=[[0, 5, 6, 0, 0, 1, 2, 0, 0, 0, 0, 0]],
      document_BxS=[[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]],
      first_B=[1], last_B=[6], segment_B=[8], count_B=[3],
      source_BxS=[[6, 0, 1, 6, 3, 4, 5, 6, 6, 6, 6, 6]], slot_BxT=[[1, 2, 12, 4, 5, 6]])
  for got, expected in zip(layout, want):
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("grid", [1, 3, 4, 8])
@pytest.mark.parametrize("most", [1, 4])
def test_slots_are_congruent_to_positions_in_order_and_their_own(grid, most):
  for seed in range(4):
    segments, segment, count = patterns(seed, most)
    layout, there, back = jax.tree.map(np.asarray,
                                       arranged(segments, segment, count, grid, most, False))
    assert layout.valid_BxS.shape[1] == slots.slots(TOKENS, grid, most, False)
    # no two tokens share a slot
    np.testing.assert_array_equal(layout.valid_BxS.sum(1), (segments > 0).sum(1))
    for row in range(STREAMS):
      position, document, segment_after, count_after = walk(segments[row], segment[row], count[row])
      tokens = np.flatnonzero(position >= 0)
      slot = layout.slot_BxT[row, tokens]
      assert (np.diff(slot) > 0).all() and (slot % grid == position[tokens] % grid).all()
      np.testing.assert_array_equal(layout.position_BxS[row, slot], position[tokens])
      np.testing.assert_array_equal(layout.document_BxS[row, slot], document[tokens])
      np.testing.assert_array_equal(there[row, slot], 1 + tokens)
      np.testing.assert_array_equal(back[row, tokens], 1 + tokens)
      assert not there[row, ~layout.valid_BxS[row]].any()
      assert np.isnan(back[row, position < 0]).all()
      assert (layout.segment_B[row], layout.count_B[row]) == (segment_after, count_after)
      ends = (slot[0], slot[-1]) if len(tokens) else (0, -1)
      assert (layout.first_B[row], layout.last_B[row]) == ends
      chunks = list(zip(document[tokens], slot // grid))  # documents share no chunk
      assert len({c for _, c in chunks}) == len(set(chunks))


@pytest.mark.parametrize("grid, aligned", [(0, False), (4, True)])
def test_without_a_grid_or_aligned_tokens_stay_where_they_are(grid, aligned):
  segments, segment, count = patterns(9, 4)
  layout, there, back = arranged(segments, segment, count, grid, 4, aligned)
  np.testing.assert_array_equal(there, back)
  np.testing.assert_array_equal(there[0], 1.0 + np.arange(TOKENS))
  for row in range(STREAMS):
    position, document, segment_after, count_after = walk(segments[row], segment[row], count[row])
    here = position >= 0
    np.testing.assert_array_equal(layout.valid_BxS[row], here)
    np.testing.assert_array_equal(layout.position_BxS[row, here], position[here])
    np.testing.assert_array_equal(layout.document_BxS[row, here], document[here])
    assert (layout.segment_B[row], layout.count_B[row]) == (segment_after, count_after)
    ends = (here.argmax(), TOKENS - 1 - here[::-1].argmax()) if here.any() else (0, -1)
    assert (layout.first_B[row], layout.last_B[row]) == ends


def test_one_token_needs_no_slots_anywhere_in_its_document():
  segments, segment, count = np.array([[3], [3], [0]]), np.array([3, 2, 2]), np.array([5, 7, 7])
  layout, there, _ = arranged(segments, segment, count, 8, 1, False)
  assert there.tolist() == [[1]] * 3
  assert layout.valid_BxS[:, 0].tolist() == [True, True, False]
  assert layout.position_BxS[:2, 0].tolist() == [5, 0]
  assert layout.segment_B.tolist() == [3, 3, 2] and layout.count_B.tolist() == [6, 1, 7]


def test_documents_beyond_the_room_have_no_slot_and_read_nan():
  for seed in range(4):
    segments, segment, count = patterns(seed, 6)
    layout, _, back = jax.tree.map(np.asarray, arranged(segments, segment, count, 8, 1, False))
    total = slots.slots(TOKENS, 8, 1, False)
    full = np.asarray(arranged(segments, segment, count, 8, 6, False)[0].slot_BxT)
    lost = (segments > 0) & (full >= total)
    assert lost.any()
    np.testing.assert_array_equal(layout.slot_BxT, np.where((segments > 0) & ~lost, full, total))
    want = np.where((segments > 0) & ~lost, 1.0 + np.arange(TOKENS), np.nan)
    np.testing.assert_array_equal(back, want)
