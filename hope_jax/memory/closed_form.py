"""Several updates of a level in one chunk, in closed form: for inner rules that are linear in the
gradients, and for the L2 rule. No matrix is made for a period.
"""

import jax
import jax.numpy as jnp
import optax

from hope_jax.memory import delta_rule, inner_rules, level
from hope_jax.memory.level import Force


def along(flag_B, array):
  """The flags, to choose along the array's first axis."""
  return flag_B.reshape(-1, *[1] * (array.ndim - 1))


def update(clock, lr, weights, state, force, open_BxC, happens_BxG):
  """All updates of a chunk at once: the level's state after them.

  Args:
    clock, lr, state, force, open_BxC: as of level_write.write.
    weights: those that the chunk was read with.
    happens_BxG: periods that end in it and have taught something.
  """
  wide = jax.tree.leaves(weights)[0].dtype
  writes_BxC = (open_BxC & _to_tokens(clock, happens_BxG)).astype(wide)
  if clock.rule == "nl_l2_precond":
    change = jax.tree.map(lambda f, w: _l2_change(clock, lr, f, w, writes_BxC), force,
                          weights, is_leaf=level.is_force)
    return state.replace(delta=jax.tree.map(jnp.add, state.delta, change))
  if clock.rule == "nl_l2_projector":
    force = jax.tree.map(lambda f: _projected(clock, f, writes_BxC), force, is_leaf=level.is_force)
  return _averaged(clock, lr, state, force, writes_BxC, happens_BxG)


def _to_tokens(clock, a_BxG):
  """(B, C): to each token what its period has."""
  return jnp.repeat(a_BxG, clock.period, 1)


def _averaged(clock, lr, state, force, writes_BxC, happens_BxG):
  """Updates with a moving average m of the gradients, added up over the chunk's periods.

  Each gradient enters delta and m with a weight that depends on the updates still to come
  (`inner_rules.ema_weights`): two weighted sums over the tokens are all that is needed.
  """
  beta = 0.0 if clock.rule == "sgd" else clock.beta
  weights = jax.vmap(lambda happens_G: inner_rules.ema_weights(beta, happens_G))(happens_BxG)
  weight_BxG, keep_BxG, carry_B, decay_B = (a.astype(writes_BxC.dtype) for a in weights)

  def total(of_period_BxG):
    weight_BxC = _to_tokens(clock, of_period_BxG) * writes_BxC
    return jax.tree.map(lambda f: level.gradient(f, weight_BxC), force, is_leaf=level.is_force)

  if clock.rule == "sgd":
    return state.replace(
        delta=jax.tree.map(lambda d, g: d - lr * g, state.delta, total(weight_BxG)))
  m = optax.tree.get(state.rule, "trace")
  delta = jax.tree.map(lambda d, m, g: d - lr * (along(carry_B, m) * m + g), state.delta, m,
                       total(weight_BxG))
  m = jax.tree.map(lambda m, g: along(decay_B, m) * m + g, m, total(keep_BxG))
  return state.replace(delta=delta, rule=optax.tree.set(state.rule, trace=m))


def _projected(clock, force: Force, writes_BxC) -> Force:
  """Inputs without their component along the period's mean input."""
  if force.input_BxCxI is None:
    return force
  x_BxCxI = force.input_BxCxI.astype(force.force_BxCxO.dtype)
  x = x_BxCxI.reshape(len(x_BxCxI), clock.groups, clock.period, -1)
  total = jnp.sum(x * writes_BxC.reshape(*x.shape[:3], 1), 2, keepdims=True)
  square = jnp.maximum(jnp.sum(total * total, -1, keepdims=True), inner_rules.NORM_FLOOR ** 2)
  along = total * jnp.sum(total * x, -1, keepdims=True) / square
  return force._replace(input_BxCxI=(x - along).reshape(x_BxCxI.shape))


def _l2_change(clock, lr, force: Force, weights, writes_BxC):
  """W_G - W_0 of the L2 rule's updates, solved at once.

  W_g = W_{g-1} - step_g (X_g^T X_g W_{g-1} + X_g^T F_g), step_g = lr / (1 + lr ||X_g||^2): the
  tokens' writes X^T U obey (I + L) U = step (X W_0 + F), L_ts = step_t x_t.x_s for s in an earlier
  period than t.
  """
  if force.input_BxCxI is None:
    return -lr * level.gradient(force, writes_BxC)
  group_C = jnp.arange(clock.chunk) // clock.period
  earlier_CxC = group_C[:, None] > group_C

  def one(x_CxI, f_CxO, w_IxO, writes_C):
    x_CxI = x_CxI.astype(w_IxO.dtype)
    square_G = jnp.sum((jnp.sum(x_CxI * x_CxI, -1) * writes_C).reshape(clock.groups, -1), -1)
    step_C = writes_C * jnp.repeat(lr / (1 + lr * square_G), clock.period)
    lower = jnp.where(earlier_CxC, step_C[:, None] * (x_CxI @ x_CxI.T), 0.0)
    right_OxC = (step_C[:, None] * (x_CxI @ w_IxO + f_CxO)).T
    return -x_CxI.T @ delta_rule.solve(lower, delta_rule.unit_lower_inverse(lower), right_OxC).T

  return jax.vmap(one)(force.input_BxCxI, force.force_BxCxO, weights, writes_BxC)
