"""Linear memories M(z) = W z of one stream and head: they all share one transition.

The inner gradient of ||M k - M v||^2 at the chunk-start weights M_c is 2 M_c (k - v) k^T: M_c times
something that is the same for every memory. So M = M_c G with one D x D transition G per head,
written token by token from the identity. With momentum m = M_c G' + m_c K' as well: the transition
then acts on [M_c | m_c] and has 2D rows.

Rows of the stacked weights: k, v, (q), eta, alpha, mem. Letters: C tokens, D head width, R rows, S
= D or 2D.
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
  return 1 if rule.chunk_memory == rule.chunk_generators else 2


def fresh(rule: Rule, params: dict) -> dict:
  """The state at the start of a document: `start_RxS` is read, `turn_GxSxD` has moved on since.

  G is 2 where the generators and M_mem have chunks of their own, else 1.
  """
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


def write(rule: Rule, state: dict, token) -> dict:
  """All memories take the chunk's tokens; `token` is selfmod.Token."""
  k, v = token.k, token.v
  if rule.objective == "l2":
    pairs = [(2 * (k - v), k)] + ([(2 * (v - k), v)] if rule.target_gradient else [])
  else:
    pairs = [(-v, k)] + ([(-k, v)] if rule.target_gradient else [])
  out = dict(state)
  step = rate = step_size(rule, token.eta, k)
  if rule.bound:
    size = sum(length(f) * length(z) for f, z in pairs)
    size = running_size(rule, state.get("size"), size, token.valid)
    rate = rate_size(step, size, k, token.alpha, token.forget, 1.0, rule.rank_one)
    if rule.momentum:
      out["size"] = size[-1]

  shape = state["turn"].shape
  turn = state["turn"].reshape(-1, shape[-1])  # both groups' rows: the same tokens write them
  def spread(f):
    rest = jnp.zeros_like(f) if rule.momentum else f[:0]
    return jnp.tile(jnp.concatenate([f, rest]), (_groups(rule), 1))
  if rule.general:
    kept = jnp.where(token.valid, 1.0, 0.0)
    push = state["push"].reshape(turn.shape) if rule.momentum else jnp.zeros_like(turn)
    turn, push = delta_rule.write_momentum(
        turn, push, k, [(spread(f * kept), z) for f, z in pairs], step if rule.rank_one else None,
        rate, token.log_alpha, log_momentum(rule, token.valid, k.dtype))
    if rule.momentum:
      out["push"] = push.reshape(shape)
  else:
    decay, forcing = delta_rule.decay(token.log_alpha), rate * spread(pairs[0][0])
    if rule.rank_one:
      lower = delta_rule.couple(k, step, decay)
      turn = delta_rule.write(turn, k, turn @ k, forcing, step, decay, lower,
                              delta_rule.unit_lower_inverse(lower))
    else:
      turn = delta_rule.write_decayed(turn, k, forcing, decay)
  out["turn"] = turn.reshape(shape)
  return out
