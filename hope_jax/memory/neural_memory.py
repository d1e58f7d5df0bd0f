"""Titans' neural memory (arXiv 2501.00663) of one stream and head: a small network whose weights
take a step of gradient descent with momentum and forgetting at every token.

    S_t = b_t S_{t-1} - step_t grad ||M(k_t) - v_t||^2,     M_t = (1 - a_t) M_{t-1} + S_t

Gradients are taken at the weights that stood at the start of the chunk, which are also those that
its tokens read: retrieved before updated. The network has 1 to 4 matrices with gelu between, and
with a gain it is M(z) = z + (1 + gain) norm(MLP(z)).

In a chunk the pair (M, S) is moved by one upper triangular 2 x 2 matrix a token, so the weights
with which a token's gradient enters M and S at the end are products of those after it: one
associative scan over scalars, known before any memory is. Every matrix then takes one product a
chunk; a token's outer product is never made. Letters: T tokens, C of a chunk, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import chunks
from hope_jax.memory.products import apply, gelu

NORM_EPSILON = 1e-5


class Token(NamedTuple):
  """What a call's tokens read and write. Padding has step and forget 0, momentum 1, valid False."""
  q_DxT: jax.Array
  k_DxT: jax.Array
  v_DxT: jax.Array
  step_T: jax.Array
  momentum_T: jax.Array  # b
  forget_T: jax.Array  # a
  valid_T: jax.Array  # bool: writes
  first_T: jax.Array  # bool: a document begins
  boundary_T: jax.Array  # bool: a chunk of the document begins


def fresh(params: dict) -> dict:
  """The state at the start of a document: `start` is read, `run` is written, S is zero."""
  return {"start": params, "run": params, "surprise": jax.tree.map(jnp.zeros_like, params)}


def answer(weights: dict, z_DxC, added: dict | None = None):
  """(M(z), {matrix: its input}).

  Args:
    weights: "w_0", "w_1", ... (out, in), and perhaps "gain" (D,).
    added: zeros for every token, of the same names: at the matrices' outputs, and to the gain.
  """
  h, inputs = z_DxC, {}
  def with_added(name, value):
    return value if added is None else value + added[name]
  for name in [f"w_{i}" for i in range(len(weights) - ("gain" in weights))]:
    inputs[name] = gelu(h) if inputs else h
    h = with_added(name, apply(weights[name], inputs[name]))
  if "gain" not in weights:
    return h, inputs
  h = h - jnp.mean(h, 0)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, 0) + NORM_EPSILON)
  return z_DxC + with_added("gain", 1 + weights["gain"][:, None]) * h, inputs


def gradients(weights: dict, k_DxC, v_DxC):
  """Of ||M(k_t) - v_t||^2, token by token: (at what `answer` adds, the matrices' inputs).

  The gradient of a matrix is the sum over tokens of f_t x_t^T, f what this gives, x the input.
  """
  def loss(added):
    answered, inputs = answer(weights, k_DxC, added)
    return jnp.sum(jnp.square(answered - v_DxC)), inputs

  zeros = {name: jnp.zeros((len(w), k_DxC.shape[1]), w.dtype) for name, w in weights.items()}
  return jax.grad(loss, has_aux=True)(zeros)


class Moves(NamedTuple):
  """How (M, S) at the end of a chunk depend on what was there, and on each token's own step.

      M = (1 - lost) M_0 + kept S_0 - sum_t into_memory_t step_t g_t,
      S = (1 - slowed) S_0 - sum_t into_surprise_t step_t g_t

  lost, kept and slowed are those of the chunk from a token on: of all of it at the first. Where
  there is no token, all are 0.
  """
  lost_C: jax.Array
  kept_C: jax.Array
  slowed_C: jax.Array
  into_memory_C: jax.Array
  into_surprise_C: jax.Array


