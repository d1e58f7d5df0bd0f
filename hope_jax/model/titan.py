"""The Titan memory of hybrid blocks and its self-modifier: a level with a loss of its own.

It reads the attention's output a. At every period it takes a step of its inner rule on the mean
over the period of ||M(a) - target||^2, with target = modifier - delta, delta the teach signal, and

    modifier = skip M(a) + MLP([a, M(a), delta]),    skip = 1 at the start, the MLP's last layer 0.

So a fresh modifier leaves the memory where it is and the teach signal alone moves it; without a
modifier (titan_hybrid) this stays so. The notes' own form is skip = 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import level
from hope_jax.model.contract import Parameter


def init_modifier(key, width: int, hidden: int) -> dict:
  """Parameters of the self-modifier."""
  in_key, mid_key = jax.random.split(key)
  def part(kernel):
    return {"kernel": kernel, "bias": jnp.zeros_like(kernel[0])}
  def normal(k, rows, columns):
    return rows ** -0.5 * jax.random.normal(k, (rows, columns), jnp.float32)
  return {"in": part(normal(in_key, 3 * width, hidden)),
          "mid": part(normal(mid_key, hidden, hidden)),
          "out": part(jnp.zeros((hidden, width), jnp.float32)), "skip": jnp.ones((), jnp.float32)}


def modify(params: dict, attention_BxCxD, read_BxCxD, teach_BxCxD):
  """What the memory should answer before the teach signal is subtracted."""
  def dense(name, h):
    return h @ params[name]["kernel"].astype(h.dtype) + params[name]["bias"].astype(h.dtype)
  h = jnp.concatenate([attention_BxCxD, read_BxCxD, teach_BxCxD], -1)
  h = jax.nn.gelu(dense("in", h), approximate=False)
  h = jax.nn.gelu(dense("mid", h), approximate=False)
  return params["skip"].astype(h.dtype) * read_BxCxD + dense("out", h)


def signal(modifier: dict | None, period: int, attention_BxCxD, read_BxCxD, teach_BxCxD):
  """The gradient of the memory's loss at its output M(a), token by token."""
  kept = read_BxCxD if modifier is None else modify(modifier, attention_BxCxD, read_BxCxD,
                                                    teach_BxCxD)
  return 2 * (read_BxCxD - (kept - teach_BxCxD)) / period


class Titan(nn.Module):
  """(a, streams' weights or None) -> (M(a), inputs of its kernels), with the modifier's weights."""
  hidden: int
  layers: int
  modifier: bool
  through: bool
  epsilon: float

  @nn.compact
  def __call__(self, x_BxTxD, weights):
    width = x_BxTxD.shape[-1]
    memory = self.param("memory", lambda key: level.init(key, width, self.hidden, 2 * self.layers))
    if self.modifier:
      self.param("modifier", lambda key: init_modifier(key, width, self.hidden))
    return level.apply(memory, x_BxTxD, weights, through=self.through, epsilon=self.epsilon)


PARAMETERS = (
    Parameter(r"memory/norm/scale", (), "vector", r"titan.memory.norm.weight", initial=True),
    Parameter(r"memory/up/kernel", ("model", "hidden"), "matrix", r"titan.memory.up_proj.weight",
              True, initial=True),
    Parameter(r"memory/down/kernel", ("hidden", "model"), "matrix",
              r"titan.memory.down_proj.weight", True, initial=True),
    Parameter(r"modifier/in/kernel", ("model", "hidden"), "matrix",
              r"titan.modifier.in_proj.weight", True),
    Parameter(r"modifier/(mid|out)/kernel", ("hidden", "model"), "matrix",
              r"titan.modifier.\1_proj.weight", True),
    Parameter(r"modifier/(in|mid|out)/bias", (), "vector", r"titan.modifier.\1_proj.bias"),
    Parameter(r"modifier/skip", (), "vector", r"titan.modifier.skip"),
)
