"""Titans' memory as context (arXiv 2501.00663, section 4.1): what the memory answers to the tokens
of a segment is read beside them by attention, whose output is written and gated by the memory.

    h_t = M(W_ask x_t)                      retrieved, before anything of this chunk is written
    y_t = attention of x_t to the persistent tokens and to h and x of its segment, no later than t
    M is written with keys, values and gates of y;     out_t = norm(y_t) sigmoid(norm(M(W_q y_t)))

y depends on the memory and the memory on y: one loop over chunks of titans.chunk tokens, in each of
which M stands still. The paper lets a token see the answers to later tokens of its segment, and the
gate what the whole segment wrote; here nothing of the future is seen. A segment's keys are kept as
fast state, so that a document may be cut anywhere.
"""

from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import chunks, neural_memory
from hope_jax.memory.neural_memory import Token
from hope_jax.model import attention, projections, titans
from hope_jax.model.contract import Parameter
from hope_jax.model.layers import Dense, compute_dtype, scaled_normal
from hope_jax.model.slots import Layout


@struct.dataclass
class State:
  """What streams keep: the memory, and keys and values of the segment that they are in."""
  memory: dict
  # of h, then of x; those of token p lie at p modulo the segment W
  key_BxHx2xWxK: jax.Array
  value_BxHx2xWxK: jax.Array
  position_BxW: jax.Array  # -1: empty


