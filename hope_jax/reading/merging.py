"""What a stream has learned, in the parameters: a model that has read it, and needs no state."""

from pathlib import Path

import jax
import jax.numpy as jnp

from hope_jax.memory.level import current
from hope_jax.model import lm, plan
from hope_jax.reading import conversation


def merge(config, params, state: str | Path):
  """The parameters with the changes of the levels that a saved state holds.

  Raises ValueError for another model's state, and for memories that are no parameters.
  """
  like = jax.eval_shape(lambda: lm.init_fast(config, 1))
  fast, _ = conversation.load(state, like, conversation.owner(config, params))
  levels = fast.layers.levels or {}
  if kept := [name for name in plan.of(config).paths if name not in map(plan.path, levels)]:
    raise ValueError(f"{state}: what {', '.join(kept)} has learned is in its state alone and in no "
                     "parameter: export without --state")
  params = jax.tree.map(lambda leaf: leaf, params)
  for name, own in levels.items():
    level = lm.level_parameters(params["blocks"], name)
    level |= jax.tree.map(lambda leaf: leaf[:, 0].astype(jnp.float32),
                          current(level, own.delta, 1))
  return params
