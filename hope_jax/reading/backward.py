"""The outer gradient of sequences that are read chunk by chunk, and written in between.

What the levels have written is data (teach.through_writes=none) or differentiated (full). All that
is context, attention's cache, convolutions, self-modifying memories, is differentiated as far as
teach.through_context says: within groups of n chunks (chunks:n) or through all of them (full).

First every chunk is read and written, and the states before the chunks are kept. Then, from the
last chunk to the first, each is read again from the state before it, and its gradient takes over
what the later chunks asked of the state after it. States are as large as all that a stream has
learned. So groups between which nothing flows come one after the other, and with model.remat other
than none a chain of N chunks keeps about 2 sqrt(N) states and reads twice.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import config as configs
from hope_jax.model import sharding
from hope_jax.model.state import FastState
from hope_jax.reading import reader


class Walk(NamedTuple):
  """One way through the chunks: its arguments but for the chunks and the states."""
  config: object
  params: dict
  strong: reader.Strength
  rng: object  # key for dropout, or None
  context: int  # chunks between two cuts; 0: none is cut

  @property
  def through(self) -> bool:
    """Whether the writes are differentiated."""
    return self.config.teach.through_writes == "full"


def gradient(config, params, fast: FastState, pieces: dict, strong, rng):
  """Of the summed loss of (N, B, C) pieces with respect to the parameters.

  Returns (losses (N,), statistics of the N chunks, gradients, the state after them).
  """
  walk = Walk(config, params, strong, rng, configs.chunks(config.teach.through_context))
  count = len(pieces["tokens"])
  zeros = sharding.constrain_params(jax.tree.map(jnp.zeros_like, params))
  xs = jnp.arange(count), pieces
  if walk.context == 1 and not walk.through:
    (fast, gradients), out = jax.lax.scan(functools.partial(_at_once, walk), (fast, zeros), xs)
    return *out, gradients, fast
  chained = walk.through or not 0 < walk.context < count
  size = walk.context
  if chained:
    size = count if config.model.remat == "none" else _near_root(count)
  groups = jax.tree.map(lambda a: a.reshape(count // size, size, *a.shape[1:]), xs)
  if chained and size < count:
    (fast, gradients), out = _linked(walk, fast, zeros, groups)
  else:
    (fast, gradients), out = jax.lax.scan(functools.partial(_group, walk), (fast, zeros), groups)
  return *jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), out), gradients, fast


def _near_root(count: int) -> int:
  """The smallest divisor of a number that is not below its root."""
  return next(n for n in range(math.isqrt(count - 1) + 1, count + 1) if count % n == 0)


def _key(walk, number):
  return None if walk.rng is None else jax.random.fold_in(walk.rng, number)


def _at_once(walk, carry, xs):
  """A chunk whose gradient needs no later one: from the backward pass that writes."""
  (fast, gradients), (number, piece) = carry, xs
  out, fast, own = reader.chunk(walk.config, walk.params, fast, piece, walk.strong, outer=True,
                                rng=_key(walk, number))
  gradients = sharding.constrain_params(jax.tree.map(jnp.add, gradients, own))
  return (sharding.constrain_fast(fast), gradients), (jnp.sum(out["nats_BxC"]), out["stats"])


def _group(walk, carry, xs):
  """Chunks from which nothing is asked later: forward, then backward."""
  fast, gradients = carry
  after, (states, *out) = jax.lax.scan(functools.partial(_forward, walk), fast, xs)
  asked = jax.tree.map(jnp.zeros_like, _moving(walk, fast))
  (_, gradients), _ = jax.lax.scan(functools.partial(_backward, walk), (asked, gradients),
                                   (states, xs), reverse=True)
  return (after, gradients), tuple(out)


def _linked(walk, fast, gradients, groups):
  """Groups of a chain: forward through all, then backward, each read once more for its states."""
  def forward(fast, xs):
    after, (_, *out) = jax.lax.scan(functools.partial(_forward, walk), fast, xs)
    return after, (fast, *out)

  def backward(carry, group):
    fast, xs = group
    _, (states, *_) = jax.lax.scan(functools.partial(_forward, walk), fast, xs)
    return jax.lax.scan(functools.partial(_backward, walk), carry, (states, xs), reverse=True)

  after, (starts, *out) = jax.lax.scan(forward, fast, groups)
  asked = jax.tree.map(jnp.zeros_like, _moving(walk, fast))
  (_, gradients), _ = jax.lax.scan(backward, (asked, gradients), (starts, groups), reverse=True)
  return (after, gradients), tuple(out)


def _forward(walk, fast, xs):
  """One chunk: (state after it, (state before it, loss, statistics))."""
  number, piece = xs
  out, after, _ = reader.chunk(walk.config, walk.params, fast, piece, walk.strong,
                               rng=_key(walk, number))
  return sharding.constrain_fast(after), (fast, jnp.sum(out["nats_BxC"]), out["stats"])


def _backward(walk, carry, xs):
  """One chunk again: what is asked of the state before it, and its gradient added."""
  (asked, gradients), (fast, (number, piece)) = carry, xs

  def read(params, moving):
    out, after, _ = reader.chunk(walk.config, params, _with(fast, moving), piece,
                                 walk.strong if walk.through else None, rng=_key(walk, number))
    return jnp.sum(out["nats_BxC"]), _moving(walk, sharding.constrain_fast(after))

  (loss, _), pull = jax.vjp(read, walk.params, _moving(walk, fast))
  own, asked = pull((jnp.ones_like(loss), asked))
  if walk.context:  # nothing flows into the chunk before a cut
    asked = asked | {"tokens": jax.tree.map(
        lambda a: jnp.where(number % walk.context == 0, jnp.zeros_like(a), a), asked["tokens"])}
  return (asked, sharding.constrain_params(jax.tree.map(jnp.add, gradients, own))), None


def _moving(walk, fast: FastState) -> dict:
  """What is differentiated of a state: its numbers, None in place of counts and flags."""
  parts = {"tokens": fast.layers.tokens} | ({"levels": fast.layers.levels} if walk.through else {})
  return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, parts)


def _with(fast: FastState, moving: dict) -> FastState:
  """The state with these numbers."""
  def put(new, old):
    return old if new is None else new
  return fast.replace(layers=fast.layers.replace(**{
      name: jax.tree.map(put, part, getattr(fast.layers, name), is_leaf=lambda a: a is None)
      for name, part in moving.items()}))
