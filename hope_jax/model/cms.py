"""Continuum memory system: levels of memory in one channel mixer, from fast to slow (NL Eq. 70-74).

This file holds how levels are connected. What one computes is in memory/level.py, how it is written
while it reads in memory/level_write.py. A level of a period longer than the sequence is stepped by
the outer optimizer, once per period (training/optimizer.py).
"""

import functools

import flax.linen as nn
import jax

from hope_jax.memory import level
from hope_jax.model.contract import Parameter


class CMS(nn.Module):
  """Channel mixer of K levels: (x, {level: weights}, probes) -> (what it adds to x, inputs).

  probes: {level: level.zeros that are added inside}, whose gradients write the levels.
  inputs: {level: (its input, the inputs of its kernels)}.

  sequential (Eq. 73) and nested (Eq. 72, which differs in when a level starts afresh, not in what
  it computes): y = MLP_K(...MLP_1(x)).
  independent (Eq. 74): y = x + sum_l softmax(w)_l K theta_l(x).
  """
  names: tuple[str, ...]
  connection: str
  hidden: int
  layers: int
  norm: str
  activation: str
  bias: bool
  epsilon: float
  through: bool

  @nn.compact
  def __call__(self, x_BxTxD, weights: dict, probes: dict):
    depth = 2 * self.layers * len(self.names)
    init = functools.partial(level.init, width=x_BxTxD.shape[-1], hidden=self.hidden, depth=depth,
                             norm=self.norm, activation=self.activation, bias=self.bias)
    if self.connection == "independent":
      share = jax.nn.softmax(self.param("share", nn.initializers.zeros,
                                        (len(self.names),))) * len(self.names)
    added, inputs = 0.0, {}
    for i, name in enumerate(self.names):
      x = x_BxTxD if self.connection == "independent" else x_BxTxD + added
      y, of_kernels = level.apply(self.param(name, init), x, weights.get(name), probes.get(name),
                                  through=self.through, epsilon=self.epsilon)
      inputs[name] = x, of_kernels
      added = added + (share[i].astype(y.dtype) * y if self.connection == "independent" else y)
    return added, inputs


PARAMETERS = (
    Parameter(r"share", (), "vector", r"cms.share"),
    Parameter(r"([^/]+)/norm/scale", (), "vector", r"cms.\1.norm.weight", initial=True),
    Parameter(r"([^/]+)/norm/bias", (), "vector", r"cms.\1.norm.bias", initial=True),
    Parameter(r"([^/]+)/(gate|up)/kernel", ("model", "hidden"), "matrix", r"cms.\1.\2_proj.weight",
              True, initial=True),
    Parameter(r"([^/]+)/down/kernel", ("hidden", "model"), "matrix", r"cms.\1.down_proj.weight",
              True, initial=True),
    Parameter(r"([^/]+)/(gate|up|down)/bias", (), "vector", r"cms.\1.\2_proj.bias", initial=True),
)
