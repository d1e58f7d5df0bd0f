"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464), chunk-parallel.

    W_t = W_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,     y_t = W_t q_t

per head, with q and k of unit length out of short convolutions, retention alpha_t = exp(-e^A
softplus(a_t)), step beta_t = beta_max sigmoid(b_t). Without retention and output gate it is
DeltaNet (arXiv 2406.06484). Documents start at W = 0. The scan: memory/recurrence.py.
"""

import math
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import recurrence
from hope_jax.memory.write_rule import unit
from hope_jax.model import projections
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import CONV, compute_dtype
from hope_jax.model.slots import Layout

DT = 0.01  # retention at the start is exp(-e^A DT): memories of 6 to 100 tokens, A by head


@struct.dataclass
class State:
  """What streams keep."""
  memory_BxHxKxK: jax.Array
  conv_Bx3xN: jax.Array  # the convolutions' last inputs


class GatedDeltaNet(nn.Module):
  """(x, state, layout, may_write) -> (y, state, {"moved/gated_deltanet": length of W})."""
  heads: int
  layers: int
  chunk: int
  alpha: bool
  output_gate: bool
  beta_max: float
  control: Any
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    batch, total, dim = x_BxSxD.shape
    width = dim // self.heads
    memory = state.memory_BxHxKxK if state else jnp.zeros((batch, self.heads, width, width))
    (q, k, v), tail = projections.Inputs(self.heads, self.dtype, name="inputs")(
        x_BxSxD, state.conv_Bx3xN if state else None, layout)
    biases = (0.0, math.log(math.expm1(DT)))[:1 + self.alpha]
    beta, *retention = projections.Gates(self.heads, biases, self.dtype, name="gates")(x_BxSxD)

    valid = layout.valid_BxS[:, None]
    writes = valid & may_write
    beta = jnp.where(writes, self.beta_max * jax.nn.sigmoid(beta), 0.0)
    log_alpha = jnp.zeros_like(beta)
    if self.alpha:
      rate_H = self.param("rate", _spread_rates, (self.heads,))
      log_alpha = -jnp.exp(rate_H)[:, None] * jax.nn.softplus(retention[0])
    log_alpha = jnp.where(writes, log_alpha, 0.0)
    position = layout.position_BxS[:, None]
    first = valid & (position % self.chunk == 0 if self.control.reset else position == 0)
    q = k if self.control.keys_as_queries else q
    log_alpha = jnp.where(first, recurrence.CLEARED, log_alpha)

    def read(*args):
      return recurrence.run(*args, size=1 if total == 1 else self.chunk)
    memory, y = jax.vmap(jax.vmap(read))(memory, width ** -0.5 * unit(q), unit(k),
                                         self.control.sign * beta[..., None, :] * v, log_alpha,
                                         jnp.exp(log_alpha) * beta)
    y = projections.Output(self.layers, self.output_gate, self.dtype, name="output")(y, x_BxSxD)
    length = jnp.sqrt(jnp.sum(jnp.square(memory), (-2, -1)))
    return (y, State(memory, tail) if state else None,
            {"moved/gated_deltanet": jax.lax.stop_gradient(jnp.mean(length))})


def _spread_rates(_, shape):
  """From 1 to 16, evenly in the logarithm."""
  return jnp.linspace(0.0, math.log(16.0), *shape)


def build(config) -> GatedDeltaNet:
  """The module of a configuration."""
  m, own = config.model, config.gated_deltanet
  return GatedDeltaNet(m.heads, m.layers, own.chunk, own.alpha, own.output_gate, own.beta_max,
                       config.control, compute_dtype(config), name="gated_deltanet")


def fresh(config, batch: int) -> State:
  """Of streams that have read nothing."""
  m = config.model
  width = m.dim // m.heads
  return State(jnp.zeros((batch, m.heads, width, width)),
               jnp.zeros((batch, CONV - 1, 3 * m.dim), compute_dtype(config)))


MIXER = Mixer(
    build=build, fresh=fresh, forget=lambda state: state, context=lambda config: 0,
    grid=lambda config: 0, check=lambda config: None, writes=True,
    parameters=(*projections.parameters("gated_deltanet"),
                Parameter(r"rate", (), "vector", r"gated_deltanet.rate")),
    state_axes=((r"memory_BxHxKxK", ("heads",)), (r".*", ())))
