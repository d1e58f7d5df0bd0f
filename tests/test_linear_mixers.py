"""Gated DeltaNet and Mamba against their equations, token by token in numpy, from x to y.

    python -m pytest tests/test_linear_mixers.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import gated_deltanet, mamba, slots

BATCH, TOKENS, DIM, HEADS = 2, 9, 8, 2


def tiny(**fields):
  c = config.base()
  c.model.update(dict(dim=DIM, heads=HEADS, layers=1))
  c.gated_deltanet.chunk = 4
  c.mamba.update(dict(chunk=4, entries=3))
  c.update_from_flattened_dict(fields)
  return c


@functools.cache
def layout(tokens=TOKENS):
  zero = jnp.zeros(BATCH, int)
  return slots.arrange(jnp.ones((BATCH, tokens), int), zero, zero, 0)


def run(mixer, c, seed=0):
  """(parameters with noise, x, y) as float64."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((BATCH, TOKENS, DIM)).astype(np.float32)
  module = mixer.build(c)
  params = module.init(jax.random.key(0), x, None, layout())["params"]
  params = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), params)
  y = jax.jit(lambda params: module.apply({"params": params}, x, None, layout())[0])(params)
  return jax.tree.map(np.float64, params), x.astype(float), np.float64(y)


def sigmoid(a):
  return 1 / (1 + np.exp(-a))


def silu(a):
  return a * sigmoid(a)


def softplus(a):
  return np.log1p(np.exp(a))


def unit(a):
  return a / np.linalg.norm(a, axis=-1, keepdims=True)


def convolved(kernel, x_TxN):
  """Tap 0 is the present token."""
  padded = np.concatenate([np.zeros((len(kernel) - 1, x_TxN.shape[1])), x_TxN])
  return silu(sum(tap * padded[len(kernel) - 1 - i:len(padded) - i]
                  for i, tap in enumerate(kernel)))


def normed(y, scale):
  return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale


def projected(p, x_TxD):
  """q, k, v, each (T, H, K)."""
  mixed = convolved(p["inputs"]["conv"], x_TxD @ p["inputs"]["qkv"]["kernel"])
  return mixed.reshape(len(x_TxD), 3, HEADS, -1).swapaxes(0, 1)


def output(p, y_TxHxK, x_TxD):
  y = normed(y_TxHxK, p["output"]["norm"]["scale"]).reshape(x_TxD.shape)
  if "gate" in p["output"]:
    y = y * silu(x_TxD @ p["output"]["gate"]["kernel"])
  return y @ p["output"]["out"]["kernel"]


def delta_rule(p, x_TxD, alpha_TxH=None, beta_max=1.0):
  """S_t = alpha_t S_{t-1} - beta_t (alpha_t S_{t-1} k_t - v_t) k_t^T, from S = 0."""
  q, k, v = projected(p, x_TxD)
  q, k = unit(q) / (DIM // HEADS) ** 0.5, unit(k)
  gates = x_TxD @ p["gates"]["in"]["kernel"] + p["gates"]["bias"].reshape(-1)
  beta, y = beta_max * sigmoid(gates[:, :HEADS]), np.zeros_like(v)
  for h in range(HEADS):
    s = np.zeros((DIM // HEADS,) * 2)
    for t in range(len(x_TxD)):
      s = s if alpha_TxH is None else alpha_TxH[t, h] * s
      s = s - beta[t, h] * np.outer(s @ k[t, h] - v[t, h], k[t, h])
      y[t, h] = s @ q[t, h]
  return output(p, y, x_TxD)


@pytest.mark.parametrize("beta_max", [1.0, 2.0])
def test_with_its_gates_off_gated_deltanet_is_deltanet(beta_max):
  params, x, y = run(gated_deltanet, tiny(**{
      "gated_deltanet.alpha": False, "gated_deltanet.output_gate": False,
      "gated_deltanet.beta_max": beta_max}))
  assert "gate" not in params["output"] and "rate" not in params
  for row in range(BATCH):
    np.testing.assert_allclose(y[row], delta_rule(params, x[row], beta_max=beta_max), atol=2e-5)


def test_gated_deltanet_is_its_equation():
  params, x, y = run(gated_deltanet, tiny())
  for row in range(BATCH):
    gates = x[row] @ params["gates"]["in"]["kernel"] + params["gates"]["bias"].reshape(-1)
    alpha = np.exp(-np.exp(params["rate"]) * softplus(gates[:, HEADS:]))
    np.testing.assert_allclose(y[row], delta_rule(params, x[row], alpha), atol=2e-5)


def test_mamba_is_its_equation():
  c = tiny()
  params, x, y = run(mamba, c)
  heads, entries = 2 * HEADS, c.mamba.entries
  for row in range(BATCH):
    mixed = convolved(params["conv"], x[row] @ params["in"]["kernel"])
    v, k, q = np.split(mixed, [2 * DIM, 2 * DIM + entries], 1)
    v = v.reshape(TOKENS, heads, -1)
    dt, out = softplus(x[row] @ params["dt"]["kernel"] + params["dt_bias"]), np.zeros_like(v)
    for h in range(heads):
      state = np.zeros((v.shape[2], entries))
      for t in range(TOKENS):
        state = np.exp(-dt[t, h] * np.exp(params["rate"][h])) * state
        state = state + dt[t, h] * np.outer(v[t, h], k[t])
        out[t, h] = state @ q[t] + params["skip"][h] * v[t, h]
    gated = out.reshape(TOKENS, -1) * silu(x[row] @ params["gate"]["kernel"])
    want = normed(gated, params["norm"]["scale"]) @ params["out"]["kernel"]
    np.testing.assert_allclose(y[row], want, atol=2e-5)
