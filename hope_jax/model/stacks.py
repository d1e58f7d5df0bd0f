"""Trees of stacked layers, cut into periods of a pattern.

With 7 layers in periods of 3, of which a mixer has 2: `periods` makes (2, 3, ...) of what all
layers have and (2, 2, ...) of what is the mixer's, `after` the seventh layer alone. Where a period
has one layer there is no axis for it.
"""

import jax
import jax.numpy as jnp


def periods(tree, count: int, each: int):
  """The first count * each layers as (count, each, ...), or (count, ...)."""
  def cut(a):
    a = a if len(a) == count * each else a[:count * each]
    return a if each == 1 else a.reshape(count, each, *a.shape[1:])
  return jax.tree.map(cut, tree)


def flat(tree, each: int):
  """`periods` undone."""
  return tree if each == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def split(tree, each: int) -> list:
  """The layers of one period."""
  return [tree] if each == 1 else after(tree, 0, each)


def after(tree, at: int, count: int) -> list:
  """`count` layers from a place on."""
  return [jax.tree.map(lambda a: a[at + i], tree) for i in range(count)]


def stack(trees: list):
  """`split` undone."""
  return trees[0] if len(trees) == 1 else jax.tree.map(lambda *a: jnp.stack(a), *trees)


def joined(tree, more: list):
  """A stack with more layers after it."""
  return jax.tree.map(lambda a, *b: jnp.concatenate([a, *(x[None] for x in b)]) if b else a, tree,
                      *more)
