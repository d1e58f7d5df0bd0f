"""A selective state space (Mamba-2, arXiv 2405.21060): one decay a head, so that a chunk is a few
matrix products. With windows of attention in turns it is SAMBA (arXiv 2406.07522, which has the
first Mamba, of a decay for each entry).

    h_t = exp(-dt_t e^A) h_{t-1} + dt_t x_t B_t^T,     y_t = h_t C_t + skip x_t

per head, with dt_t = softplus(linear(input)), and x, B and C out of a short convolution; B and C
are those of all heads. Documents start at h = 0. The scan: memory/recurrence.py.
"""

import math
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import recurrence
from hope_jax.model import projections
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import CONV, Dense, compute_dtype, pass_through, scaled_normal
from hope_jax.model.slots import Layout

DT = (1e-3, 1e-1)  # at the start, evenly in the logarithm over the heads
RATES = (1.0, 16.0)  # e^A: the same


@struct.dataclass
class State:
  """What streams keep."""
  memory_BxHxPxN: jax.Array
  conv_Bx3xE: jax.Array  # the convolution's last inputs


class Mamba(nn.Module):
  """(x, state, layout, may_write) -> (y, state, {}). H heads of width P, N entries of state."""
  heads: int
  layers: int
  inner: int  # H P
  entries: int
  chunk: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    batch, total, dim = x_BxSxD.shape
    inner, entries, heads = self.inner, self.entries, self.heads
    def dense(name, features, init):
      return Dense(features, self.dtype, init, name=name)
    gate_BxSxE = dense("gate", inner, scaled_normal(dim))(x_BxSxD)
    mixed = dense("in", inner + 2 * entries, scaled_normal(dim))(x_BxSxD)
    kernel = self.param("conv", pass_through(), (CONV, inner + 2 * entries))
    mixed, tail = projections.short_conv(kernel, mixed, state.conv_Bx3xE if state else None, layout)
    x, keys, queries = jnp.split(mixed, [inner, inner + entries], -1)
    x_BxHxPxS = projections.heads_last(x, heads)
    keys, queries = (projections.heads_last(a, 1)[:, 0] for a in (keys, queries))  # (B, N, S)

    raw = dense("dt", heads, scaled_normal(dim))(x_BxSxD)
    bias_H = self.param("dt_bias", lambda _, shape: jnp.log(jnp.expm1(_spread(DT, shape))),
                        (heads,))
    dt = jax.nn.softplus(projections.heads_last(raw, 1)[:, 0] + bias_H[:, None])
    dt_BxHxS = jnp.where(layout.valid_BxS[:, None], dt, 0.0)
    rate_H = self.param("rate", lambda _, shape: jnp.log(_spread(RATES, shape)), (heads,))
    first = layout.valid_BxS & (layout.position_BxS == 0)
    log_alpha = jnp.where(first[:, None], recurrence.CLEARED,
                          -jnp.exp(rate_H)[:, None] * dt_BxHxS)

    def read(w, q, k, v, log_alpha):
      return recurrence.run(w, q, k, v, log_alpha, size=1 if total == 1 else self.chunk)
    memory = (state.memory_BxHxPxN if state
              else jnp.zeros((batch, heads, inner // heads, entries)))
    by_head = jax.vmap(read, (0, None, None, 0, 0))
    memory, y = jax.vmap(by_head)(memory, queries, keys, dt_BxHxS[:, :, None] * x_BxHxPxS,
                                  log_alpha)
    y = y + self.param("skip", nn.initializers.ones, (heads,))[:, None, None] * x_BxHxPxS
    y_BxSxE = jnp.moveaxis(y, -1, 1).reshape(batch, total, inner)
    y_BxSxE = nn.RMSNorm(dtype=self.dtype, name="norm")(y_BxSxE * nn.silu(gate_BxSxE))
    y = dense("out", dim, scaled_normal(inner, 2 * self.layers))(y_BxSxE)
    return y, State(memory, tail) if state else None, {}


def _spread(ends: tuple, shape):
  return jnp.exp(jnp.linspace(*map(math.log, ends), *shape))


def _inner(config) -> int:
  return config.mamba.expand * config.model.dim


def build(config) -> Mamba:
  """The module of a configuration. A head is as wide as model.heads make it; there are more."""
  m, own = config.model, config.mamba
  return Mamba(own.expand * m.heads, m.layers, _inner(config), own.entries, own.chunk,
               compute_dtype(config), name="mamba")


def fresh(config, batch: int) -> State:
  """Of streams that have read nothing."""
  m, own = config.model, config.mamba
  return State(jnp.zeros((batch, own.expand * m.heads, m.dim // m.heads, own.entries)),
               jnp.zeros((batch, CONV - 1, _inner(config) + 2 * own.entries),
                         compute_dtype(config)))


MIXER = Mixer(
    build=build, fresh=fresh, forget=lambda state: jax.tree.map(jnp.zeros_like, state),
    context=lambda config: 0, grid=lambda config: 0, check=lambda config: None, writes=False,
    parameters=(
        Parameter(r"(gate|in|dt)/kernel", ("model", None), "matrix", r"mamba.\1_proj.weight", True),
        Parameter(r"conv", (), "vector", r"mamba.conv.weight"),
        Parameter(r"dt_bias", (), "vector", r"mamba.dt.bias"),
        Parameter(r"(rate|skip)", (), "vector", r"mamba.\1"),
        Parameter(r"norm/scale", (), "vector", r"mamba.norm.weight"),
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"mamba.out_proj.weight", True)),
    state_axes=((r"memory_BxHxPxN", ("heads",)), (r".*", ())))
