"""How far the outer gradient flows where levels write: writes are stopped, context is not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from hope_jax import config
from hope_jax.model import checks, lm
from hope_jax.reading import reader, sequences
from hope_jax.training import steps
from tests.tiny import batch_of, noisy, texts, tiny

CHUNKS = 4

def slow(*case):
  return pytest.param(*case, marks=pytest.mark.slow)


def small(kind, rate=None, **teach):
  """One level that writes once a chunk; `rate`: of all levels, 0 writes nothing."""
  c = tiny(kind)
  c.channel.levels = (dataclasses.replace(c.channel.levels[1], rule="sgd", lr=0.1),)
  if rate is not None:
    c.titan.lr = rate
    c.channel.levels = (dataclasses.replace(c.channel.levels[0], lr=rate),)
  c.teach.update(dict(through_context="full") | teach)
  checks.validate(c)
  return c


@functools.cache
def of(kind):
  return noisy(small(kind))


def some_batch():
  """A document, and two that are packed."""
  first, second = [1] * 32, [1] * 13 + [0] * 3 + [2] * 14 + [0] * 2
  return batch_of(texts(32, 32, seed=4), [first, second])


def learned(c, params):
  loss, _, gradients = jax.jit(lambda p: sequences.learn(c, p, some_batch(), None, 10))(params)
  return loss, gradients


def loop(c, params):
  """The definition: chunk after chunk, with what the configuration says stopped."""
  strong, through = reader.strength(c, 10), c.teach.through_writes == "full"
  stop, every = jax.lax.stop_gradient, config.chunks(c.teach.through_context)
  pieces = reader.scan_chunks(c, some_batch())

  def total(params):
    fast, loss = lm.init_fast(c, 2), 0.0
    for i in range(CHUNKS):
      piece = jax.tree.map(lambda a: a[i], pieces)
      if every and i % every == 0:
        fast = fast.replace(layers=fast.layers.replace(tokens=stop(fast.layers.tokens)))
      seen = (params, fast) if through else stop((params, fast))
      written = reader.chunk(c, *seen, piece, strong)[1]
      out, after, _ = reader.chunk(c, params, fast, piece, None)
      loss += jnp.sum(out["nats_BxC"])
      fast = after.replace(layers=after.layers.replace(levels=written.layers.levels))
    return loss

  return jax.jit(jax.value_and_grad(total))(params)


def close(got, want, limit):
  """Each array to a share of its own length."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert jnp.linalg.norm(a - b) <= limit * jnp.maximum(jnp.linalg.norm(b), 1e-3)


@pytest.mark.parametrize("kind", ["hope_hybrid", *map(slow, ("hope_selfmod", "gru"))])
def test_with_nothing_written_it_is_that_of_the_whole_sequence(kind):
  c, params = small(kind, rate=0.0), of(kind)
  whole = c.copy_and_resolve_references()
  whole.channel.in_context = False
  batch = some_batch()

  def total(params):
    logits = lm.build(whole).apply({"params": params}, batch["tokens"], None, batch["segments"],
                                   aligned=True)[0]
    return jnp.sum(reader.token_losses(logits, batch["labels"]))

  want = jax.jit(jax.value_and_grad(total))(params)
  close(learned(c, params), want, 1e-6)
  c.model.remat = "block"
  close(learned(c, params), want, 1e-6)
  c.teach.through_context = "chunks:1"
  with pytest.raises(AssertionError):
    close(learned(c, params), want, 0.05)


@pytest.mark.parametrize("kind, writes, way", [
    ("hope_hybrid", "none", "chunks:2"), slow("hope_selfmod", "none", "full"),
    slow("hope_attention", "none", "chunks:1"), slow("hope_hybrid", "full", "chunks:2")])
def test_with_writes_it_is_that_of_the_loop(kind, writes, way):
  c, params = small(kind, through_context=way, through_writes=writes), of(kind)
  want = loop(c, params)
  close(learned(c, params), want, 2e-5)


def test_groups_have_to_fit():
  c = tiny("hope_attention")
  for way, told in (("chunks:3", "n of 1, 2, 4"), ("none:2", "choose full, none or chunks:n")):
    c.teach.through_context = way
    with pytest.raises(ValueError, match=f"teach.through_context.*{told}"):
      checks.validate(c)
  c.teach.through_context = "chunks:9"  # more than there are
  checks.validate(c)


@pytest.mark.slow
def test_accumulation_changes_no_gradient():
  c, params = small("hope_hybrid"), of("hope_hybrid")
  one = jax.jit(lambda p: steps._sums(c, some_batch(), None, p, None, 10)[0])(params)
  c.optim.accumulate = 2
  close(jax.jit(lambda p: steps._sums(c, some_batch(), None, p, None, 10)[0])(params), one, 1e-5)