def moves(momentum_C, forget_C, valid_C) -> Moves:
  """Of one chunk, by an associative scan from its end."""
  real_C = valid_C.astype(momentum_C.dtype)

  def combine(later, earlier):
    return (later[0] * earlier[0], later[0] * earlier[1] + later[1] * earlier[2],
            later[2] * earlier[2])

  each = 1 - forget_C, real_C * momentum_C, momentum_C  # [[whole, kept], [0, carried]] of a token
  whole_C, kept_C, carried_C = jax.lax.associative_scan(combine, each, reverse=True)
  def after(a_C, at_end):
    return jnp.concatenate([a_C[1:], jnp.full_like(a_C[:1], at_end)])
  return Moves(1 - whole_C, kept_C, 1 - carried_C,
               real_C * after(whole_C, 1) + after(kept_C, 0), after(carried_C, 1))


def _all_moves(token: Token, size: int) -> Moves:
  """Of every chunk of a call, as arrays of T."""
  total = len(token.valid_T)
  def split(a_T, neutral):
    a_T = jnp.pad(a_T, (0, -total % size), constant_values=neutral)
    return a_T.reshape(-1, size)
  own = jax.vmap(moves)(split(token.momentum_T, 1), split(token.forget_T, 0),
                        split(token.valid_T, False))
  return jax.tree.map(lambda a: a.reshape(-1)[:total], own)


def write(state: dict, forcing: dict, inputs: dict, own: Moves) -> dict:
  """The state after the chunk; `forcing`: `gradients`, times each token's step."""
  whole, kept, carried = 1 - own.lost_C[0], own.kept_C[0], 1 - own.slowed_C[0]
  run, surprise = {}, {}
  for name, f_OxC in forcing.items():
    def summed(weight_C):
      weighted = weight_C * f_OxC
      return weighted @ inputs[name].T if name in inputs else weighted.sum(-1)
    before, speed = state["run"][name], state["surprise"][name]
    run[name] = whole * before + kept * speed - summed(own.into_memory_C)
    surprise[name] = carried * speed - summed(own.into_surprise_C)
  return state | {"run": run, "surprise": surprise}


def chunk(state: dict, token: Token, own: Moves):
  """Reads and writes one chunk, or a part of one: (state, y_DxC)."""
  start = state["start"]
  y_DxC, _ = answer(start, token.q_DxT)
  forcing, inputs = gradients(start, token.k_DxT, token.v_DxT)
  forcing = {name: token.step_T * f_OxC for name, f_OxC in forcing.items()}
  return write(state, forcing, inputs, own), y_DxC


def run(params: dict, state: dict | None, token: Token, *, size: int, remat: int = 0):
  """Reads and writes all tokens of a call, chunk by chunk: (state, y_DxT).

  Args:
    params: initial weights.
    state: where the stream is; None: documents start in this call, at multiples of `size`, and
      nothing follows.
    token: a token's index in T is its position modulo `size` (model/slots.py), or T is 1.
    size: tokens of a chunk.
    remat: recompute the backward pass in groups of this many chunks; 0: store everything.
  """
  initial, one = fresh(params), len(token.valid_T) == 1
  if aligned := state is None and not one:  # what is read is what was written
    initial.pop("start")

  def step(state, xs):
    token, own = xs
    boundary = None if aligned else token.boundary_T[0]
    new, y_DxC = chunk(begin(initial, state, token.first_T[0], boundary), token, own)
    return {part: new[part] for part in state}, y_DxC

  size = 1 if one else size
  return chunks.scan(step, initial if state is None else state, (token, _all_moves(token, size)),
                     size, remat)


def begin(initial: dict, state: dict, first, boundary=None) -> dict:
  """The state that a chunk reads: initial where a document begins; at a boundary, as written.

  boundary: None: every chunk starts on one, and the state does not hold what is read.
  """
  state = jax.tree.map(lambda s, n: jnp.where(first, n, s), state, initial)
  if boundary is None:
    return state | {"start": state["run"]}
  start = jax.tree.map(lambda s, n: jnp.where(boundary, n, s), state["start"], state["run"])
  return state | {"start": start}
