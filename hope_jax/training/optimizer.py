"""Outer optimizers as optax chains: AdamW or the Muon hybrid, one partition for each CMS level with
a clock of its own.

Every parameter has a kind (matrix, embedding, vector: parameters.py). Matrices are
decayed and, under Muon, orthogonalised one by one (stacked layers, heads and memories are batch
axes). A CMS level with a period longer than the sequence accumulates its gradient and is stepped
once per period (NL Eq. 71).
"""

import re

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from hope_jax.model import parameters
from hope_jax.model.sharding import constrain_layers, constrain_params, path_name

def kind(path) -> str:
  """matrix, embedding or vector. ValueError for a parameter that the table does not know."""
  return parameters.row(path_name(path)).group


def schedule(config):
  """Linear warm-up, then cosine to final_lr; factor 1 at the peak."""
  o, steps = config.optim, config.train.steps
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, o.warmup, max(steps, o.warmup + 1),
                                            o.final_lr)


def level_steps(config) -> dict[str, int]:
  """Optimizer steps per update of each CMS level whose period is longer than the sequence."""
  if config.mixer.kind != "cms":
    return {}
  return {entry.name: entry.period // config.data.seq for entry in config.mixer.levels
          if entry.period > config.data.seq}


def make(config) -> optax.GradientTransformation:
  """The outer optimizer; its updates are added to the parameters."""
  o, slow = config.optim, level_steps(config)

  def rule(every: int):
    """All parameters on one clock, stepped once in `every` steps."""
    factor = schedule(config)
    def rate(peak):
      return lambda count: peak * factor(count * every)
    def matrices(tree):
      return jax.tree_util.tree_map_with_path(lambda p, _: kind(p) == "matrix", tree)
    if o.name == "adamw":
      inner = optax.adamw(rate(o.lr), o.b1, o.b2, weight_decay=o.weight_decay, mask=matrices)
    else:
      inner = by_layer(muon(
          rate(o.muon_lr), weight_decay=o.weight_decay, weight_decay_mask=matrices,
          consistent_rms=0.2, adam_b1=o.b1,
          adam_b2=o.b2, adam_learning_rate=rate(o.lr), adam_weight_decay=0.0,
          muon_weight_dimension_numbers=muon_dimensions))
    return inner if every == 1 else optax.MultiSteps(inner, every).gradient_transformation()

  def clock(path, _):
    level = re.search(r"cms/([^/]+)/", path_name(path))
    return level[1] if level and level[1] in slow else ""

  rules = {"": rule(1)} | {name: rule(every) for name, every in slow.items()}
  def labels(params):
    return jax.tree_util.tree_map_with_path(clock, params)
  return optax.chain(optax.clip_by_global_norm(o.clip),
                     optax.partition(rules, labels) if slow else rules[""])


def by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same, where a device of a mesh has the whole matrices of some layers while it works on
  them.

  Cut matrices would be sent again in every product of every iteration, and each computed by many
  devices.
  """
  def update(gradients, state, params):
    updates, state = tx.update(constrain_layers(gradients), constrain_layers(state), params)
    return constrain_params(updates), constrain_layers(state)

  return optax.GradientTransformation(tx.init, update)


def muon_dimensions(params):
  """For Muon: the two matrix axes of every matrix, None for what AdamW takes."""
  # inputs are the second axis of kernels (in, out) and the last of memories (out, in):
  # Newton-Schulz is symmetric in them
  return jax.tree_util.tree_map_with_path(
      lambda path, _: MuonDimensionNumbers(-2, -1) if kind(path) == "matrix" else None, params)
