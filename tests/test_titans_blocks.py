"""Titans' blocks against a loop over tokens, from x to y: outputs and every parameter's gradient.

    python -m pytest tests/test_titans_blocks.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import mixers, slots
from tests.test_neural_memory import network

TOKENS, DIM, HEADS, WIDTH, CHUNK, WINDOW, SEGMENT = 7, 8, 2, 4, 2, 3, 4


def tiny(name):
  c = config.base()
  c.model.update(dict(dim=DIM, heads=HEADS, layers=1, pattern=(name,)))
  c.titans.update(dict(chunk=CHUNK, segment=SEGMENT, persistent=2, depth=2))
  c.attention.window = 0 if name == "titans_mac" else WINDOW
  return c


def unit(z):
  return WIDTH ** 0.5 * z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def normed(y, scale=1.0):
  return y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale


def rotated(x_HxK, position):
  """Pairs (i, i + K / 2), turned by position / 10000^(2 i / K)."""
  half = WIDTH // 2
  angle = position * 10_000.0 ** (-jnp.arange(half) / half)
  turn = x_HxK[:, :half] + 1j * x_HxK[:, half:]
  turn = turn * jnp.exp(1j * angle)
  return jnp.concatenate([turn.real, turn.imag], -1)


class Memories:
  """All heads', one token at a time: what is read with stands still within a chunk."""

  def __init__(self, c, weights):
    self.own, self.run, self.start = c.titans, weights, weights
    self.surprise = jax.tree.map(jnp.zeros_like, weights)

  def begin(self, t):
    if t % CHUNK == 0:
      self.start = self.run

  def read(self, q_HxK):
    return jax.vmap(network)(self.start, q_HxK)

  def write(self, k_HxK, v_HxK, raw_3xH):
    gradient = jax.grad(lambda w: jnp.sum((jax.vmap(network)(w, k_HxK) - v_HxK) ** 2))(self.start)
    step, momentum, forget = jax.nn.sigmoid(raw_3xH)
    step = self.own.step / WIDTH * step
    def each(rate_H, a):
      return rate_H.reshape(HEADS, *[1] * (a.ndim - 1)) * a
    self.surprise = jax.tree.map(lambda s, g: each(momentum, s) - each(step, g), self.surprise,
                                 gradient)
    self.run = jax.tree.map(lambda w, s: each(1 - forget, w) + s, self.run, self.surprise)


def softmax_read(q, keys, values):
  return jax.nn.softmax(jnp.stack(keys) @ q / WIDTH ** 0.5) @ jnp.stack(values)


def lmm(c, p, x_TxD):
  """Convolve, read, write; the heads are normed, gated by x where there is a gate, and mixed."""
  mixed = x_TxD @ p["inputs"]["qkv"]["kernel"]
  taps = p["inputs"]["conv"]
  padded = jnp.concatenate([jnp.zeros((len(taps) - 1, 3 * DIM)), mixed])
  mixed = jax.nn.silu(sum(tap * padded[len(taps) - 1 - i:len(padded) - i]
                          for i, tap in enumerate(taps)))
  q, k, v = jnp.moveaxis(mixed.reshape(TOKENS, 3, HEADS, WIDTH), 1, 0)
  gates = (x_TxD @ p["gates"]["in"]["kernel"]).reshape(TOKENS, 3, HEADS) + p["gates"]["bias"]
  memories, rows = Memories(c, p["memory"]), []
  for t in range(TOKENS):
    memories.begin(t)
    rows.append(normed(memories.read(unit(q[t])), p["output"]["norm"]["scale"]).reshape(-1))
    memories.write(unit(k[t]), v[t], gates[t])
  y = jnp.stack(rows)
  if "gate" in p["output"]:
    y = y * jax.nn.silu(x_TxD @ p["output"]["gate"]["kernel"])
  return y @ p["output"]["out"]["kernel"]


