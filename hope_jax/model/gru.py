"""A gated recurrent unit with minimal gates: the recurrent control of every table of recall.

    f_t = sigmoid(W_f x_t + b + U_f h_{t-1})
    h_t = (1 - f_t) h_{t-1} + f_t tanh(W_h x_t + U_h (f_t h_{t-1}))          (MGU, arXiv 1603.09420)

per head, so that U_f and U_h are (H, K, K). What it remembers is h, and nothing writes it but
reading.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import Dense, compute_dtype, scaled_normal
from hope_jax.model.slots import Layout


def step(recur_2xHxKxK, h_BxHxK, gate_BxHxK, candidate_BxHxK):
  """h_t of h_{t-1} and the two projections of x_t."""
  f = jax.nn.sigmoid(gate_BxHxK + jnp.einsum("bhk,hkj->bhj", h_BxHxK, recur_2xHxKxK[0]))
  new = jnp.tanh(candidate_BxHxK + jnp.einsum("bhk,hkj->bhj", f * h_BxHxK, recur_2xHxKxK[1]))
  return (1 - f) * h_BxHxK + f * new


class GRU(nn.Module):
  """(x, h, layout, may_write) -> (y, h, {}). Documents start at h = 0; padding changes nothing."""
  heads: int
  layers: int
  forget_init: float
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD, h_BxHxK, layout: Layout, may_write=True):
    batch, total, dim = x_BxSxD.shape
    width = dim // self.heads
    shape = (2, self.heads, width, width)
    recur = self.param("recur", nn.initializers.normal(width ** -0.5 / 2), shape)
    bias = self.param("bias", nn.initializers.constant(self.forget_init), (dim,))
    kernel = Dense(2 * dim, self.dtype, scaled_normal(dim), name="in")
    gates = kernel(x_BxSxD).astype(jnp.float32) + jnp.concatenate([bias, jnp.zeros(dim)])
    gates_SxBx2xHxK = jnp.moveaxis(gates.reshape(batch, total, 2, self.heads, width), 1, 0)

    def read(h, xs):
      gates, valid_B, first_B = xs
      old = jnp.where(first_B[:, None, None], 0, h)
      new = step(recur, old, gates[:, 0], gates[:, 1])
      h = jnp.where(valid_B[:, None, None], new, h)
      return h, h

    start = jnp.zeros((batch, self.heads, width)) if h_BxHxK is None else h_BxHxK
    first_SxB = ((layout.position_BxS == 0) & layout.valid_BxS).T
    last, y = jax.lax.scan(read, start, (gates_SxBx2xHxK, layout.valid_BxS.T, first_SxB))
    y_BxSxD = jnp.moveaxis(y, 0, 1).reshape(batch, total, dim).astype(self.dtype)
    out = Dense(dim, self.dtype, scaled_normal(dim, 2 * self.layers), name="out")
    return out(y_BxSxD), None if h_BxHxK is None else last, {}


def build(config) -> GRU:
  """The module of a configuration."""
  m = config.model
  return GRU(m.heads, m.layers, config.gru.forget_init, compute_dtype(config), name="gru")


def fresh(config, batch: int):
  """h = 0, (B, H, K)."""
  return jnp.zeros((batch, config.model.heads, config.model.dim // config.model.heads))


MIXER = Mixer(
    build=build, fresh=fresh, forget=jnp.zeros_like, context=lambda config: 0,
    grid=lambda config: 0, check=lambda config: None, writes=False,
    parameters=(
        Parameter(r"in/kernel", ("model", None), "matrix", r"gru.in_proj.weight", True,
                  heads=-1),  # of gates and candidates
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"gru.out_proj.weight", True,
                  heads=-2),
        Parameter(r"recur", ("heads", None, "model"), "matrix", r"gru.recurrent"),
        Parameter(r"bias", (), "vector", r"gru.forget.bias")),
    state_axes=((r".*", ("heads",)),))
