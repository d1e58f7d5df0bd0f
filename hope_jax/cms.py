"""Continuum memory system: a chain of MLP levels, from fast to slow (NL Eq. 70-74).

This file holds what a level computes. When it is stepped is decided by its period: levels of a period longer than the
sequence by the outer optimizer, once per period (optim.py).
"""

from typing import Any

import flax.linen as nn
import jax

from hope_jax.layers import scaled_normal
from hope_jax.products import gelu


class Level(nn.Module):
  """theta_l: norm, up, gelu, down. What it adds to its input."""
  hidden: int
  depth: int  # branches added to the residual stream in the whole model
  dtype: Any

  @nn.compact
  def __call__(self, x_BxTxD):
    width = x_BxTxD.shape[-1]
    h = nn.RMSNorm(dtype=self.dtype, name="norm")(x_BxTxD)
    h = nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, kernel_init=scaled_normal(width), name="up")(h)
    return nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=scaled_normal(self.hidden, self.depth),
                    name="down")(gelu(h))


class CMS(nn.Module):
  """Channel mixer of K levels; returns what it adds to the residual stream.

  sequential (Eq. 73) and nested (Eq. 72, which differs in when a level starts afresh, not in what it computes):
  y = MLP_K(...MLP_1(x)).  independent (Eq. 74): y = x + sum_l softmax(w)_l K theta_l(x).
  """
  names: tuple[str, ...]
  connection: str
  hidden: int
  layers: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BxTxD):
    levels = [Level(self.hidden, 2 * self.layers * len(self.names), self.dtype, name=name) for name in self.names]
    if self.connection == "independent":
      share = jax.nn.softmax(self.param("share", nn.initializers.zeros, (len(levels),))) * len(levels)
      return sum(share[i].astype(x_BxTxD.dtype) * level(x_BxTxD) for i, level in enumerate(levels))
    added = 0.0
    for level in levels:
      added = added + level(x_BxTxD + added)
    return added
