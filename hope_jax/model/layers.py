"""The small layers of blocks: dense, causal convolution, initial values near the identity."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import products

CONV = 4  # tokens a convolution sees


def compute_dtype(config):
  """Of activations and matrix products."""
  return jnp.dtype(config.model.dtype)


def near_identity(noise: float = 0.02):
  """Initializer of square matrices (..., D, D): the identity plus noise.

  A memory with a skip maps x to nearly x; projections that start in another basis ask it the wrong
  questions.
  """
  def init(key, shape, dtype=jnp.float32):
    return jnp.eye(shape[-1], dtype=dtype) + noise * jax.random.normal(key, shape, dtype)
  return init


def pass_through(noise: float = 0.02):
  """Initializer of convolutions (..., CONV, D): the present token plus noise."""
  def init(key, shape, dtype=jnp.float32):
    present = jnp.zeros(shape, dtype).at[..., 0, :].set(1.0)
    return present + noise * jax.random.normal(key, shape, dtype)
  return init


def scaled_normal(fan_in: int, depth: int = 1):
  """N(0, 1 / (fan_in * depth)); depth 2 * layers for what is added to the residual stream."""
  return nn.initializers.normal((fan_in * depth) ** -0.5)


class Dense(nn.Module):
  """x W, and a bias if there is one."""
  features: int
  dtype: Any
  init: Any
  bias: bool = False

  @nn.compact
  def __call__(self, x_BxSxI):
    shape = x_BxSxI.shape[-1], self.features
    kernel_IxO = self.param("kernel", self.init, shape, jnp.float32)
    y = products.dense(x_BxSxI.astype(self.dtype), kernel_IxO.astype(self.dtype))
    if not self.bias:
      return y
    return y + self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32).astype(self.dtype)


def extend(tail_Bx3xD, x_BxSxD, first_B):
  """x with the document's last inputs right before each stream's first token: (B, 3 + S, D)."""
  padded = jnp.pad(x_BxSxD, ((0, 0), (CONV - 1, 0), (0, 0)))
  def place(row, tail, at):
    return jax.lax.dynamic_update_slice(row, tail.astype(row.dtype), (at, 0))
  return jax.vmap(place)(padded, tail_Bx3xD, first_B)


def conv(kernel_CONVxD, extended_BxSxD, position_BxS):
  """Causal depth-wise convolution that stops at a document's start. Tap 0 is the present token."""
  tokens = position_BxS.shape[1]
  out = 0.0
  for tap in range(CONV):
    shifted = jax.lax.dynamic_slice_in_dim(extended_BxSxD, CONV - 1 - tap, tokens, 1)
    inside = (position_BxS >= tap)[..., None]
    out += kernel_CONVxD[tap].astype(shifted.dtype) * jnp.where(inside, shifted, 0)
  return out


def conv_tail(extended_BxSxD, last_B, position_BxS, tail_Bx3xD):
  """What the next call's first tokens will look back at; unchanged where a stream got no token.

  Args:
    last_B: slot of each stream's last token, -1 for none.
  """
  def take(row, at):
    return jax.lax.dynamic_slice_in_dim(row, at + 1, CONV - 1, 0)
  tail = jax.vmap(take)(extended_BxSxD, last_B)
  position = jnp.take_along_axis(position_BxS, jnp.maximum(last_B, 0)[:, None], 1)
  inside = position >= jnp.arange(CONV - 2, -1, -1)
  return jnp.where((last_B < 0)[:, None, None], tail_Bx3xD,
                   jnp.where(inside[..., None], tail, 0)).astype(tail_Bx3xD.dtype)
