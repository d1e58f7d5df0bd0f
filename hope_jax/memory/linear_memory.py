"""Linear memories M(z) = W z of one stream and head: they all share one transition.

The inner gradient of ||M k - M v||^2 at the chunk-start weights M_c is 2 M_c (k - v) k^T: M_c times
something that is the same for every memory. So M = M_c turn, with one D x D matrix `turn` a head,
written token by token from the identity. With momentum m, M = [M_c | m_c] turn and m = [M_c | m_c]
push: both have 2D rows, and start from [I; 0] and [0; I].

Rows of the stacked weights: k, v, (q), eta, alpha, mem. Letters: C tokens, D head width, R rows, S
= D or 2D, G groups of memories (1 or 2), N = G S.
"""

import jax.numpy as jnp

from hope_jax.memory import delta_rule
from hope_jax.memory.write_rule import Rule, length, log_momentum, rate_size, running_size
from hope_jax.memory.write_rule import step_size


def rows(rule: Rule, width: int) -> dict[str, slice]:
  """Where each memory's rows lie in the stack."""
  names = ["k", "v"] + (["q"] if rule.adaptive_q else []) + ["eta", "alpha", "mem"]
  where, at = {}, 0
  for name in names:
    size = 1 if name in ("eta", "alpha") else width
    where[name] = slice(at, at + size)
    at += size
  return where


def _groups(rule: Rule) -> int:
  """2 where the generators and M_mem have chunks of their own."""
  return 1 if rule.chunk_memory == rule.chunk_generators else 2


def fresh(rule: Rule, params: dict) -> dict:
  """The state at the start of a document: start_RxS = [M_c | m_c], turn_GxSxD, push_GxSxD."""
  w = params["w"]
  width = w.shape[-1]
  one, none = jnp.eye(width, dtype=w.dtype), jnp.zeros((width, width), w.dtype)
  groups = _groups(rule)
  if not rule.momentum:
    return {"start": w, "turn": jnp.stack([one] * groups)}
  turn, push = jnp.concatenate([one, none]), jnp.concatenate([none, one])
  return {"start": jnp.concatenate([w, jnp.zeros_like(w)], -1), "turn": jnp.stack([turn] * groups),
          "push": jnp.stack([push] * groups), "size": jnp.zeros((), w.dtype)}


def settle(rule: Rule, params: dict, state: dict, at_generators, at_memory) -> dict:
  """At a chunk boundary the weights that were written become the weights that are read."""
  still = fresh(rule, params)
  split = state["start"].shape[0] - params["w"].shape[-1]  # the generators' rows come first

  def move(start, group, at):
    turned = start @ state["turn"][group]
    if rule.momentum:
      turned = jnp.concatenate([turned, start @ state["push"][group]], -1)
    return turned if at is True else jnp.where(at, turned, start)

  out = dict(state)
  out["start"] = jnp.concatenate([
      move(state["start"][:split], 0, at_generators), move(state["start"][split:], -1, at_memory)])
  if at_generators is True and at_memory is True:
    return {**out, **{name: still[name] for name in ("turn", "push") if name in state}}
  at = jnp.stack([jnp.asarray(at_generators),
                  jnp.asarray(at_memory)][:_groups(rule)])[:, None, None]
  for name in ("turn", "push"):
    if name in state:
      out[name] = jnp.where(at, still[name], state[name])
  return out


def weights(rule: Rule, params: dict, state: dict):
  """Every memory's current weights, the open chunk's writes included: dict of (rows, D)."""
  settled = settle(rule, params, state, True, True)["start"]
  width = params["w"].shape[-1]
  out = {name: settled[where, :width] for name, where in rows(rule, width).items()}
  if not rule.alpha:  # nothing reads M_alpha, which keeps its initial weights
    out["alpha"] = params["w"][rows(rule, width)["alpha"]]
  return out


