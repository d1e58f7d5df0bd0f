"""The channel mixer of a Transformer: a gated MLP."""

from typing import Any

import flax.linen as nn

from hope_jax.model.contract import Parameter
from hope_jax.model.layers import Dense, scaled_normal


class SwiGLU(nn.Module):
  """W_down (silu(W_gate x) * W_up x)."""
  hidden: int
  layers: int
  bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BxTxD):
    width = x_BxTxD.shape[-1]
    def dense(name, features, init):
      return Dense(features, self.dtype, init, self.bias, name=name)
    gate = dense("gate", self.hidden, scaled_normal(width))(x_BxTxD)
    up = dense("up", self.hidden, scaled_normal(width))(x_BxTxD)
    return dense("down", width, scaled_normal(self.hidden, 2 * self.layers))(nn.silu(gate) * up)


PARAMETERS = (
    Parameter(r"(gate|up)/kernel", ("model", "hidden"), "matrix", r"mlp.\1_proj.weight", True),
    Parameter(r"down/kernel", ("hidden", "model"), "matrix", r"mlp.down_proj.weight", True),
    Parameter(r"(gate|up|down)/bias", (), "vector", r"mlp.\1_proj.bias"),
)
