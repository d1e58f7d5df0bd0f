"""Softmax attention with rotary positions: full or sliding window, packed documents, a ring cache.

Several heads of queries may share one of keys and values (arXiv 2305.13245).

Letters: B streams, S slots of the call, W cache length (also the window when there is a cache),
H heads, G heads of keys and values, K head width.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from hope_jax.memory import products
from hope_jax.model import blockwise
from hope_jax.model.axes import constrain
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import Dense, compute_dtype, scaled_normal
from hope_jax.model.slots import Layout, visible

BLOCK = 256  # slots; longer sequences are read in blocks, and hold no scores of all pairs


@struct.dataclass
class Cache:
  """The last W tokens of the document a stream is in; token p lies at p modulo W. H as of keys."""
  key_BxHxWxK: jax.Array
  value_BxHxWxK: jax.Array
  position_BxW: jax.Array  # -1: empty


def empty_cache(batch: int, length: int, heads: int, width: int, dtype) -> Cache:
  """A cache without tokens; length 0 for calls that nothing follows."""
  shape = (batch, heads, length, width)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.full((batch, length), -1))


def grown(cache: Cache, length: int) -> Cache:
  """With room for so many tokens; no stream may have read more than there was room for."""
  more = length - cache.position_BxW.shape[-1]
  def pad(a, axis, value):
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, more)
    return jnp.pad(a, widths, constant_values=value)
  return Cache(pad(cache.key_BxHxWxK, -2, 0), pad(cache.value_BxHxWxK, -2, 0),
               pad(cache.position_BxW, -1, -1))


def emptied(cache: Cache) -> Cache:
  """The cache without its tokens."""
  return Cache(jnp.zeros_like(cache.key_BxHxWxK), jnp.zeros_like(cache.value_BxHxWxK),
               jnp.full_like(cache.position_BxW, -1))


def empty_like(cache: Cache, length: int) -> Cache:
  """A cache without tokens, of another length."""
  own = cache.key_BxHxWxK
  shape = (*own.shape[:-2], length, own.shape[-1])
  return Cache(jnp.zeros(shape, own.dtype), jnp.zeros(shape, own.dtype),
               jnp.full((*cache.position_BxW.shape[:-1], length), -1))


class Rotary(NamedTuple):
  """The fields of config.attention without their prefix rope_."""
  base: float
  scaling: str = "none"
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 8192

  def frequencies(self, half: int):
    """(half,) radians per token. llama3: as the models of that name do since version 3.1."""
    plain = self.base ** (-jnp.arange(half) / half)
    if self.scaling == "none":
      return plain
    if self.scaling == "linear":
      return plain / self.factor
    turns = self.original * plain / (2 * math.pi)  # within the positions before scaling
    kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return kept * plain + (1 - kept) * plain / self.factor


def rotate(x_BxSxHxK, position_BxS, rotary: Rotary):
  """Rotary position embedding (arXiv 2104.09864), in float32 or better."""
  angle = position_BxS[..., None, None] * rotary.frequencies(x_BxSxHxK.shape[-1] // 2)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x_BxSxHxK.astype(jnp.promote_types(x_BxSxHxK.dtype, jnp.float32)), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxSxHxK.dtype)


def attend(q_BxSxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxSxL, always=()):
  """Softmax attention over the allowed keys; a query with none reads a mean that nobody uses.

  always: (k, v), each (P, H, K), that every query sees besides.
  """
  if always:
    k_BxLxHxK, v_BxLxHxK = (
        jnp.concatenate([jnp.broadcast_to(first, (len(own), *first.shape)), own], 1)
        for first, own in zip(always, (k_BxLxHxK, v_BxLxHxK)))
    mask_BxSxL = _with_always(mask_BxSxL, len(always[0]))
  return jax.nn.dot_product_attention(q_BxSxHxK, k_BxLxHxK, v_BxLxHxK, mask=mask_BxSxL[:, None])


def _with_always(mask_BxSxL, count: int):
  """The mask with so many keys before it, which all may see."""
  return jnp.pad(mask_BxSxL, ((0, 0), (0, 0), (count, 0)), constant_values=True)


@jax.custom_vjp
def attend_after(q_BxHxSxK, past_k_BxHxWxK, past_v_BxHxWxK, k_BxHxSxK, v_BxHxSxK, mask_BxSxL):
  """`attend` to a cache and to the call's own keys, L = W + S.

  Unlike the library's, its gradient keeps nothing of size S x L, and where the cache is data no
  gradient of it is computed.
  """
  return _after_forward(q_BxHxSxK, past_k_BxHxWxK, past_v_BxHxWxK, k_BxHxSxK, v_BxHxSxK,
                        mask_BxSxL)[0]


def _after_forward(q, past_k, past_v, k, v, mask):
  length = past_k.shape[2]
  scores = (blockwise.scores(q, past_k, mask[..., :length]),
            blockwise.scores(q, k, mask[..., length:]))
  top = jax.lax.stop_gradient(jnp.maximum(*(jnp.max(s, -1, keepdims=True) for s in scores)))
  before, own = (jnp.exp(s - top) for s in scores)
  total = jnp.sum(before, -1, keepdims=True) + jnp.sum(own, -1, keepdims=True)
  out = ((before.astype(q.dtype) @ past_v + own.astype(q.dtype) @ v) / total).astype(q.dtype)
  return out, (q, past_k, past_v, k, v, mask, out, top + jnp.log(total))


def _after_backward(saved, grad):
  q, past_k, past_v, k, v, mask, out, log_total = saved
  length = past_k.shape[2]
  along = jnp.sum((grad * out).astype(log_total.dtype), -1, keepdims=True)

  def block(k, v, mask):
    share = jnp.exp(blockwise.scores(q, k, mask) - log_total)
    grad_share = jnp.einsum("bhsk,bhlk->bhsl", grad, v, preferred_element_type=share.dtype)
    grad_score = (q.shape[-1] ** -0.5 * share * (grad_share - along)).astype(q.dtype)
    return (grad_score @ k, grad_score.swapaxes(2, 3) @ q,
            share.astype(q.dtype).swapaxes(2, 3) @ grad)

  past_q, *grad_past = block(past_k, past_v, mask[..., :length])
  own_q, *grad_own = block(k, v, mask[..., length:])
  return past_q + own_q, *grad_past, *grad_own, None


attend_after.defvjp(_after_forward, _after_backward)


def attend_banded(q_BxSxHxK, k_BxSxHxK, v_BxSxHxK, layout: Layout, window: int, always=()):
  """Sliding window without a cache in O(S * window): blocks see themselves and the one before.

  A block has `window` slots. A document's tokens lie in slots next to each other (lm.chunk_grid):
  across a gap the band would miss some.
  """
  batch, total = layout.valid_BxS.shape
  blocks = -(-total // window)
  def pad(a, value=0):
    return jnp.pad(a, ((0, 0), (0, blocks * window - total), *[(0, 0)] * (a.ndim - 2)),
                   constant_values=value)
  def split(a):
    return pad(a).reshape(batch * blocks, window, *a.shape[2:])

  def pair(a, value=0):
    a = pad(a, value).reshape(batch, blocks, window, *a.shape[2:])
    before = jnp.concatenate([jnp.full_like(a[:, :1], value), a[:, :-1]], 1)
    return jnp.concatenate([before, a], 2).reshape(batch * blocks, 2 * window, *a.shape[3:])

  mask = visible(split(layout.position_BxS), split(layout.document_BxS), pair(layout.position_BxS),
                 pair(layout.document_BxS), pair(layout.valid_BxS, False), window)
  out = attend(split(q_BxSxHxK), pair(k_BxSxHxK), pair(v_BxSxHxK), mask, always)
  return out.reshape(batch, blocks * window, *out.shape[2:])[:, :total]


def store(cache: Cache, k_BxHxSxK, v_BxHxSxK, layout: Layout) -> Cache:
  """The cache after the call: the last W tokens of the document that each stream ends in."""
  length = cache.position_BxW.shape[1]
  ends_in = jnp.take_along_axis(layout.document_BxS, jnp.maximum(layout.last_B, 0)[:, None], 1)
  current = layout.valid_BxS & (layout.document_BxS
                                == ends_in) & (layout.position_BxS >= layout.count_B[:, None]
                                               - length)
  target = jnp.where(current, layout.position_BxS % length, length)
  put = jax.vmap(lambda old, new, to: old.at[..., to, :].set(new.astype(old.dtype), mode="drop"))
  # another document than the one that was cached
  left = (layout.last_B[:, None] >= 0) & (ends_in > 0)
  position = jnp.where(left, -1, cache.position_BxW)
  position = put(position[..., None], layout.position_BxS[..., None], target)[..., 0]
  return Cache(put(cache.key_BxHxWxK, k_BxHxSxK, target),
               put(cache.value_BxHxWxK, v_BxHxSxK, target), position)


class Heads(nn.Module):
  """(B, S, D) -> q (B, S, H, K), k and v (B, S, G, K).

  The kernel (D, (H + 2 G) K) holds the heads of q, then k, then v; devices share each by head.
  """
  heads: int
  kv_heads: int
  width: int
  bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BxSxD):
    x_BxSxD, dim, own = x_BxSxD.astype(self.dtype), x_BxSxD.shape[-1], self.heads * self.width
    columns = own + 2 * self.kv_heads * self.width
    kernel = self.param("kernel", scaled_normal(dim), (dim, columns), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (columns,), jnp.float32) if self.bias else None

    def some(number, heads, columns):
      """That many times so many heads, by one product."""
      def part(a):
        a = a.astype(self.dtype)[..., columns]
        return a.reshape(*a.shape[:-1], number, heads, self.width)
      y = products.dense(x_BxSxD, constrain(part(kernel), None, None, "heads"))
      y = y if bias is None else y + constrain(part(bias), None, "heads")
      return [y[:, :, i] for i in range(number)]

    if self.kv_heads == self.heads:
      return some(3, self.heads, slice(None))
    return some(1, self.heads, slice(own)) + some(2, self.kv_heads, slice(own, None))


def grouped(q_BxHxSxK, kv_heads: int):
  """The queries of heads that share a key, one after the other: (B, G, H / G * S, K)."""
  batch, heads, total, width = q_BxHxSxK.shape
  return q_BxHxSxK.reshape(batch, kv_heads, heads // kv_heads * total, width)


class Attention(nn.Module):
  """Token mixer: (x, cache or None, layout, may_write) -> (y, cache, {}).

  Queries and keys are normalised per head, which keeps Muon and bf16 stable.
  """
  heads: int
  kv_heads: int
  width: int
  layers: int
  window: int  # 0: the whole document
  rotary: Rotary
  bias: str
  norm_epsilon: float | None  # None: queries and keys are not normalised
  dtype: Any
  persistent: int = 0  # learned tokens of no position, which every token sees

  @nn.compact
  def __call__(self, x_BxSxD, state: Cache | None, layout: Layout, may_write=True):
    batch, total, dim = x_BxSxD.shape
    cache = state or empty_cache(batch, 0, self.kv_heads, self.width, self.dtype)
    heads = Heads(self.heads, self.kv_heads, self.width, self.bias != "none", self.dtype,
                  name="qkv")
    q, k, v = heads(x_BxSxD)
    k_norm = None
    if self.norm_epsilon is not None:
      q = nn.RMSNorm(self.norm_epsilon, dtype=self.dtype, name="q_norm")(q)
      k_norm = nn.RMSNorm(self.norm_epsilon, dtype=self.dtype, name="k_norm")
      k = k_norm(k)
    always = self.persistent_keys(heads, k_norm, dim) if self.persistent else ()
    q, k = (rotate(a, layout.position_BxS, self.rotary) for a in (q, k))

    length, shared = cache.position_BxW.shape[1], self.heads // self.kv_heads
    if not length and shared > 1:
      k, v = (jnp.repeat(a, shared, 2) for a in (k, v))
      always = tuple(jnp.repeat(a, shared, 1) for a in always)
    if not length and 0 < 2 * self.window < total:
      y = attend_banded(q, k, v, layout, self.window, always)
    elif not length and not always and total > BLOCK:
      y = blockwise.attend(q, k, v, layout, self.window, BLOCK)
    else:
      # with a cache, what is cached can be seen: cutting a document differently changes nothing
      mask = visible(layout.position_BxS, layout.document_BxS,
                     jnp.concatenate([cache.position_BxW, layout.position_BxS], 1),
                     jnp.concatenate([jnp.zeros_like(cache.position_BxW), layout.document_BxS], 1),
                     jnp.concatenate([cache.position_BxW >= 0, layout.valid_BxS], 1),
                     length or self.window)
      if length:
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        past = cache.key_BxHxWxK.astype(k.dtype), cache.value_BxHxWxK.astype(v.dtype)
        if always:
          past = (jnp.concatenate([jnp.broadcast_to(first.swapaxes(0, 1), (
              batch, self.kv_heads, self.persistent, self.width)), own], 2)
                  for first, own in zip(always, past))
          mask = _with_always(mask, self.persistent)
        y = attend_after(grouped(q, self.kv_heads), *past, k, v,
                         jnp.tile(mask, (1, shared, 1))).reshape(q.shape).swapaxes(1, 2)
        cache = store(cache, k, v, layout)
      else:
        y = attend(q, k, v, mask, always)
    out = Dense(dim, self.dtype, scaled_normal(self.heads * self.width, 2 * self.layers),
                self.bias == "all", name="out")
    return out(y.reshape(batch, total, -1)), cache if state else None, {}

  def persistent_keys(self, heads, k_norm, dim: int):
    """(k, v) of the persistent tokens, each (P, G, K), or (P, H, K) where keys are not cached."""
    tokens_PxD = self.param("persistent", nn.initializers.normal(1.0), (self.persistent, dim))
    _, k, v = heads(tokens_PxD[None])
    return (k if k_norm is None else k_norm(k))[0], v[0]


def kv_heads(config) -> int:
  """Heads of keys and values."""
  return config.attention.kv_heads or config.model.heads


def head_width(config) -> int:
  """Of a head."""
  return config.attention.width or config.model.dim // config.model.heads


def rotary(config) -> Rotary:
  """Of a configuration."""
  return Rotary(*(config.attention[f"rope_{field}"] for field in Rotary._fields))


def build(config, persistent: int = 0) -> Attention:
  """The module of a configuration."""
  m, a = config.model, config.attention
  return Attention(m.heads, kv_heads(config), head_width(config), m.layers, a.window,
                   rotary(config), a.bias, m.norm_epsilon if a.qk_norm else None,
                   compute_dtype(config), persistent, name="attention")


def context(config) -> int:
  """Tokens that are kept while a text is read or generated."""
  return config.attention.window or config.attention.context or config.data.seq


def with_room(config, tokens: int):
  """The configuration with a cache of no more than so many tokens; a window stays as it is."""
  short = config.copy_and_resolve_references()
  if not short.attention.window:
    with short.unlocked():
      short.attention.context = min(tokens, context(config))
  return short


def fresh(config, batch: int) -> Cache:
  """An empty cache of that length."""
  return empty_cache(batch, context(config), kv_heads(config), head_width(config),
                     compute_dtype(config))


def grid(config) -> int:
  """Bands of a window need documents without gaps."""
  return 1 if config.attention.window else 0


def check(config) -> None:
  """ValueError for heads that cannot be rotated or shared, and for a scaling that is none."""
  width, heads, groups, a = (head_width(config), config.model.heads, kv_heads(config),
                             config.attention)
  if width % 2:
    raise ValueError(f"head width {width} is odd, rotary positions need it even: change model.dim "
                     "or model.heads, or set attention.width")
  if heads % groups:
    raise ValueError(f"model.heads={heads} is not divisible by attention.kv_heads={groups}: set "
                     "attention.kv_heads to a divisor, or 0")
  if a.rope_base <= 1 or a.rope_factor <= 0 or a.rope_original < 1 or a.rope_low >= a.rope_high:
    raise ValueError(f"attention.rope_base={a.rope_base}, rope_factor={a.rope_factor}, "
                     f"rope_original={a.rope_original}, rope_low={a.rope_low}, "
                     f"rope_high={a.rope_high}: set the base above 1, the factor above 0, original "
                     "to 1 or more, low below high")


MIXER = Mixer(
    build=build, fresh=fresh, forget=emptied, context=context, grid=grid, check=check, writes=False,
    parameters=(
        Parameter(r"([qk]_norm)/scale", (), "vector", r"self_attn.\1.weight"),
        Parameter(r"qkv/kernel", ("model", "heads"), "matrix", r"self_attn.qkv_proj.weight", True,
                  heads=-1, width=head_width),  # of q, k and v
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"self_attn.o_proj.weight", True,
                  heads=-2, width=head_width),
        Parameter(r"qkv/bias", (), "vector", r"self_attn.qkv_proj.bias"),
        Parameter(r"out/bias", (), "vector", r"self_attn.o_proj.bias")),
    state_axes=((r"(key|value)_BxHxWxK", ("heads",)), (r".*", ())))