def generate(rule: Rule, params: dict, state: dict, xk_DxC, xv_DxC, xq_DxC):
  """Raw reads from the chunk-start weights: (k, v, q, eta, alpha) before any non-linearity."""
  width = xk_DxC.shape[0]
  where, w = rows(rule, width), state["start"][:, :width]
  from_k = jnp.concatenate([w[where["k"]], w[where["eta"]], w[where["alpha"]]]) @ xk_DxC
  w_q = w[where["q"]] if rule.adaptive_q else params["w_q"]
  return from_k[:width], w[where["v"]] @ xv_DxC, w_q @ xq_DxC, from_k[width], from_k[width + 1]


def read(rule: Rule, state: dict, q_DxC):
  """M_mem(q)."""
  width = q_DxC.shape[0]
  return state["start"][rows(rule, width)["mem"], :width] @ q_DxC


def _gradients(rule: Rule, k_DxC, v_DxC) -> list:
  """The inner gradients as outer products M_c f z^T: pairs (f_DxC, z_DxC), times the rule's sign.
  """
  return [(rule.sign * f, z) for f, z in _products(rule, k_DxC, v_DxC)]


def _products(rule: Rule, k_DxC, v_DxC) -> list:
  if rule.objective == "l2":
    return [(2 * (k_DxC - v_DxC), k_DxC)] + (
        [(2 * (v_DxC - k_DxC), v_DxC)] if rule.target_gradient else [])
  return [(-v_DxC, k_DxC)] + ([(-k_DxC, v_DxC)] if rule.target_gradient else [])


def _forcing(rule: Rule, f_DxC):
  """f for `turn`: (N, C), nothing in the rows of m_c, every group the same."""
  f_SxC = jnp.concatenate([f_DxC, jnp.zeros_like(f_DxC) if rule.momentum else f_DxC[:0]])
  return jnp.tile(f_SxC, (_groups(rule), 1))


def write(rule: Rule, state: dict, token) -> dict:
  """All memories take the chunk's tokens; `token` is self_modifying.Token."""
  pairs = _gradients(rule, token.k, token.v)
  out = dict(state)
  step = rate = step_size(rule, token.eta, token.k)
  if rule.bound:
    size = sum(length(f) * length(z) for f, z in pairs)
    size = running_size(rule, state.get("size"), size, token.valid)
    rate = rate_size(step, size, token.k, token.alpha, token.forget, 1.0, rule.rank_one)
    if rule.momentum:
      out["size"] = size[-1]
  moved = {name: state[name].reshape(-1, len(token.k))
           for name in ("turn", "push") if name in state}
  moved = (_write_general if rule.general else _write)(rule, moved, token, pairs, step, rate)
  return out | {name: a_NxD.reshape(state[name].shape) for name, a_NxD in moved.items()}


def _write(rule: Rule, moved, token, pairs, step_C, rate_C) -> dict:
  """`moved` (turn_NxD) after the chunk, with one outer product a token."""
  turn_NxD, decay = moved["turn"], delta_rule.decay(token.log_alpha)
  forcing_NxC = rate_C * _forcing(rule, pairs[0][0])
  if not rule.rank_one:
    return {"turn": delta_rule.write_decayed(turn_NxD, token.k, forcing_NxC, decay)}
  lower = delta_rule.couple(token.k, step_C, decay)
  return {"turn": delta_rule.write(turn_NxD, token.k, turn_NxD @ token.k, forcing_NxC, step_C,
                                   decay, lower, delta_rule.unit_lower_inverse(lower))}


def _write_general(rule: Rule, moved, token, pairs, step_C, rate_C) -> dict:
  """The same with momentum (push_NxD), or gradients of two outer products."""
  turn_NxD, kept_C = moved["turn"], jnp.where(token.valid, 1.0, 0.0)
  push_NxD = moved["push"] if rule.momentum else jnp.zeros_like(turn_NxD)
  turn_NxD, push_NxD = delta_rule.write_momentum(
      turn_NxD, push_NxD, token.k, [(_forcing(rule, f * kept_C), z) for f, z in pairs],
      step_C if rule.rank_one else None, rate_C, token.log_alpha,
      log_momentum(rule, token.valid, token.k.dtype))
  return {"turn": turn_NxD} | ({"push": push_NxD} if rule.momentum else {})
