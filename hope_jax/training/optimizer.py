"""The outer optimizer as an optax chain: clipping, then the rule of optim.name, on each clock.

A CMS level with a period longer than the sequence has a clock of its own: it is stepped once per
period, by the gradient of the period (NL Eq. 71). What is stepped together is clipped together.

    gradient   of the mean loss of all labels of the period: the sum over its tokens that the
               equation asks for, divided by their number, as a step's gradient is. A rate then
               means the same for every period, and a step counts by its labels. It is clipped
               once, when it is whole
    rate       that of the step at which the period ends
    end        an unfinished period ends with the last step of the run (train.steps); with
               teach.flush_partial off it is dropped
    steps      are those that are taken: one that is skipped, or without a label, is in no period
What optim.train leaves as it is has a clock on which nothing happens.
"""

import importlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax import optimizers
from hope_jax.model import parameters, plan
from hope_jax.model.sharding import constrain_layers, constrain_params, path_name
from hope_jax.training.matrices import apart

STILL = " "  # no level's name


def kind(path) -> str:
  """matrix, embedding or vector. ValueError for a parameter that the table does not know."""
  return parameters.row(path_name(path)).group


def matrices(params, groups=("matrix",)):
  """Which parameters are matrices, or of these groups: the same tree of bools."""
  return jax.tree_util.tree_map_with_path(lambda path, _: kind(path) in groups, params)


def schedule(config):
  """Linear warm-up, then to final_lr by a cosine, or at the end by a line; factor 1 at the peak."""
  o, steps = config.optim, config.train.steps
  if o.schedule == "wsd":
    decay = max(1, round(o.decay * steps))
    return optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, o.warmup) if o.warmup else optax.constant_schedule(1.0),
         optax.constant_schedule(1.0), optax.linear_schedule(1.0, o.final_lr, decay)],
        [o.warmup, max(steps - decay, o.warmup)])
  return optax.warmup_cosine_decay_schedule(0.0, 1.0, o.warmup, max(steps, o.warmup + 1),
                                            o.final_lr)


def level_steps(config) -> dict[str, int]:
  """Optimizer steps per update of each CMS level whose period is longer than the sequence."""
  if config.channel.kind != "cms":
    return {}
  return {entry.name: entry.period // config.data.seq for entry in config.channel.levels
          if entry.period > config.data.seq}


def make(config) -> optax.GradientTransformationExtraArgs:
  """The outer optimizer; its updates are added to the parameters.

  Where levels have clocks of their own, `update` is also told of the step, as keywords: `labels` in
  its batch, `applied` steps before it, and whether it is the `last`.
  """
  slow, factor = level_steps(config), schedule(config)
  module = importlib.import_module(f"{optimizers.__name__}.{config.optim.name}")

  def rule(rate):
    inner = module.make(config, rate, matrices)
    return optax.chain(optax.clip_by_global_norm(config.optim.clip),
                       by_layer(inner) if module.WHOLE else inner)

  def still(path):
    return config.optim.train == "levels" and not re.search(r"cms/|titan/", path_name(path))

  def clock(path, _):
    level = re.search(r"cms/([^/]+)/", path_name(path))
    return STILL if still(path) else level[1] if level and level[1] in slow else ""

  tx = rule(lambda peak: lambda count: peak * factor(count))
  at_peak = rule(lambda peak: lambda count: peak)
  clocks = {"": tx} | {name: once_a_period(at_peak, every, factor, config.teach.flush_partial)
                       for name, every in slow.items()}
  if config.optim.train == "levels":
    clocks[STILL] = optax.set_to_zero()
  if len(clocks) > 1:
    tx = optax.partition(clocks, lambda params: jax.tree_util.tree_map_with_path(clock, params))
  tx = apart(config, tx, module.WHOLE)
  return without_initial(config, tx) if config.control.frozen else tx


def without_initial(config, tx: optax.GradientTransformationExtraArgs):
  """The same, but the initial values of what is written while it reads stay as they are."""
  written = plan.of(config).levels

  def stays(path, update):
    level = re.search(r"cms/([^/]+)/", path_name(path))
    frozen = parameters.row(path_name(path)).initial and (not level or level[1] in written)
    return jnp.zeros_like(update) if frozen else update

  def update(gradients, state, params, **more):
    updates, state = tx.update(gradients, state, params, **more)
    return jax.tree_util.tree_map_with_path(stays, updates), state

  return optax.GradientTransformationExtraArgs(tx.init, update)


class Period(NamedTuple):
  """An unfinished period of a level."""
  steps: jax.Array  # taken in it
  labels: jax.Array  # of them, float32
  mean: Any  # gradient of the mean loss of these labels
  inner: Any  # the rule's state


def once_a_period(tx: optax.GradientTransformation, every: int, factor, flush: bool):
  """`tx`, at its peak rate, once in so many steps, times the schedule's factor at that step."""
  def fresh(params, inner):
    return Period(jnp.zeros((), jnp.int32), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params),
                  inner)

  def update(gradients, state, params, *, labels, applied, last):
    total = state.labels + labels
    share = labels / jnp.maximum(total, 1)
    mean = jax.tree.map(lambda m, g: m + share * (g - m), state.mean, gradients)

    def step():
      updates, inner = tx.update(mean, state.inner, params)
      return jax.tree.map(lambda u: u * factor(applied), updates), fresh(params, inner)

    def wait():
      return (jax.tree.map(jnp.zeros_like, params),
              Period(state.steps + 1, total, mean, state.inner))

    return jax.lax.cond((state.steps + 1 == every) | (last & flush), step, wait)

  return optax.GradientTransformationExtraArgs(lambda params: fresh(params, tx.init(params)),
                                               update)


def by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same, where a device of a mesh has whole matrices of some layers while it works on them."""
  def update(gradients, state, params):
    updates, state = tx.update(constrain_layers(gradients), constrain_layers(state), params)
    return constrain_params(updates), constrain_layers(state)

  return optax.GradientTransformation(tx.init, update)
