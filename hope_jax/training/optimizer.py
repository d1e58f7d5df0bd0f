"""The outer optimizer as an optax chain: clipping, then the rule of optim.name, on each clock.

Each CMS level with a clock of its own is a partition: with a period longer than the sequence it
accumulates its gradient and is stepped once per period (NL Eq. 71). So is what
optim.train leaves as it is.
"""

import importlib
import re

import jax
import optax

from hope_jax import optimizers
from hope_jax.model import parameters
from hope_jax.model.sharding import constrain_layers, constrain_params, path_name


STILL = " "  # no level's name


def kind(path) -> str:
  """matrix, embedding or vector. ValueError for a parameter that the table does not know."""
  return parameters.row(path_name(path)).group


def matrices(params):
  """Which parameters are matrices: the same tree of bools."""
  return jax.tree_util.tree_map_with_path(lambda path, _: kind(path) == "matrix", params)


def schedule(config):
  """Linear warm-up, then cosine to final_lr; factor 1 at the peak."""
  o, steps = config.optim, config.train.steps
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, o.warmup, max(steps, o.warmup + 1),
                                            o.final_lr)


def level_steps(config) -> dict[str, int]:
  """Optimizer steps per update of each CMS level whose period is longer than the sequence."""
  if config.channel.kind != "cms":
    return {}
  return {entry.name: entry.period // config.data.seq for entry in config.channel.levels
          if entry.period > config.data.seq}


def make(config) -> optax.GradientTransformation:
  """The outer optimizer; its updates are added to the parameters."""
  slow, factor = level_steps(config), schedule(config)
  module = importlib.import_module(f"{optimizers.__name__}.{config.optim.name}")

  def rule(every: int):
    """All parameters on one clock, stepped once in `every` steps."""
    inner = module.make(config, lambda peak: lambda count: peak * factor(count * every), matrices)
    inner = by_layer(inner) if module.WHOLE else inner
    return inner if every == 1 else optax.MultiSteps(inner, every).gradient_transformation()

  def still(path):
    return config.optim.train == "levels" and not re.search(r"cms/|titan/", path_name(path))

  def clock(path, _):
    level = re.search(r"cms/([^/]+)/", path_name(path))
    return STILL if still(path) else level[1] if level and level[1] in slow else ""

  def without(gradients):
    return jax.tree_util.tree_map_with_path(
        lambda path, g: jax.numpy.zeros_like(g) if still(path) else g, gradients)

  rules = {"": rule(1)} | {name: rule(every) for name, every in slow.items()}
  if config.optim.train == "levels":
    rules[STILL] = optax.set_to_zero()
  return optax.chain(
      *[optax.stateless(lambda gradients, _: without(gradients))] * (STILL in rules),
      optax.clip_by_global_norm(config.optim.clip),
      optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(clock, params))
      if len(rules) > 1 else rules[""])


def by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same, where a device of a mesh has whole matrices of some layers while it works on them."""
  def update(gradients, state, params):
    updates, state = tx.update(constrain_layers(gradients), constrain_layers(state), params)
    return constrain_params(updates), constrain_layers(state)

  return optax.GradientTransformation(tx.init, update)
