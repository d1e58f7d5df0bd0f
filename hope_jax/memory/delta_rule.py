"""Chunk-parallel writes: C rank-one updates of a matrix at the cost of a few matrix products.

One sequence, one matrix W (O, I), with layer inputs x_t, forcings f_t, retention alpha_t:

    W_t = W_{t-1} (alpha_t I - step_t x_t x_t^T) - rate_t f_t x_t^T              (NL Eq. 90, 93)

Unrolled, with Gamma_t = prod_{s<=t} alpha_s,

    W_C = Gamma_C W_0 - sum_t (Gamma_C / Gamma_t) u_t x_t^T,

where u_t = step_t W_{t-1} x_t + rate_t f_t solves the unit lower-triangular system

    (I + L) u = r,   L_ts = step_t (Gamma_{t-1} / Gamma_s) x_s.x_t (s < t),
    r_t = step_t Gamma_{t-1} W_0 x_t + rate_t f_t.

A token with step = rate = 0 and log alpha = 0 changes nothing: that is how padding is written.
Letters: C tokens of the chunk, O and I the matrix's output and input widths. Tokens are the last
axis: every product below then reads and writes its operands in the order in which they lie in
memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory.products import gram

FORGOTTEN = -30.0  # log of a retention that is as good as 0; sums of lower ones would lose digits


def unit_lower_inverse(lower_CxC: jax.Array) -> jax.Array:
  """(I + L)^-1, L strictly lower triangular: merges neighbouring diagonal blocks, log2 C levels.

  Exact to rounding for any L (the Neumann product cancels catastrophically for correlated keys).
  """
  size = lower_CxC.shape[-1]
  full = 1 << (size - 1).bit_length()
  lower = jnp.pad(lower_CxC, (0, full - size))
  inverse = jnp.ones((full, 1, 1), lower.dtype)  # of each diagonal block
  width = 1
  while width < full:
    pairs = full // (2 * width)
    i = jnp.arange(pairs)
    off = lower.reshape(pairs, 2 * width, pairs, 2 * width)[i, width:, i, :width]
    top, bottom = inverse[0::2], inverse[1::2]
    corner = -_product(_product(bottom, off), top)
    inverse = jnp.concatenate([
        jnp.concatenate([top, jnp.zeros_like(top)], -1), jnp.concatenate([corner, bottom], -1)], -2)
    width *= 2
  return inverse[0, :size, :size]


def _product(a, b):
  """Matrix product; very small ones as sums, which XLA fuses: no kernel is called for each."""
  return a @ b if a.shape[-1] > 4 else jnp.sum(a[..., :, :, None] * b[..., None, :, :], -2)


@jax.custom_vjp
def solve(lower_CxC: jax.Array, inverse_CxC: jax.Array, right_OxC: jax.Array) -> jax.Array:
  """U with (I + L) U^T = R^T, given (I + L)^-1, with which two products give the gradient."""
  del lower_CxC
  return right_OxC @ inverse_CxC.T


def _solve_forward(lower_CxC, inverse_CxC, right_OxC):
  solution = solve(lower_CxC, inverse_CxC, right_OxC)
  return solution, (inverse_CxC, solution)


def _solve_backward(residuals, grad_OxC):
  inverse_CxC, solution_OxC = residuals
  grad_right = grad_OxC @ inverse_CxC
  return -jnp.tril(grad_right.T @ solution_OxC, -1), None, grad_right


solve.defvjp(_solve_forward, _solve_backward)


def _ratios(later_C, earlier_C, diagonal: int):
  """exp(later_t - earlier_s) where s <= t + diagonal, else 0: masked before exp, to stay finite.

  At most 1 but for rounding: in float32 1e-6 for each token of the chunk, for any retention.
  """
  mask = jnp.tril(jnp.ones((later_C.size, earlier_C.size), bool), diagonal)
  return jnp.exp(jnp.where(mask, later_C[:, None] - earlier_C, -jnp.inf))


class Decay(NamedTuple):
  """How the writes of a chunk fade: Gamma_t = prod_{s<=t} alpha_s."""
  before_C: jax.Array  # Gamma_{t-1}: of what was there, when token t comes
  between_CxC: jax.Array  # Gamma_{t-1} / Gamma_s for s < t, else 0
  after_C: jax.Array  # Gamma_C / Gamma_t: of the write of t, at the end
  whole: jax.Array  # Gamma_C


def decay(log_alpha_C) -> Decay:
  """Computed once a chunk, from log alpha."""
  log_alpha_C = jnp.maximum(log_alpha_C, FORGOTTEN)
  log_gamma = jnp.cumsum(log_alpha_C)
  before = log_gamma - log_alpha_C
  return Decay(jnp.exp(before), _ratios(before, log_gamma, -1), jnp.exp(log_gamma[-1] - log_gamma),
               jnp.exp(log_gamma[-1]))


def couple(x_IxC, step_C, decay: Decay):
  """L: how much of the write of token s every later token t finds at its own input."""
  return step_C[:, None] * decay.between_CxC * gram(x_IxC)


def write(w_OxI, x_IxC, seen_OxC, forcing_OxC, step_C, decay: Decay, lower_CxC, inverse_CxC):
  """W_C of the recurrence above. Rows of matrices with the same inputs may be stacked along O.

  Args:
    seen_OxC: W_0 x_t.
    forcing_OxC: rate_t f_t.
    lower_CxC, inverse_CxC: `couple` of the same inputs, and its `unit_lower_inverse`.
  """
  u_OxC = solve(lower_CxC, inverse_CxC, step_C * decay.before_C * seen_OxC + forcing_OxC)
  return decay.whole * w_OxI - (decay.after_C * u_OxC) @ x_IxC.T


def write_decayed(w_OxI, x_IxC, forcing_OxC, decay: Decay):
  """The same without the rank-one factor: W_t = alpha_t W_{t-1} - rate_t f_t x_t^T."""
  return decay.whole * w_OxI - (decay.after_C * forcing_OxC) @ x_IxC.T


def write_momentum(w_OxI, m_OxI, x_IxC, pairs, step_C, rate_C, log_alpha_C, log_beta_C):
  """The general write: gradients of several outer products, and momentum over them.

      m_t = beta_t m_{t-1} + sum_j f^j_t (z^j_t)^T
      W_t = W_{t-1} (alpha_t I - step_t x_t x_t^T) - rate_t m_t

  Momentum only changes the weights of the outer products: W_t holds sum_r P_tr G_r with
  P_tr = sum_{r<=s<=t} (Gamma_t / Gamma_s) rate_s beta^(s-r).

  Args:
    pairs: sequence of (f_OxC, z_IxC), zero where the token is padding.
    step_C: of the rank-one factor, or None for none.
    log_beta_C: log of momentum per token (0 at padding), or None for no momentum: m_t is then the
      gradient.

  Returns:
    (w_OxI, m_OxI) after the chunk.
  """
  log_alpha_C = jnp.maximum(log_alpha_C, FORGOTTEN)
  log_gamma = jnp.cumsum(log_alpha_C)
  if log_beta_C is None:
    blend_CxC, carried_C = jnp.eye(log_alpha_C.size, dtype=w_OxI.dtype), jnp.zeros_like(log_alpha_C)
  else:
    total = jnp.cumsum(log_beta_C)
    blend_CxC, carried_C = _ratios(total, total, 0), jnp.exp(total)  # beta^(s-r), beta^s
  held_CxC = _ratios(log_gamma, log_gamma, 0) * rate_C  # (Gamma_t / Gamma_s) rate_s
  weight_CxC, kept_C = held_CxC @ blend_CxC, held_CxC @ carried_C  # P, and the same for m_0

  w_next = jnp.exp(log_gamma[-1]) * w_OxI - kept_C[-1] * m_OxI
  for f, z in pairs:
    w_next -= (weight_CxC[-1] * f) @ z.T
  if step_C is not None:
    earlier_CxC = jnp.pad(weight_CxC, ((1, 0), (0, 0)))[:-1]  # P at t - 1
    seen = jnp.exp(log_gamma - log_alpha_C) * (w_OxI @ x_IxC)
    seen -= jnp.pad(kept_C, (1, 0))[:-1] * (m_OxI @ x_IxC)
    for f, z in pairs:
      seen -= f @ (earlier_CxC * (x_IxC.T @ z)).T
    lower = couple(x_IxC, step_C, decay(log_alpha_C))
    own = solve(lower, unit_lower_inverse(lower), step_C * seen)
    w_next -= (jnp.exp(log_gamma[-1] - log_gamma) * own) @ x_IxC.T

  m_next = carried_C[-1] * m_OxI
  for f, z in pairs:
    m_next += (blend_CxC[-1] * f) @ z.T
  return w_next, m_next
