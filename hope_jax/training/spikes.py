"""What a bad step may do to the parameters: nothing.

A step is bad when its loss or its gradient norm is not finite, or when the norm is above
optim.skip_above times the mean norm of the steps before it. The verdict and its counts stay on the
device and are saved with the rest of TrainState, so that a resumed run judges as one that was never
stopped. The trainer reads the counts and acts on them (loop.py).
"""

from flax import struct
import jax
import jax.numpy as jnp

REMEMBERED = 100  # applied steps in the mean norm; older ones fade
SURE = 20  # applied steps before a norm can be called a spike


@struct.dataclass
class Guard:
  """Counts of a run so far; scalars."""
  norm: jax.Array  # mean gradient norm of the applied steps
  applied: jax.Array  # steps that are in the parameters
  skipped: jax.Array
  in_a_row: jax.Array  # skipped since the last applied step, or since the last rollback
  rollbacks: jax.Array


def fresh() -> Guard:
  """Of a run that begins."""
  return Guard(jnp.zeros(()), *(jnp.zeros((), jnp.int32) for _ in range(4)))


def judge(guard: Guard, loss, norm, skip_above: float) -> tuple[jax.Array, Guard]:
  """(whether a step with this loss and gradient norm is good, the counts after it)."""
  good = jnp.isfinite(loss) & jnp.isfinite(norm)
  if skip_above:
    good &= (norm <= skip_above * guard.norm) | (guard.applied < SURE)
  applied = guard.applied + good
  mean = guard.norm + (norm - guard.norm) / jnp.clip(applied, 1, REMEMBERED)
  return good, guard.replace(norm=jnp.where(good, mean, guard.norm), applied=applied,
                             skipped=guard.skipped + ~good,
                             in_a_row=jnp.where(good, 0, guard.in_a_row + 1))


def choose(good, new, old):
  """`new` where the step was good, `old` where it was not; trees of arrays."""
  return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
