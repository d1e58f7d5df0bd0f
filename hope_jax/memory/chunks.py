"""A loop over the chunks of a call's tokens; its backward pass recomputes in groups of them."""

import jax
import jax.numpy as jnp


def scan(step, state, tokens, size: int, group: int = 0):
  """step(state, chunk) -> (state, outputs), chunk after chunk: (state, all tokens' outputs).

  Args:
    tokens: tree of arrays (..., T), given to `step` as (..., C) with zeros after the last token.
    group: recompute the backward pass in groups of so many chunks; 0: store everything.
  """
  total = jax.tree.leaves(tokens)[0].shape[-1]
  chunks = -(-total // size)
  groups = -(-chunks // (group or chunks))
  shape = groups, -(-chunks // groups), size

  def several(state, xs):
    return jax.lax.scan(step, state, xs)

  state, outputs = jax.lax.scan(jax.checkpoint(several) if group else several, state,
                                jax.tree.map(lambda a: _split(a, shape), tokens))
  return state, jax.tree.map(lambda a: _join(a, total), outputs)


def _split(a_xT, shape: tuple[int, int, int]):
  """(..., T) -> (groups, chunks of a group, ..., C), zeros after the last token."""
  groups, chunks, size = shape
  a = jnp.pad(a_xT, (*[(0, 0)] * (a_xT.ndim - 1), (0, groups * chunks * size - a_xT.shape[-1])))
  return jnp.moveaxis(a.reshape(*a.shape[:-1], *shape), (-3, -2), (0, 1))


def _join(a, total: int):
  """And back."""
  return jnp.moveaxis(a, (0, 1), (-3, -2)).reshape(*a.shape[2:-1], -1)[..., :total]
