"""Attention against numpy loops; bands against masks; the ring cache against whole documents.

    python -m pytest tests/test_attention.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.model import attention, slots

BATCH, TOKENS, HEADS, WIDTH, BASE = 3, 19, 4, 6, 100.0
KINDS = {  # heads of keys, what is added, whether queries and keys are normalised
    "own": (HEADS, "none", True), "shared": (2, "qkv", False), "one": (1, "all", True)}
CLOSE = dict(atol=2e-5, rtol=1e-5)


@functools.cache
def setup(window, kind="own"):
  groups, bias, normalised = KINDS[kind]
  module = attention.Attention(HEADS, groups, WIDTH, 1, window, attention.Rotary(BASE), bias,
                               1e-3 if normalised else None, jnp.float32)
  x = np.random.default_rng(0).standard_normal((BATCH, TOKENS, 15)).astype(np.float32)
  lay = slots.arrange(jnp.ones((BATCH, TOKENS), int), jnp.zeros(BATCH, int), jnp.zeros(BATCH, int),
                      0)
  params = module.init(jax.random.key(1), x,
                       attention.empty_cache(BATCH, 0, groups, WIDTH, jnp.float32), lay)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), params)

  @jax.jit
  def run(x, cache, segments, segment, count):
    lay = slots.arrange(segments, segment, count, 0)
    y, cache, _ = module.apply({"params": params}, x, cache, lay)
    return y, cache, lay.segment_B, lay.count_B
  return run, jax.tree.map(np.float64, params), x


def start(length, kind="own"):
  return attention.empty_cache(BATCH, length, KINDS[kind][0], WIDTH,
                               jnp.float32), jnp.zeros(BATCH, int), jnp.zeros(BATCH, int)


def plain(params, x_TxD, position_T, document_T, window, kind="own"):
  """Softmax attention of one stream, query by query. Document -1 is padding."""
  groups, bias, normalised = KINDS[kind]
  def norm(a, name):
    if not normalised:
      return a
    return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-3) * params[name]["scale"]
  def rotate(a, position):
    half = WIDTH // 2
    angle = position * BASE ** (-np.arange(half) / half)
    turned = (a[..., :half] + 1j * a[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)
  rows = x_TxD @ params["qkv"]["kernel"] + params["qkv"].get("bias", 0)
  q, k, v = np.split(rows.reshape(len(rows), -1, WIDTH), [HEADS, HEADS + groups], 1)
  q, k = norm(q, "q_norm"), norm(k, "k_norm")
  k, v = (np.stack([a[:, h * groups // HEADS] for h in range(HEADS)], 1) for a in (k, v))
  out = np.zeros_like(q)
  for t, (p, d) in enumerate(zip(position_T, document_T)):
    seen = [s for s in range(t + 1) if document_T[s] == d >= 0
            and (not window or p - position_T[s] < window)]
    for h in range(HEADS if seen else 0):
      score = np.array([rotate(q[t, h], p) @ rotate(k[s, h], position_T[s])
                        for s in seen]) / WIDTH ** 0.5
      share = np.exp(score - score.max())
      out[t, h] = share / share.sum() @ v[seen, h]
  return out.reshape(len(x_TxD), -1) @ params["out"]["kernel"] + params["out"].get("bias", 0)


# one document; packed; packed with padding at either end and between documents
SEGMENTS = np.array([[1] * 19, [1] * 7 + [2] * 8 + [3] * 4,
                     [0] * 2 + [4] * 11 + [0] + [5] * 4 + [0]])


def place(segments):
  position, document = np.zeros(TOKENS, int), np.where(segments > 0, segments, -1)
  for t in range(1, TOKENS):
    position[t] = position[t - 1] + 1 if segments[t] == segments[t - 1] else 0
  return position, document


@pytest.mark.parametrize("window, kind", [*((w, "own") for w in (0, 1, 4, 9, 12)),  # bands to 9
                                          (0, "shared"), (4, "one")])
def test_attention_is_the_plain_loop(window, kind):
  run, params, x = setup(window, kind)
  assert ("bias" in params["qkv"], "bias" in params["out"]) == (kind != "own", kind == "one")
  y = run(x, *start(0, kind)[:1], jnp.asarray(SEGMENTS), *start(0)[1:])[0]
  for row, segments in enumerate(SEGMENTS):
    want = plain(params, x[row].astype(float), *place(segments), window, kind)
    here = segments > 0
    np.testing.assert_allclose(y[row, here], want[here], **CLOSE)


@pytest.mark.parametrize("window, total", [(4, 12), (4, 13), (1, 5), (5, 11)])
def test_bands_are_the_masked_whole(window, total):
  rng = np.random.default_rng(total)
  q, k, v = rng.standard_normal((3, BATCH, total, HEADS, WIDTH)).astype(np.float32)
  segments = jnp.asarray(np.sort(rng.integers(1, 4, (BATCH, total))))
  @jax.jit
  def both(q, k, v):
    lay = slots.arrange(segments, jnp.zeros(BATCH, int), jnp.zeros(BATCH, int), 0)
    at = lay.position_BxS, lay.document_BxS
    mask = attention.visible(*at, *at, lay.valid_BxS, window)
    return attention.attend_banded(q, k, v, lay, window), attention.attend(q, k, v, mask)
  np.testing.assert_allclose(*both(q, k, v), **CLOSE)


def test_attending_to_a_cache_is_attention_to_all_keys_and_so_are_its_gradients(x64):
  """Output, gradient and its gradient: writes in context may be differentiated through."""
  rng, before = np.random.default_rng(0), 5
  k, v = rng.standard_normal((2, BATCH, HEADS, before + 4, WIDTH))
  q, toward = rng.standard_normal((2, BATCH, HEADS, 4, WIDTH))
  mask = rng.random((BATCH, 4, before + 4)) < 0.6
  mask[..., 0] = True

  def plain(q, k, v):
    scores = jnp.where(mask[:, None], q @ k.swapaxes(2, 3) / WIDTH ** 0.5, -jnp.inf)
    return jax.nn.softmax(scores) @ v
  def ours(q, k, v):
    return attention.attend_after(q, k[:, :, :before], v[:, :, :before], k[:, :, before:],
                                  v[:, :, before:], mask)

  def all_of(attend):
    out, pull = jax.vjp(attend, q, k, v)
    second = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(g))
                                        for g in jax.vjp(attend, *args)[1](toward)), range(3))
    return out, pull(toward), second(q, k, v)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11),
               *jax.jit(lambda: (all_of(ours), all_of(plain)))())


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_of_tokens_is_the_window_however_the_document_is_cut(kind):
  length = 4
  run, params, x = setup(length, kind)
  want = np.stack([plain(params, row.astype(float), np.arange(TOKENS), np.zeros(TOKENS), length,
                         kind) for row in x])
  for cuts in (range(1, TOKENS), [5, 6, 12], [length, 2 * length]):
    state, out = start(length, kind), []
    for a, b in zip([0, *cuts], [*cuts, TOKENS]):
      room = 1 if b - a == 1 else 12
      def pad(values):
        return jnp.pad(values, ((0, 0), (0, room - (b - a)), *[(0, 0)] * (values.ndim - 2)))
      y, *state = run(pad(x[:, a:b]), state[0], pad(jnp.ones((BATCH, b - a), int)), *state[1:])
      out.append(y[:, :b - a])
    np.testing.assert_allclose(np.concatenate(out, 1), want, **CLOSE)
    assert sorted(state[0].position_BxW[0].tolist()) == list(range(TOKENS - length, TOKENS))


def test_a_new_document_forgets_the_ring_and_padding_does_not():
  length = 4
  run, params, x = setup(length)
  state, out = start(length), []
  ids = [[1, 1, 1], [1, 1, 2], [0, 2, 0], [2, 3, 3], [0, 0, 0], [3, 0, 3]]
  for i, row in enumerate(ids):
    y, *state = run(x[:, 3 * i:3 * i + 3], state[0], jnp.asarray([row] * BATCH), *state[1:])
    out.append(y)
  flat, y = np.array(sum(ids, [])), np.concatenate(out, 1)
  for document in (1, 2, 3):
    at = np.flatnonzero(flat == document)
    want = plain(params, x[0, at].astype(float), np.arange(len(at)), np.zeros(len(at)), length)
    np.testing.assert_allclose(y[0, at], want, **CLOSE)


def test_scaled_positions_are_their_definition():
  """llama3, wave by wave, as the authors' own code has it; linear: positions divided."""
  half, base, factor, low, high, original = 32, 500_000.0, 8.0, 1.0, 4.0, 1024
  want, kinds = [], set()
  for frequency in base ** (-np.arange(half) / half):
    wave = 2 * np.pi / frequency
    if wave < original / high:
      kinds.add("short")
      want.append(frequency)
    elif wave > original / low:
      kinds.add("long")
      want.append(frequency / factor)
    else:
      kinds.add("between")
      share = (original / wave - low) / (high - low)
      want.append((1 - share) * frequency / factor + share * frequency)
  assert len(kinds) == 3
  got = attention.Rotary(base, "llama3", factor, low, high, original).frequencies(half)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 1, 8)), jnp.float32)
  np.testing.assert_allclose(
      attention.rotate(x, 2 * jnp.arange(5)[None], attention.Rotary(base, "linear", 2.0)),
      attention.rotate(x, jnp.arange(5)[None], attention.Rotary(base)), atol=1e-6)
