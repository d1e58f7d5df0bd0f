"""Chunk-parallel writes against loops over tokens in numpy; the triangular inverse against numpy's.

    python -m pytest tests/test_delta.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import delta_rule

ROWS, WIDTH, TOKENS = 5, 4, 11


def keys(kind, size, width=8):
  x = np.random.default_rng(size).standard_normal((width, size))
  if kind == "identical":
    x = x[:, :1].repeat(size, 1)
  elif kind == "alternating":
    x = x[:, :1] * (-1.0) ** np.arange(size)
  return x / np.linalg.norm(x, axis=0)


@pytest.mark.parametrize("size", [1, 2, 5, 24, 64])
def test_inverse_is_numpys_for_the_worst_correlated_keys(size):
  inverse = jax.jit(jax.vmap(delta_rule.unit_lower_inverse))
  lowers = []
  for kind in ("random", "identical", "alternating"):
    for step in (0.5, 1.0):  # 1: step ||x||^2 at its limit
      x = keys(kind, size)
      lowers.append(step * np.tril(x.T @ x, -1))
  lowers = np.stack(lowers).astype(np.float32)
  want = np.linalg.inv(np.eye(size) + lowers.astype(np.float64))
  np.testing.assert_allclose(inverse(lowers), want, atol=1e-5)


def test_gradients_of_solve_are_those_of_a_dense_solver(x64):
  rng = np.random.default_rng(0)
  lower, right = np.tril(0.5 * rng.standard_normal((7, 7)), -1), rng.standard_normal((3, 7))
  weight = rng.standard_normal((3, 7))
  def ours(lower, right):
    return jnp.sum(weight * delta_rule.solve(lower, delta_rule.unit_lower_inverse(lower), right))
  def dense(lower, right):
    return jnp.sum(weight * jnp.linalg.solve(jnp.eye(7) + lower, right.T).T)
  got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(lower, right) for f in (ours, dense))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
  np.testing.assert_allclose(got[1][0], np.tril(want[1][0], -1), atol=1e-12)
  np.testing.assert_allclose(got[1][1], want[1][1], atol=1e-12)


def case(seed=0):
  """Random write; `real` marks the tokens, the others are padding."""
  rng = np.random.default_rng(seed)
  def draw(*shape):
    return rng.standard_normal(shape)
  return dict(w=draw(ROWS, WIDTH), m=draw(ROWS, WIDTH), x=draw(WIDTH, TOKENS),
              z=draw(WIDTH, TOKENS),
              f=draw(ROWS, TOKENS), f2=draw(ROWS, TOKENS), step=0.3 * rng.random(TOKENS),
              rate=0.5 * rng.random(TOKENS), alpha=0.5 + 0.5 * rng.random(TOKENS),
              real=rng.random(TOKENS) < 0.7)


def loop(c, beta, rank_one=True, second=False):
  """W_t = W_{t-1} (alpha I - step x x^T) - rate m_t, m_t = beta m_{t-1} + f x^T (+ f2 z^T)."""
  w, m = c["w"], c["m"]
  for t in np.flatnonzero(c["real"]):
    x = c["x"][:, t]
    m = beta * m + np.outer(c["f"][:, t], x) + second * np.outer(c["f2"][:, t], c["z"][:, t])
    factor = c["alpha"][t] * np.eye(WIDTH) - rank_one * c["step"][t] * np.outer(x, x)
    w = w @ factor - c["rate"][t] * m
  return w, m


def padded(c, fill=0.0):
  """Arguments of the writes: padding has step = rate = log alpha = 0 and any inputs."""
  written = {name: np.where(c["real"], c[name], 0) for name in ("step", "rate")}
  written["log_alpha"] = np.where(c["real"], np.log(c["alpha"]), 0)
  return c | written | {name: np.where(c["real"], c[name], fill) for name in ("x", "z", "f", "f2")}


@jax.jit
def write(a):
  decay = delta_rule.decay(a["log_alpha"])
  lower = delta_rule.couple(a["x"], a["step"], decay)
  return delta_rule.write(a["w"], a["x"], a["w"] @ a["x"], a["rate"] * a["f"], a["step"], decay,
                          lower,
                     delta_rule.unit_lower_inverse(lower))


@jax.jit
def write_decayed(a):
  return delta_rule.write_decayed(a["w"], a["x"], a["rate"] * a["f"],
                                  delta_rule.decay(a["log_alpha"]))


@functools.partial(jax.jit, static_argnames=("beta", "rank_one", "second"))
def write_momentum(a, beta, rank_one, second):
  kept = jnp.where(a["real"], 1.0, 0.0)
  pairs = [(kept * a["f"], a["x"])] + ([(kept * a["f2"], a["z"])] if second else [])
  log_beta = jnp.where(a["real"], jnp.log(beta), 0.0) if beta else None
  return delta_rule.write_momentum(a["w"], a["m"], a["x"], pairs, a["step"] if rank_one else None,
                                   a["rate"], a["log_alpha"],
                              log_beta)


@pytest.mark.parametrize("seed", range(3))
def test_writes_are_the_loop_over_the_real_tokens(x64, seed):
  c = case(seed) | dict(m=np.zeros((ROWS, WIDTH)))
  for fill in (0.0, 3.0):
    np.testing.assert_allclose(write(padded(c, fill)), loop(c, 0.0)[0], atol=1e-12)
    np.testing.assert_allclose(write_decayed(padded(c, fill)), loop(c, 0.0, rank_one=False)[0],
                               atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("rank_one", [True, False])
def test_writes_with_momentum_and_two_products_are_the_loop(x64, beta, rank_one):
  for second in (True, False) if beta else (True,):
    c = case()
    if not beta:
      c["m"] = np.zeros((ROWS, WIDTH))
    for fill in (0.0, 3.0):
      w, m = write_momentum(padded(c, fill), beta, rank_one, second)
      want = loop(c, beta, rank_one, second)
      np.testing.assert_allclose(w, want[0], atol=1e-12)
      if beta:
        np.testing.assert_allclose(m, want[1], atol=1e-12)


def test_only_padding_changes_nothing_bit_for_bit():
  c = padded(case() | dict(real=np.zeros(TOKENS, bool)), 3.0)
  c = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in c.items()}
  assert np.array_equal(write(c), c["w"]) and np.array_equal(write_decayed(c), c["w"])
  w, m = write_momentum(c, 0.7, True, True)
  assert np.array_equal(w, c["w"]) and np.array_equal(m, c["m"])
