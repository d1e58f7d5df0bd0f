"""A block: a token mixer, perhaps with a Titan memory, then a gated MLP or CMS, each pre-normed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from hope_jax.model import mixers
from hope_jax.model.cms import CMS
from hope_jax.model.layers import compute_dtype
from hope_jax.model.mlp import SwiGLU
from hope_jax.model.titan import Titan


class Block(nn.Module):
  """Token mixer and channel mixer of a layer.

  (x, state or None, layout, dropout key, weights, probes, may_write) -> (x, state, notes, taps)

  `weights` are those of levels that a stream has written. `probes` are zeros added inside the
  levels of those names (level.zeros), and "block" at the block's output: their gradients write the
  memories. `taps` holds what else is needed for it: each level's input and its kernels', and what
  the Titan memory answered ("titan_read"). `may_write`: whether memories of the token mixer's own
  do. `notes` are the token mixer's.
  """
  config: FrozenConfigDict
  mixer: str

  @nn.compact
  def __call__(self, x_BxSxD, state, layout, rng, weights, probes, may_write):
    c, dtype = self.config, compute_dtype(self.config)
    taps, through = {}, c.teach.through_writes == "full"
    dim, layers, epsilon = c.model.dim, c.model.layers, c.model.norm_epsilon
    h = nn.RMSNorm(epsilon, dtype=dtype, name="mixer_norm")(x_BxSxD)
    y, state, notes = mixers.TABLE[self.mixer].build(c)(h, state, layout, may_write)
    if c.model.titan != "none":
      titan = Titan(int(c.titan.hidden * dim), layers, c.model.titan == "modified", through,
                    epsilon, name="titan")
      taps["titan_read"], of_kernels = titan(y, weights.get("titan"))
      taps["titan"] = y, of_kernels
      y = y + taps["titan_read"]
    x_BxSxD = x_BxSxD + self.drop(y, rng, 0)

    hidden = int(c.channel.hidden * dim)
    if c.channel.kind == "swiglu":
      h = nn.RMSNorm(epsilon, dtype=dtype, name="channel_norm")(x_BxSxD)
      y = SwiGLU(hidden, layers, c.channel.bias, dtype, name="mlp")(h)
    elif c.channel.levels:
      names = tuple(entry.name for entry in c.channel.levels)
      cms = CMS(names, c.channel.connection, hidden, layers, c.channel.norm, c.channel.activation,
                c.channel.bias, epsilon, through, name="cms")
      y, inputs = cms(x_BxSxD, weights, probes)
      taps |= inputs
    else:
      y = jnp.zeros_like(x_BxSxD)
    x_BxSxD = x_BxSxD + self.drop(y, rng, 1)
    if "block" in probes:
      x_BxSxD = x_BxSxD + probes["block"].astype(dtype)
    return x_BxSxD, state, notes, taps

  def drop(self, y, rng, branch: int):
    """Dropout, where a key is given."""
    rate = self.config.model.dropout
    if rng is None or not rate:
      return y
    keep = jax.random.bernoulli(jax.random.fold_in(rng, branch), 1 - rate, y.shape)
    return jnp.where(keep, y / (1 - rate), 0)
