"""Groups of parameters: how many there are, and how far each is pulled and moves.

matrix, embedding and vector, as the outer optimizer tells parameters apart; and each level of a
CMS, level_NAME, whose parameters are in one of these as well.
"""

import math
import re

import jax
import jax.numpy as jnp

from hope_jax.model.sharding import path_name
from hope_jax.training import optimizer


def _groups(path) -> list[str]:
  level = re.search(r"cms/([^/]+)/", path_name(path))
  return [optimizer.kind(path), *([f"level_{level[1]}"] if level else [])]


def sizes(params) -> dict[str, int]:
  """Parameters in each group, of arrays or shapes."""
  out = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    for group in _groups(path):
      out[group] = out.get(group, 0) + math.prod(leaf.shape)
  return out


def norms(tree) -> dict[str, jax.Array]:
  """The norm of each group of a tree like the parameters."""
  squares = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    for group in _groups(path):
      squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  return {group: jnp.sqrt(square) for group, square in squares.items()}
