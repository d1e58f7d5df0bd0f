"""Parameters as an outer optimizer sees them: every matrix and every vector apart.

An array of the model may be several of them; its row in the table (model/parameters.py) says so:

    heads     their matrices lie side by side in an axis: (..., D, n H K) becomes (..., n H, D, K),
              and (..., H K, D) becomes (..., H, K, D); n = 3 for q, k, v
    vectors   parts are rows: of linear memories k, v, mem are matrices, the two gates vectors

A part has a name of its own in what the optimizer keeps, qkv/kernel/heads or w/k. Only an optimizer
that takes matrices as wholes has to see heads; rows are of two kinds, which others tell apart too:
vectors do not decay.
"""

import jax
import jax.numpy as jnp
import optax

from hope_jax.model import parameters
from hope_jax.model.sharding import path_name


def split(config, params, by_head: bool):
  """The parameters, or a gradient of them: {part: array} in the place of what has parts."""
  def one(path, leaf):
    row = parameters.row(path_name(path))
    if row.vectors is not None:
      return {name: leaf[..., rows, :] for name, rows in row.cuts(config).items()}
    if not (by_head and row.heads):
      return leaf
    width = row.width(config) if row.width else config.model.dim // config.model.heads
    return {parameters.HEADS: _by_head(leaf, row.heads, width)}
  return jax.tree_util.tree_map_with_path(one, params)


def join(config, parts, params):
  """Inverse of `split`, into arrays like those of `params`."""
  def one(path, leaf, part):
    row = parameters.row(path_name(path))
    if row.vectors is not None:
      return jnp.concatenate([part[name] for name in row.cuts(config)], -2)
    if isinstance(part, dict):
      part = part[parameters.HEADS]
      return (part if row.heads == -2 else jnp.moveaxis(part, -3, -2)).reshape(leaf.shape)
    return part
  return jax.tree_util.tree_map_with_path(one, params, parts)


def _by_head(array, axis: int, width: int):
  *batch, rows, columns = array.shape
  if axis == -2:
    return array.reshape(*batch, rows // width, width, columns)
  return jnp.moveaxis(array.reshape(*batch, rows, columns // width, width), -2, -3)


def apart(config, tx: optax.GradientTransformation, by_head: bool):
  """An optimizer of parts as one of parameters."""
  tx = optax.with_extra_args_support(tx)

  def init(params):
    return tx.init(split(config, params, by_head))

  def update(gradients, state, params, **more):
    updates, state = tx.update(split(config, gradients, by_head), state,
                               split(config, params, by_head), **more)
    return join(config, updates, params), state

  return optax.GradientTransformationExtraArgs(init, update)