class MAC(nn.Module):
  """(x, state, layout, may_write) -> (y, state, notes). Letters: C tokens of a chunk."""
  config: Any

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    m, own, dtype = self.config.model, self.config.titans, compute_dtype(self.config)
    batch, total, dim = x_BxSxD.shape
    def kernel(name, columns):
      return self.param(name, scaled_normal(dim), (dim, columns)).astype(dtype)
    def bias(_, shape):
      return jnp.broadcast_to(jnp.array(list(titans.GATES.values()), jnp.float32)[:, None], shape)
    kernels = {"qkv": kernel("qkv", 3 * dim), "ask": kernel("ask", dim),
               "write": kernel("write", 3 * dim), "gates": kernel("gates", 3 * m.heads)}
    biases_3xH = self.param("bias", bias, (3, m.heads))
    persistent_PxD = self.param("persistent", nn.initializers.normal(1.0), (own.persistent, dim))
    weights = titans.initial(self, self.config)
    initial = jax.tree.map(lambda w: jnp.broadcast_to(w, (batch, *w.shape)), weights)

    def step(carry, tokens):
      x_BxDxC, *places = tokens
      carry, y, gate = self.chunk(kernels, biases_3xH, persistent_PxD, initial, carry,
                                  jnp.moveaxis(x_BxDxC, -1, 1), *places)
      return carry, (jnp.moveaxis(y, 1, -1), jnp.moveaxis(gate, 1, -1))

    tokens = (jnp.moveaxis(x_BxSxD.astype(dtype), 1, -1), layout.valid_BxS, layout.position_BxS,
              layout.valid_BxS & may_write)
    carry, outputs = chunks.scan(step, state or fresh(self.config, batch), tokens,
                                 1 if total == 1 else own.chunk, own.remat_chunks)
    y, gate = (jnp.moveaxis(a, -1, 1) for a in outputs)
    def norm(name, a):
      return nn.RMSNorm(m.norm_epsilon, dtype=dtype, name=name)(a)
    y = norm("attention_norm", y) * nn.sigmoid(norm("memory_norm", gate))
    out = Dense(dim, dtype, scaled_normal(dim, 2 * m.layers), name="out")
    return (out(y), carry if state else None,
            {"moved/titans_mac": titans.moved(carry.memory["run"], initial)})

  def chunk(self, kernels, biases_3xH, persistent_PxD, initial, state: State, x_BxCxD, valid_BxC,
            position_BxC, writes_BxC):
    """One chunk, or a part of one: (state, y_BxCxD, what the memory says of it)."""
    heads, own = self.config.model.heads, self.config.titans
    def each(f, *args):
      return jax.vmap(jax.vmap(f))(*args)  # of every stream and head
    def of_heads(a_BxC):
      return jnp.broadcast_to(a_BxC[:, None], (len(a_BxC), heads, a_BxC.shape[1]))
    first = valid_BxC & (position_BxC == 0)
    fresh_BxC = valid_BxC & titans.begins(self.config, position_BxC)
    memory = each(neural_memory.begin, each(neural_memory.fresh, initial), state.memory,
                  of_heads(fresh_BxC)[..., 0],
                  of_heads(valid_BxC & (position_BxC % own.chunk == 0))[..., 0])

    ask = projections.heads_last(x_BxCxD @ kernels["ask"], heads)
    h = each(lambda w, q: neural_memory.answer(w, q)[0], memory["start"], _normed(ask, -2))
    h_BxCxD = jnp.moveaxis(h, -1, 1).reshape(x_BxCxD.shape).astype(x_BxCxD.dtype)
    cache, y_BxCxD = self.attend(kernels["qkv"], persistent_PxD, state, h_BxCxD, x_BxCxD, first,
                                 valid_BxC, position_BxC)

    k, v, q = (projections.heads_last(part, heads)
               for part in jnp.split(y_BxCxD @ kernels["write"], 3, -1))
    q = k if self.config.control.keys_as_queries else q
    raw = jnp.moveaxis(projections.heads_last(y_BxCxD @ kernels["gates"], 3), 1, 0)
    writes = of_heads(writes_BxC)
    gates = titans.gates(self.config, raw + biases_3xH[:, None, :, None], writes)
    token = Token(_normed(q, -2), _normed(k, -2), v, valid_T=writes, first_T=writes,
                  boundary_T=writes, **gates)
    moves = each(neural_memory.moves, token.momentum_T, token.forget_T, writes)
    memory, gate = each(neural_memory.chunk, memory, token, moves)
    gate_BxCxD = jnp.moveaxis(gate, -1, 1).reshape(x_BxCxD.shape)
    return State(memory, *cache), y_BxCxD, gate_BxCxD

  def attend(self, kernel, persistent_PxD, state: State, h_BxCxD, x_BxCxD, first_BxC, valid_BxC,
             position_BxC):
    """(keys, values and positions of the segment, what x reads of it and of what always stands)."""
    heads, length = self.config.model.heads, state.position_BxW.shape[1]
    rotary, dim = attention.rotary(self.config), x_BxCxD.shape[-1]
    def split(a_BxCxN):
      return [part.reshape(*part.shape[:2], heads, -1)
              for part in jnp.split(a_BxCxN, a_BxCxN.shape[-1] // dim, -1)]
    def turned(a_BxCxHxK):
      return attention.rotate(_normed(a_BxCxHxK, -1), position_BxC, rotary)
    q, k, v = split(x_BxCxD @ kernel)
    h_k, h_v = split(h_BxCxD @ kernel[:, dim:])
    p_k, p_v = split(persistent_PxD.astype(kernel.dtype)[None] @ kernel[:, dim:])

    target = jnp.where(valid_BxC, position_BxC % length, length)
    put = jax.vmap(lambda old, new, to: old.at[..., to, :].set(new.astype(old.dtype), mode="drop"))
    def stored(old, of_h, of_x):
      return put(old, jnp.stack([of_h, of_x], 1).transpose(0, 3, 1, 2, 4), target)
    key = stored(state.key_BxHx2xWxK, turned(h_k), turned(k))
    value = stored(state.value_BxHx2xWxK, h_v, v)
    position = jnp.where(first_BxC[:, :1], -1, state.position_BxW)
    position = put(position[..., None], position_BxC[..., None], target)[..., 0]

    seen_BxCxW = attention.visible(position_BxC, jnp.zeros_like(position_BxC), position,
                                   jnp.zeros_like(position), position >= 0, 0)
    seen_BxCxW &= position_BxC[..., None] // length == position[:, None] // length
    def flat(a_BxHx2xWxK):  # (B, 2 W, H, K)
      return jnp.moveaxis(a_BxHx2xWxK.reshape(*a_BxHx2xWxK.shape[:2], 2 * length, -1), 1, 2)
    y = attention.attend(turned(q), flat(key), flat(value), jnp.tile(seen_BxCxW, (1, 1, 2)),
                         (_normed(p_k, -1)[0], p_v[0]))
    return (key, value, position), y.reshape(x_BxCxD.shape)


def _normed(x, axis: int):
  """Entries of mean square 1 over an axis, in float32 or better, as the memory wants its keys."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis, keepdims=True) + 1e-6)).astype(x.dtype)


def fresh(config, batch: int) -> State:
  """Of streams that have read nothing."""
  m, length = config.model, config.titans.segment
  shape = (batch, m.heads, 2, length, m.dim // m.heads)
  dtype = compute_dtype(config)
  return State(titans.fresh_memory(config, batch), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype),
               jnp.full((batch, length), -1))


def emptied(state: State) -> State:
  """The memory without the segment."""
  return state.replace(key_BxHx2xWxK=jnp.zeros_like(state.key_BxHx2xWxK),
                       value_BxHx2xWxK=jnp.zeros_like(state.value_BxHx2xWxK),
                       position_BxW=jnp.full_like(state.position_BxW, -1))


def check(config) -> None:
  """ValueError for a segment that chunks do not fill."""
  own = config.titans
  titans.check(config)
  attention.check(config)
  if own.segment % own.chunk:
    raise ValueError(f"titans.segment={own.segment} is not a multiple of titans.chunk={own.chunk}: "
                     f"set it to {-(-own.segment // own.chunk) * own.chunk}")


MIXER = titans.LMM_MIXER._replace(
    build=lambda config: MAC(config, name="titans_mac"), fresh=fresh, forget=emptied,
    context=lambda config: config.titans.segment, check=check, sections=("titans", "attention"),
    parameters=(
        Parameter(r"(qkv|ask|write|gates)", ("model", None), "matrix", r"titans.\1_proj.weight",
                  True),
        Parameter(r"bias", (), "vector", r"titans.gates.bias"),
        Parameter(r"persistent", (), "vector", r"titans.persistent.weight"),
        titans.NORMS,
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"titans.o_proj.weight", True),
        *titans.WEIGHTS),
    state_axes=((r"memory/.*", ("heads",)), (r"(key|value)_.*", ("heads",)), (r".*", ())))