def attention(p, x_TxD):
  """Each token sees the persistent ones and the last WINDOW, itself among them."""
  def split(a):
    return jnp.moveaxis(a.reshape(-1, 3, HEADS, WIDTH), 1, 0)
  q, k, v = split(x_TxD @ p["qkv"]["kernel"])
  _, always_k, always_v = split(p["persistent"] @ p["qkv"]["kernel"])
  q, k, always_k = (normed(a, p[f"{name}_norm"]["scale"])
                    for name, a in (("q", q), ("k", k), ("k", always_k)))
  q, k = (jnp.stack([rotated(a[t], t) for t in range(TOKENS)]) for a in (q, k))
  rows = []
  for t in range(TOKENS):
    near = range(max(0, t - WINDOW + 1), t + 1)
    rows.append(jnp.concatenate([softmax_read(
        q[t, h], [*always_k[:, h], *(k[i, h] for i in near)],
        [*always_v[:, h], *(v[i, h] for i in near)]) for h in range(HEADS)]))
  return jnp.stack(rows) @ p["out"]["kernel"]


def mag(c, p, x):
  return normed(attention(p["attention"], x), p["attention_norm"]["scale"]) * jax.nn.sigmoid(
      normed(lmm(c, p["lmm"], x), p["memory_norm"]["scale"]))


def mal(c, p, x):
  return attention(p["attention"], normed(lmm(c, p["lmm"], x), p["memory_norm"]["scale"]))


def mac(c, p, x_TxD):
  """h = M(ask x); attention to persistent tokens and to h and x of the segment; M is written, and
  asked, with what comes out.
  """
  memories = Memories(c, {name: p[name] for name in ("w_0", "w_1", "gain")})
  seen, rows, gates = [], [], []
  def split(a, parts):
    return a.reshape(parts, HEADS, WIDTH)
  p_k, p_v = jnp.moveaxis((p["persistent"] @ p["qkv"][:, DIM:]).reshape(-1, 2, HEADS, WIDTH), 1, 0)
  for t, x in enumerate(x_TxD):
    memories.begin(t)
    seen = [] if t % SEGMENT == 0 else seen
    answer = memories.read(normed(split(x @ p["ask"], 1)[0])).reshape(-1)
    q, k, v = split(x @ p["qkv"], 3)
    h_k, h_v = split(answer @ p["qkv"][:, DIM:], 2)
    q, k, h_k = (rotated(normed(a), t) for a in (q, k, h_k))
    seen = [*seen, (h_k, h_v), (k, v)]
    y = jnp.concatenate([softmax_read(
        q[h], [*normed(p_k)[:, h], *(key[h] for key, _ in seen)],
        [*p_v[:, h], *(value[h] for _, value in seen)]) for h in range(HEADS)])
    key, value, query = split(y @ p["write"], 3)
    gates.append(memories.read(normed(query)).reshape(-1))
    memories.write(normed(key), value, (y @ p["gates"]).reshape(3, HEADS) + p["bias"])
    rows.append(y)
  y = normed(jnp.stack(rows), p["attention_norm"]["scale"])
  gate = jax.nn.sigmoid(normed(jnp.stack(gates), p["memory_norm"]["scale"]))
  return (y * gate) @ p["out"]["kernel"]


PLAIN = {"titans_lmm": lmm, "titans_mag": mag, "titans_mal": mal, "titans_mac": mac}


@pytest.mark.parametrize("name", PLAIN)
def test_a_block_is_the_loop_over_its_tokens(name):
  c = tiny(name)
  module, rng = mixers.TABLE[name].build(c), np.random.default_rng(0)
  x = rng.standard_normal((1, TOKENS, DIM)).astype(np.float32)
  layout = slots.arrange(jnp.ones((1, TOKENS), int), jnp.zeros(1, int), jnp.zeros(1, int), 0)
  params = module.init(jax.random.key(0), x, None, layout)["params"]
  params = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape, np.float32), params)
  weight = rng.standard_normal((TOKENS, DIM)).astype(np.float32)

  def outcome(f):
    def loss(params, x):
      y = f(params, x)
      return jnp.sum(weight * y), y
    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x[0])

  found = outcome(lambda params, x: module.apply({"params": params}, x[None], None, layout)[0][0])
  want = outcome(functools.partial(PLAIN[name], c))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), found,
               want)
  assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(want[0]))
