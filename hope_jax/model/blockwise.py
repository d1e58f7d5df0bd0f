"""Causal softmax attention in blocks with a running maximum (arXiv 2112.05682, 2205.14135).

Nothing of size S x S is held, and blocks above the diagonal are not computed. Pairs of a block of
queries and a block of keys come one after the other; of three blocks without a window:

    queries 0  1  1  2  2  2
    keys    0  0  1  0  1  2

A block of queries keeps what its pairs so far have: the largest score, the sum of the weights and
the weighted sum of values. The backward pass takes the same pairs and computes the weights again.

Letters: B streams, S slots, H heads, K head width; G blocks of N slots.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model.slots import Layout, visible

HIDDEN = -1e30  # score of a key that a query may not see


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q_BxSxHxK, k_BxSxHxK, v_BxSxHxK, layout: Layout, window: int, block: int):
  """(B, S, H, K); of keys, those less than `window` back (0: all).

  A document's tokens lie in slots next to each other. A query without a key reads a mean of values
  that nobody uses.
  """
  return _forward(q_BxSxHxK, k_BxSxHxK, v_BxSxHxK, layout, window, block)[0]


def _forward(q, k, v, layout, window, block):
  batch, total, heads, width = q.shape
  q_G, k_G, v_G = (_blocks(a, block) for a in (q, k, v))
  wide = jnp.promote_types(q.dtype, jnp.float32)
  shape = (*q_G.shape[:-1], 1)

  def pair(carry, ij):
    i, j = ij
    out_G, top_G, sum_G = carry
    seen = scores(q_G[i], k_G[j], _visible(layout, i, j, window, block))
    top = jnp.maximum(top_G[i], jnp.max(seen, -1, keepdims=True))
    weights, rest = jnp.exp(seen - top), jnp.exp(top_G[i] - top)
    more = jnp.einsum("bhnl,bhlk->bhnk", weights.astype(q.dtype), v_G[j],
                      preferred_element_type=wide)
    new = (rest * out_G[i] + more, top, rest * sum_G[i] + jnp.sum(weights, -1, keepdims=True))
    return tuple(a.at[i].set(b) for a, b in zip(carry, new)), None

  fresh = (jnp.zeros(q_G.shape, wide), jnp.full(shape, HIDDEN, wide), jnp.zeros(shape, wide))
  (out_G, top_G, sum_G), _ = jax.lax.scan(pair, fresh, _pairs(len(q_G), window, block))
  out = _whole((out_G / sum_G).astype(q.dtype), total)
  return out, (q, k, v, layout, out, top_G + jnp.log(sum_G))


def _backward(window, block, saved, grad):
  q, k, v, layout, out, log_sum_G = saved
  q_G, k_G, v_G, grad_G = (_blocks(a, block) for a in (q, k, v, grad))
  wide, total = log_sum_G.dtype, q.shape[1]
  along_G = _blocks(jnp.sum((grad * out).astype(wide), -1, keepdims=True), block)
  def product(how, a, b):
    return jnp.einsum(how, a.astype(q.dtype), b, preferred_element_type=wide)

  def pair(carry, ij):
    i, j = ij
    weights = jnp.exp(scores(q_G[i], k_G[j], _visible(layout, i, j, window, block)) - log_sum_G[i])
    of_weights = product("bhnk,bhlk->bhnl", grad_G[i], v_G[j])
    of_scores = q.shape[-1] ** -0.5 * weights * (of_weights - along_G[i])
    more = ((i, product("bhnl,bhlk->bhnk", of_scores, k_G[j])),
            (j, product("bhnl,bhnk->bhlk", of_scores, q_G[i])),
            (j, product("bhnl,bhnk->bhlk", weights, grad_G[i])))
    return tuple(a.at[at].add(b) for a, (at, b) in zip(carry, more)), None

  zeros = tuple(jnp.zeros(a.shape, wide) for a in (q_G, k_G, v_G))
  grads, _ = jax.lax.scan(pair, zeros, _pairs(len(q_G), window, block))
  return *(_whole(a, total).astype(q.dtype) for a in grads), None


attend.defvjp(_forward, _backward)


def _pairs(count: int, window: int, block: int):
  """Of blocks of queries and of keys, two arrays."""
  back = -(-(window - 1) // block) if window else count
  pairs = [(i, j) for i in range(count) for j in range(max(0, i - back), i + 1)]
  return tuple(jnp.asarray(side) for side in np.array(pairs).T)


def _blocks(a_BxSxHxK, block: int):
  """(G, B, H, N, K), the last one filled up with zeros."""
  batch, total, *rest = a_BxSxHxK.shape
  a = jnp.pad(a_BxSxHxK, ((0, 0), (0, -total % block), (0, 0), (0, 0)))
  return jnp.transpose(a.reshape(batch, -1, block, *rest), (1, 0, 3, 2, 4))


def _whole(a_GxBxHxNxK, total: int):
  """Inverse of `_blocks`."""
  a = jnp.transpose(a_GxBxHxNxK, (1, 0, 3, 2, 4))
  return a.reshape(len(a), -1, *a.shape[3:])[:, :total]


def scores(q_BxHxNxK, k_BxHxLxK, visible_BxNxL):
  """(B, H, N, L) in float32 or better, HIDDEN where a query may not see a key."""
  products = jnp.einsum("bhnk,bhlk->bhnl", q_BxHxNxK, k_BxHxLxK,
                        preferred_element_type=jnp.promote_types(q_BxHxNxK.dtype, jnp.float32))
  return jnp.where(visible_BxNxL[:, None], q_BxHxNxK.shape[-1] ** -0.5 * products, HIDDEN)


def _visible(layout: Layout, i, j, window: int, block: int):
  """Of a block of queries, which of a block of keys it may see: (B, N, N)."""
  def part(a, at):
    a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % block)))
    return jax.lax.dynamic_slice_in_dim(a, at * block, block, 1)
  return visible(part(layout.position_BxS, i), part(layout.document_BxS, i),
                 part(layout.position_BxS, j), part(layout.document_BxS, j),
                 part(layout.valid_BxS, j), window)
