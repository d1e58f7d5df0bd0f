"""Self-modifying Titans, one stream and head: memories that generate their own keys, values, step
sizes, retention and targets (NL Eq. 83-93).

Tokens are processed `rule.chunk` at a time: everything a token reads comes from the weights at the
start of its chunk, every token writes, and at the chunk's end what was written becomes what is
read. The state therefore holds both, so that a document may be cut anywhere: 64 tokens in one call,
or one at a time.

Letters: T tokens of a call, C of a chunk, D head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import chunks, linear_memory, mlp_memory
from hope_jax.memory.write_rule import Rule, unit


class Token(NamedTuple):
  """What a chunk's tokens write. Padding has eta 0 and alpha 1, which writes nothing."""
  k: jax.Array  # (D, C)
  v: jax.Array  # (D, C)
  eta: jax.Array  # (C,)
  alpha: jax.Array  # (C,)
  log_alpha: jax.Array  # (C,), never log(sigmoid)
  forget: jax.Array  # (C,) 1 - alpha, without cancellation
  valid: jax.Array  # (C,) bool


def memories(rule: Rule):
  """The functions of the memory kind: fresh, settle, generate, read, write, weights."""
  return {"mlp": mlp_memory, "linear": linear_memory}[rule.memory]


def fresh(rule: Rule, params: dict) -> dict:
  """The state of one stream and head before its first token."""
  return memories(rule).fresh(rule, params)


def chunk(rule: Rule, params: dict, state: dict, xk_DxC, xv_DxC, xq_DxC, valid_C):
  """Reads and writes one chunk, or a part of one: (y_DxC, state, Token)."""
  memory = memories(rule)
  k, v, q, eta, alpha = memory.generate(rule, params, state, xk_DxC, xv_DxC, xq_DxC)
  y_DxC = memory.read(rule, state, unit(k if rule.keys_as_queries else q))
  alpha += params["b_alpha"]
  eta = jnp.where(valid_C, rule.eta_scale * jax.nn.softplus(eta + params["b_eta"]), 0.0)
  keep = valid_C & rule.alpha
  token = Token(
      unit(k), v, eta, jnp.where(keep, jax.nn.sigmoid(alpha), 1.0),
      jnp.where(keep, jax.nn.log_sigmoid(alpha), 0.0),
      jnp.where(keep, jax.nn.sigmoid(-alpha), 0.0), valid_C)
  return y_DxC, memory.write(rule, state, token), token


def run(rule: Rule, params: dict, state: dict | None, xk_DxT, xv_DxT, xq_DxT, valid_T, position_T,
        writes=True, *, truncate: int = 0, remat: int = 0):
  """Reads and writes all tokens of a call, chunk by chunk.

  Args:
    state: where the stream is; None: documents start in this call, at multiples of `rule.grid`, and
      nothing follows. (Every chunk then starts on a boundary, which saves the bookkeeping of open
      chunks.)
    valid_T: False at padding, which neither writes nor counts.
    position_T: of the token in its document; a token's index in T is its position modulo
      `rule.grid` (model/slots.py), or T is 1.
    writes: False: the memories are read, and stay as they are.
    truncate: the outer gradient flows through the writes of at most this many chunks; 0: through
      all.
    remat: recompute the backward pass in groups of this many chunks; 0: store everything.

  Returns:
    (y_DxT, state, {"eta_T", "alpha_T"}); after a call with state None, the state is good for
    `weights` only.
  """
  total, initial, from_start = xk_DxT.shape[1], fresh(rule, params), state is None
  size = 1 if total == 1 else rule.chunk

  def step(state, tokens):
    *x, valid_C, position_C, index_C = tokens
    if truncate:
      state = _cut(state, initial, index_C[0] // size % truncate == 0)
    state = _begin(rule, params, initial, state, position_C[0], valid_C[0], from_start and size)
    y_DxC, state, token = chunk(rule, params, state, *x, valid_C & writes)
    return state, (y_DxC, token.eta, token.alpha)

  tokens = xk_DxT, xv_DxT, xq_DxT, valid_T, position_T, jnp.arange(total)
  state, (y_DxT, eta_T, alpha_T) = chunks.scan(step, initial if from_start else state, tokens, size,
                                               remat)
  return y_DxT, state, {"eta_T": eta_T, "alpha_T": alpha_T}


def _cut(state, initial, here):
  """What was written becomes data; the initial values stay differentiable, and no value changes."""
  def cut(s, n):
    data = jax.lax.stop_gradient(s) + (n - jax.lax.stop_gradient(n))
    return jnp.where(here, data, s)
  return jax.tree.map(cut, state, initial)


def _begin(rule: Rule, params, initial, state, position, valid, aligned):
  """The state that a chunk reads, by the position of its first token, if that is valid.

  Initial weights where a document begins; at a boundary, what was written. aligned: the chunk size
  known to meet every boundary, or False.
  """
  at = [aligned == every or valid & (position % every == 0)
        for every in (rule.chunk_generators, rule.chunk_memory)]
  begins = valid & (position % rule.grid == 0 if rule.reset else position == 0)
  state = jax.tree.map(lambda s, n: jnp.where(begins, n, s), state, initial)
  return memories(rule).settle(rule, params, state, *at)


def parameter_shapes(rule: Rule, width: int, hidden: int, gate_skip: bool = False) -> dict:
  """Shapes of one head's initial weights."""
  if rule.memory == "linear":
    return {"w": (max(s.stop for s in linear_memory.rows(rule, width).values()), width)}
  count = len(mlp_memory.vectors(rule))
  shapes = {"v_in": (count, hidden, width), "v_out": (count, width, hidden),
            "g_in": (2, hidden, width), "g_out": (2, 1, hidden)}
  return shapes | ({"g_skip": (2, 1, width)} if gate_skip else {})


def empty_memory(rule: Rule, batch: int, heads: int, width: int, hidden: int,
                 gate_skip: bool = False) -> dict:
  """The state of streams that have read nothing: zeros, which their first token replaces."""
  params = {name: jnp.zeros(shape)
            for name, shape in parameter_shapes(rule, width, hidden, gate_skip).items()}
  shapes = jax.eval_shape(lambda p: fresh(rule, p), params)
  return jax.tree.map(lambda s: jnp.zeros((batch, heads, *s.shape), s.dtype), shapes)
