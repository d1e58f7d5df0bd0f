"""How long models are trained that are to be compared: as many tokens, FLOPs or seconds for each.

    budget = parse("tokens:2e6")
    config.train.steps = steps(budget, config)
"""

import math
import time
from typing import NamedTuple

import jax
import numpy as np

from hope_jax.data import loader
from hope_jax.model import sharding
from hope_jax.training import costs, steps as training

KINDS = ("tokens", "flops", "seconds")
MEASURED = 3.0  # seconds of steps from which a rate is taken


class Budget(NamedTuple):
  """tokens: read in training. flops: of matrix products, as the step runs. seconds: of steps."""
  kind: str
  amount: float


def parse(text: str) -> Budget:
  """KIND:NUMBER. ValueError for anything else."""
  kind, _, number = text.partition(":")
  try:
    amount = float(number)
  except ValueError:
    amount = math.nan
  if kind not in KINDS or not 0 < amount < math.inf:
    raise ValueError(f"a budget is one of {', '.join(KINDS)} with a number above 0, as in "
                     f"tokens:2e6, not {text!r}")
  return Budget(kind, amount)


def tokens(config) -> int:
  """Of one step."""
  return config.data.batch * config.data.seq


def steps(budget: Budget, config) -> int:
  """That a model's training takes: the most within the budget; tokens are rounded up.

  ValueError where the budget is not one step.
  """
  if budget.kind == "tokens":
    return math.ceil(budget.amount / tokens(config))
  each = seconds(config) if budget.kind == "seconds" else costs.training_flops(
      config) * tokens(config)
  if budget.amount < each:
    raise ValueError(f"{budget.kind}:{budget.amount:g} is less than a step takes ({each:.3g}): "
                     "allow more")
  return int(budget.amount / each)


def seconds(config) -> float:
  """Of one step, measured on the first batches of its data once it is compiled: the median."""
  devices = sharding.mesh(config)
  init = jax.jit(lambda key: training.init_state(config, key),
                 out_shardings=training.state_shardings(config, devices))
  step, state = training.make_train_step(config, devices), init(jax.random.key(config.seed))
  batches, taken = iter(loader.train_batches(config)), []
  while len(taken) < 2 or sum(taken[1:]) < MEASURED:  # the first one is compiled
    batch = sharding.place_batch(next(batches), devices)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    taken.append(time.perf_counter() - began)
  return float(np.median(taken[1:]))
