"""A linear memory that is read by every token after that token has written: the chunked scan of the
gated delta rule (arXiv 2412.06464) and of selective state spaces (Mamba-2, arXiv 2405.21060).

    W_t = W_{t-1} (alpha_t I - step_t k_t k_t^T) + v_t k_t^T,     y_t = W_t q_t

With step_t = alpha_t beta_t and v_t = beta_t value_t this is the gated delta rule; without steps,
the state space. Unlike memories whose gradients are taken at the start of a chunk, it depends on no
chunks: their size is a matter of speed. In a chunk, with the letters of delta_rule.py, are known
before any memory is, for all chunks at once,

    a_ts = (Gamma_t / Gamma_s) k_s.q_t (s <= t),   (I + L) own = -v,   (I + L) seen = step Gamma k.

Then

    u = own + W_0 seen,   W_C = Gamma_C W_0 - sum_t (Gamma_C / Gamma_t) u_t k_t^T,
    y_t = Gamma_t W_0 q_t - sum_s a_ts u_s
        = -sum_s a_ts own_s + W_0 (Gamma_t q_t - sum_s a_ts seen_s),

where only u and W_C need a loop over chunks. Cost: O(T (C + D) D), no product of D x D matrices.
One token is a chunk of one. Letters: T tokens, C of a chunk, I width of keys, O of values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import delta_rule

CLEARED = delta_rule.FORGOTTEN  # log alpha of a document's first token: nothing of before is left


class _Chunk(NamedTuple):
  """What is known of a chunk before its memory is; `own` and `seen` as above."""
  k_IxC: jax.Array
  own_OxC: jax.Array
  seen_IxC: jax.Array | None  # None: no steps
  y_OxC: jax.Array  # read from what the chunk itself writes
  ask_IxC: jax.Array  # what is asked of the memory at the chunk's start
  after_C: jax.Array
  whole: jax.Array


def _prepare(q_IxC, k_IxC, v_OxC, log_alpha_C, step_C) -> _Chunk:
  decay = delta_rule.decay(log_alpha_C)
  alpha_C = jnp.exp(jnp.maximum(log_alpha_C, CLEARED))
  share_CxC = alpha_C[:, None] * decay.between_CxC + jnp.eye(alpha_C.size, dtype=alpha_C.dtype)
  share_CxC = share_CxC * (q_IxC.T @ k_IxC)
  own_OxC, ask_IxC, seen_IxC = -v_OxC, alpha_C * decay.before_C * q_IxC, None
  if step_C is not None:
    lower = delta_rule.couple(k_IxC, step_C, decay)
    right = jnp.concatenate([own_OxC, step_C * decay.before_C * k_IxC])
    solved = delta_rule.solve(lower, delta_rule.unit_lower_inverse(lower), right)
    own_OxC, seen_IxC = solved[:len(v_OxC)], solved[len(v_OxC):]
    ask_IxC -= seen_IxC @ share_CxC.T
  return _Chunk(k_IxC, own_OxC, seen_IxC, -own_OxC @ share_CxC.T, ask_IxC, decay.after_C,
                decay.whole)


def run(w_OxI, q_IxT, k_IxT, v_OxT, log_alpha_T, step_T=None, *, size: int):
  """Writes and reads all tokens of a call: (W after the last, y_OxT).

  Args:
    v_OxT, step_T, log_alpha_T: 0 at padding, which then changes nothing; log alpha is CLEARED at
      the first token of a document.
    size: tokens of a chunk.
  """
  total = q_IxT.shape[1]
  count = -(-total // size)

  def split(a_xT):
    a = jnp.pad(a_xT, [(0, 0)] * (a_xT.ndim - 1) + [(0, count * size - total)])
    return jnp.moveaxis(a.reshape(*a.shape[:-1], count, size), -2, 0)

  chunks = jax.vmap(_prepare)(*jax.tree.map(split, (q_IxT, k_IxT, v_OxT, log_alpha_T, step_T)))

  def write(w, c: _Chunk):
    u_OxC = c.own_OxC if c.seen_IxC is None else c.own_OxC + w @ c.seen_IxC
    return c.whole * w - (c.after_C * u_OxC) @ c.k_IxC.T, w

  w_OxI, starts_NxOxI = jax.lax.scan(write, w_OxI, chunks)
  y_NxOxC = chunks.y_OxC + starts_NxOxI @ chunks.ask_IxC
  return w_OxI, jnp.moveaxis(y_NxOxC, 0, 1).reshape(len(y_NxOxC[0]), -1)[:, :total]
