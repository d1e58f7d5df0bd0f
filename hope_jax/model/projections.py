"""What linear memories have around them: queries, keys and values out of a short convolution, and a
gated output (arXiv 2412.06464, 2501.00663).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hope_jax.model.contract import Parameter
from hope_jax.model.attention import Heads
from hope_jax.model.layers import CONV, Dense, conv, conv_tail, extend, pass_through
from hope_jax.model.layers import scaled_normal
from hope_jax.model.slots import Layout


def heads_last(x_BxSxN, heads: int):
  """(B, S, H K) -> (B, H, K, S) in float32: a memory's tokens are its last axis."""
  x = x_BxSxN.astype(jnp.promote_types(x_BxSxN.dtype, jnp.float32))
  return jnp.moveaxis(x.reshape(*x.shape[:2], heads, -1), 1, -1)


def short_conv(kernel_CONVxN, x_BxSxN, tail_Bx3xN, layout: Layout):
  """silu of the convolution, and the tail for the next call; `tail` None: documents start here."""
  if tail_Bx3xN is None:
    tail_Bx3xN = jnp.zeros((len(x_BxSxN), CONV - 1, x_BxSxN.shape[-1]), x_BxSxN.dtype)
  extended = extend(tail_Bx3xN, x_BxSxN, layout.first_B)
  tail_Bx3xN = conv_tail(extended, layout.last_B, layout.position_BxS, tail_Bx3xN)
  return nn.silu(conv(kernel_CONVxN, extended, layout.position_BxS)), tail_Bx3xN


class Inputs(nn.Module):
  """(x, tail, layout) -> ([q, k, v], each (B, H, K, S) float32, tail)."""
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD, tail_Bx3xN, layout: Layout):
    batch, total, dim = x_BxSxD.shape
    qkv = Heads(self.heads, self.heads, dim // self.heads, False, self.dtype, name="qkv")(x_BxSxD)
    x_BxSxN = jnp.concatenate([part.reshape(batch, total, dim) for part in qkv], -1)
    kernel = self.param("conv", pass_through(), (CONV, 3 * dim))
    x_BxSxN, tail_Bx3xN = short_conv(kernel, x_BxSxN, tail_Bx3xN, layout)
    return [heads_last(part, self.heads) for part in jnp.split(x_BxSxN, 3, -1)], tail_Bx3xN


class Gates(nn.Module):
  """x -> (count, B, H, S) float32: so many numbers for each head and token; biases: one of each."""
  heads: int
  biases: tuple  # initial values
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD):
    count = len(self.biases)
    raw = Dense(count * self.heads, self.dtype, scaled_normal(x_BxSxD.shape[-1]),
                name="in")(x_BxSxD)
    def spread(_, shape):
      return jnp.broadcast_to(jnp.array(self.biases, jnp.float32)[:, None], shape)
    bias_NxH = self.param("bias", spread, (count, self.heads))
    return jnp.moveaxis(heads_last(raw, count), 1, 0) + bias_NxH[:, None, :, None]


class Output(nn.Module):
  """(y (B, H, K, S), x) -> (B, S, D): each head normed, gated by x if `gate`, mixed."""
  layers: int
  gate: bool
  dtype: Any

  @nn.compact
  def __call__(self, y_BxHxKxS, x_BxSxD):
    dim = x_BxSxD.shape[-1]
    def dense(name, init):
      return Dense(dim, self.dtype, init, name=name)
    y = nn.RMSNorm(dtype=self.dtype, name="norm")(jnp.moveaxis(y_BxHxKxS, -1, 1))
    y_BxSxD = y.reshape(x_BxSxD.shape)
    if self.gate:
      y_BxSxD = y_BxSxD * nn.silu(dense("gate", scaled_normal(dim))(x_BxSxD))
    return dense("out", scaled_normal(dim, 2 * self.layers))(y_BxSxD)


def parameters(name: str) -> tuple[Parameter, ...]:
  """Rows of the three as submodules inputs, gates and output; `name`: what exported names begin
  with.
  """
  return (
      Parameter(r"inputs/qkv/kernel", ("model", "heads"), "matrix", f"{name}.qkv_proj.weight",
                True, heads=-1),
      Parameter(r"inputs/conv", (), "vector", f"{name}.conv.weight"),
      Parameter(r"gates/in/kernel", ("model", None), "matrix", f"{name}.gate_proj.weight", True),
      Parameter(r"gates/bias", (), "vector", f"{name}.gate.bias"),
      Parameter(r"output/norm/scale", (), "vector", f"{name}.norm.weight"),
      Parameter(r"output/gate/kernel", ("model", "heads"), "matrix",
                f"{name}.output_gate_proj.weight", True),
      Parameter(r"output/out/kernel", ("heads", "model"), "matrix", f"{name}.o_proj.weight", True,
                heads=-2))
