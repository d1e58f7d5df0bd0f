"""Streams that outlive a batch: rows read on in their documents, and what they know goes along."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.data import loader, tokenized
from hope_jax.model import checks, lm
from hope_jax.reading import sequences
from hope_jax.training import steps
from tests.small_data import small
from tests.tiny import batch_of, parameters, texts, tiny


def carried(folder):
  c = small(folder)
  c.data.carry = True
  return c


def rows_of(c, count):
  """(row, what it reads in so many steps): tokens, labels, segments, one after the other."""
  batches = list(itertools.islice(loader.train_batches(c), count))
  return [{name: np.concatenate([batch[name][row] for batch in batches]) for name in batches[0]}
          for row in range(c.data.batch)]


def test_a_row_reads_on_and_an_epoch_has_every_pair_once(built):
  c = carried(built)
  folder = tokenized.build(c)
  offsets = np.load(folder / "words.train.offsets.npy")
  count = len(loader.Windows(folder, "words", "train", c.data.seq, c.data.align, (0, 0)))
  pairs = 0
  for row, read in enumerate(rows_of(c, 200)[:3]):  # the fourth reads numbers
    run = ((row + 1) * count // 3 - row * count // 3) * c.data.seq  # slots until its next epoch
    tokens, labels, segments = (read[name][:run] for name in ("tokens", "labels", "segments"))
    goes_on = (labels >= 0)[:-1]
    np.testing.assert_array_equal(tokens[1:][goes_on], labels[:-1][goes_on])
    np.testing.assert_array_equal(segments[1:][goes_on], segments[:-1][goes_on])
    starts = tokens[1:] == tokens[segments > 0].min()  # <s>
    assert (segments[1:][starts] != segments[:-1][starts]).all() and starts.any()
    assert goes_on[c.data.seq - 1::c.data.seq].any()  # from one window into the next
    pairs += (labels >= 0).sum()
    assert read["segments"][run - 1] != read["segments"][run]
    assert (read["tokens"][run:2 * run] != tokens).any()  # another order
  assert pairs == offsets[-1] - (len(offsets) - 1)


def test_it_resumes_and_does_not_depend_on_who_reads(built):
  c = carried(built)
  whole = loader.train_batches(c)
  batches = [next(whole) for _ in range(9)]
  part = loader.train_batches(c, [2, 0])
  for _ in range(4):
    next(part)
  again = loader.train_batches(c, [2, 0])
  again.set_state(part.get_state())
  for want in batches[4:]:
    chex.assert_trees_all_equal(next(again), jax.tree.map(lambda a: a[[2, 0]], want))


def test_what_cannot_be_carried_is_refused(built):
  c = carried(built)
  c.data.batch = 1
  with pytest.raises(ValueError, match="raise data.batch"):
    next(loader.train_batches(c))
  c.data.batch = 4000
  with pytest.raises(ValueError, match="fewer than the 3000 rows"):
    next(loader.train_batches(c))
  c = tiny("hope_attention")
  c.data.update(dict(carry=True, task="recall"))
  with pytest.raises(ValueError, match="data.carry=True needs documents"):
    checks.validate(c)


@pytest.mark.parametrize("kind, writes", [
    ("hope_hybrid", True), *(pytest.param("hope_selfmod", writes, marks=pytest.mark.slow)
                             for writes in (True, False))])
def test_two_windows_are_one_that_is_twice_as_long(kind, writes):
  c = tiny(kind)
  c.channel.in_context = writes
  params, batch = parameters(kind), batch_of(texts(32, 32, seed=3))
  halves = [jax.tree.map(lambda a: a[:, part], batch) for part in (slice(16), slice(16, 32))]
  learn = jax.jit(lambda fast, batch: sequences.learn_on(c, params, fast, batch, None, 10))
  fast = lm.init_fast(c, 2)
  want, _, _, end = learn(fast, batch)
  first, _, _, middle = learn(fast, halves[0])
  second, _, _, after = learn(middle, halves[1])
  np.testing.assert_allclose(first + second, want, rtol=1e-6)
  chex.assert_trees_all_close(after, end, atol=1e-5)
  afresh = learn(fast, halves[1])[0]
  assert abs(first + afresh - want) > 1e-3


@pytest.mark.slow
def test_a_step_keeps_what_its_streams_know_and_accumulation_changes_nothing():
  c = tiny("hope_hybrid")
  c.data.update(dict(carry=True, batch=4))
  batch, after = batch_of(texts(32, 32, 32, 32, seed=5)), []
  for parts in (1, 2):
    c.optim.accumulate = parts
    state, out = steps.make_train_step(c)(steps.init_state(c, jax.random.key(0)), batch)
    after.append((state.fast, out["loss"]))
  chex.assert_trees_all_close(*after, atol=1e-5)
  fast = after[0][0]
  assert (fast.count_B == 32).all()
  assert min(float(jnp.abs(level.delta["up"]["kernel"]).max())
             for level in fast.layers.levels.values()) > 0
