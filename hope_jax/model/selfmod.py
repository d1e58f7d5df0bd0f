"""Self-modifying Titans: memories that generate their own keys, values, step sizes, retention and
targets (NL Eq. 83-93).

`run` is the operator, one stream and one head. Tokens are processed `rule.chunk` at a time:
everything a token reads comes from the weights at the start of its chunk, every token writes, and
at the chunk's end what was written becomes what is read. The state therefore holds both, so that a
document may be cut anywhere: 64 tokens in one call, or one at a time.
"""

import functools
import math
import re
from typing import Any, NamedTuple

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import linear_memory, mlp_memory
from hope_jax.memory.write_rule import Rule, from_config, unit
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import CONV, compute_dtype, conv, conv_tail, extend, near_identity
from hope_jax.model.layers import pass_through
from hope_jax.model.slots import Layout


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
  y_DxC = memory.read(rule, state, unit(q))
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
  """T tokens of one stream and head.

  Args:
    state: where the stream is; None: documents start in this call, at multiples of `rule.grid`, and
      nothing follows. (Every chunk then starts on a boundary, which saves the bookkeeping of open
      chunks.)
    valid_T: False at padding, which neither writes nor counts.
    position_T: of the token in its document; a token's index in T is its position modulo
      `rule.grid` (slots.py), or T is 1.
    writes: False: the memories are read, and stay as they are.
    truncate: the outer gradient flows through the writes of at most this many chunks; 0: through
      all.
    remat: recompute the backward pass in groups of this many chunks; 0: store everything.

  Returns:
    (y_DxT, state, {"eta_T", "alpha_T"}); after a call with state None, the state is good for
    `weights` only.
  """
  total = xk_DxT.shape[1]
  size = 1 if total == 1 else rule.chunk
  chunks = -(-total // size)
  groups = -(-chunks // (remat or chunks))
  chunks_each = -(-chunks // groups)
  def split(a):  # the chunks' axes first, tokens last
    a = jnp.pad(a, (*[(0, 0)] * (a.ndim - 1), (0, groups * chunks_each * size - total)))
    return jnp.moveaxis(a.reshape(*a.shape[:-1], groups, chunks_each, size), (-3, -2), (0, 1))
  def join(a):
    return jnp.moveaxis(a, (0, 1), (-3, -2)).reshape(*a.shape[2:-1], -1)[..., :total]
  inputs = jax.tree.map(split, (xk_DxT, xv_DxT, xq_DxT, valid_T, position_T))
  number = jnp.arange(groups * chunks_each).reshape(groups, chunks_each)
  memory, new = memories(rule), fresh(rule, params)
  from_start = state is None

  def step(state, xs):
    i, (xk, xv, xq, valid, position) = xs
    # what was written becomes data; the initial values stay differentiable, and no value changes
    if truncate:
      state = jax.tree.map(lambda s, n: jnp.where(
          i % truncate == 0, jax.lax.stop_gradient(s) + (n - jax.lax.stop_gradient(n)), s), state,
                           new)
    first, opens = position[0], valid[0]
    at = [from_start and every == size or opens & (first % every == 0)
          for every in (rule.chunk_generators, rule.chunk_memory)]
    state = jax.tree.map(lambda s, n: jnp.where(opens & (first == 0), n, s), state, new)
    state = memory.settle(rule, params, state, *at)
    y, state, token = chunk(rule, params, state, xk, xv, xq, valid & writes)
    return state, (y, token.eta, token.alpha)

  def group(state, xs):
    return jax.lax.scan(step, state, xs)

  if remat:
    group = jax.checkpoint(group)
  state, outputs = jax.lax.scan(group, new if from_start else state, (number, inputs))
  y, eta, alpha = jax.tree.map(join, outputs)
  return y, state, {"eta_T": eta, "alpha_T": alpha}


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
  """The state of streams that have read nothing:
  zeros, which the first token replaces by the initial weights.
  """
  params = {name: jnp.zeros(shape)
            for name, shape in parameter_shapes(rule, width, hidden, gate_skip).items()}
  shapes = jax.eval_shape(lambda p: fresh(rule, p), params)
  return jax.tree.map(lambda s: jnp.zeros((batch, heads, *s.shape), s.dtype), shapes)


@struct.dataclass
class State:
  """What streams keep."""
  memory: dict  # weights read and written, (B, H, ...)
  conv_Bx3xD: jax.Array | None  # the convolutions' last inputs


class SelfMod(nn.Module):
  """Token mixer: projection, convolutions, one set of memories a head, normalised and projected
  back.

  (x, state, layout, may_write) -> (y, state, stats). With state None the streams start here and no
  state is returned.
  """
  rule: Rule
  heads: int
  layers: int
  hidden: int
  conv: str  # none | shared | separate
  gate_skip: bool
  eta_init: float
  alpha_init: float
  truncate: int
  remat: int
  dtype: Any

  def memory_parameters(self, width: int) -> dict:
    """Initial weights, (heads, ...). Identity where a memory has no skip of its own;
    small enough to start near it.
    """
    rule, out = self.rule, {}
    for name, shape in parameter_shapes(rule, width, self.hidden, self.gate_skip).items():
      scale = (self.hidden ** -0.5 / 4 if name.endswith("out") else width ** -0.5
               if name.endswith("in") else 0.02)
      out[name] = self.param(name, nn.initializers.normal(scale), (self.heads, *shape))
    if rule.memory == "linear":
      where = linear_memory.rows(rule, width)
      identity = jnp.concatenate([jnp.zeros((s.stop - s.start, width)) if name in ("eta", "alpha")
                                  else jnp.eye(width)
                                  for name, s in where.items()])
      out["w"] = out["w"] + identity
    if not rule.adaptive_q:
      out["w_q"] = self.param("w_q", near_identity(), (self.heads, width, width))
    def bias(name, value):
      return self.param(name, nn.initializers.constant(value), (self.heads,))
    out["b_eta"] = bias("b_eta", math.log(math.expm1(self.eta_init / rule.eta_scale)))
    out["b_alpha"] = bias("b_alpha", math.log(self.alpha_init / (1 - self.alpha_init)))
    return out

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    batch, total, dim = x_BxSxD.shape
    memory, tail_Bx3xD = (state.memory, state.conv_Bx3xD) if state else (None, None)
    width = dim // self.heads
    x_BxSxD = nn.Dense(dim, use_bias=False, dtype=self.dtype, kernel_init=near_identity(),
                       name="in")(x_BxSxD)
    if self.conv == "none":
      mixed = [x_BxSxD] * 3
    else:
      if tail_Bx3xD is None:
        tail_Bx3xD = jnp.zeros((batch, CONV - 1, dim), x_BxSxD.dtype)
      extended = extend(tail_Bx3xD, x_BxSxD, layout.first_B)
      tail_Bx3xD = conv_tail(extended, layout.last_B, layout.position_BxS, tail_Bx3xD)
      kinds = ("conv_k", "conv_v", "conv_q") if self.conv == "separate" else ("conv",)
      mixed = [conv(self.param(name, pass_through(), (CONV, dim)), extended, layout.position_BxS)
               for name in kinds]
      mixed = mixed if self.conv == "separate" else mixed * 3
    def split(a):
      return jnp.moveaxis(a.astype(jnp.float32).reshape(batch, total, self.heads, width), 1, -1)

    params = self.memory_parameters(width)
    operator = functools.partial(run, self.rule, truncate=self.truncate, remat=self.remat)
    by_head = jax.vmap(operator, in_axes=(0, 0, 0, 0, 0, None, None, None))
    # a copy of the initial weights for each stream: their gradient is then summed over streams
    # once, not at every chunk
    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (batch, *p.shape)), params)
    streams = jax.vmap(by_head, in_axes=(0, 0, 0, 0, 0, 0, 0, None))
    y, written, gates = streams(copies, memory, *map(split, mixed), layout.valid_BxS,
                                layout.position_BxS, may_write)

    y = nn.RMSNorm(dtype=self.dtype, name="norm")(jnp.moveaxis(y, -1, 1))
    y = nn.Dense(dim, use_bias=False, dtype=self.dtype, kernel_init=near_identity(),
                 name="out")(y.reshape(batch, total, dim))
    stats = self.stats(params, written, gates, layout)
    return y, State(written, tail_Bx3xD) if state else None, stats

  def stats(self, params, state, gates, layout) -> dict:
    """How far each memory has moved from its initial weights (Frobenius norm,
    mean over streams and heads), and the gates.
    """
    kind = memories(self.rule)
    initial = jax.vmap(lambda p: kind.weights(self.rule, p, fresh(self.rule, p)))(params)
    now = jax.vmap(jax.vmap(lambda p, s: kind.weights(self.rule, p, s)), (None, 0))(params, state)
    out = {}
    # without retention nothing writes M_alpha
    for name in [n for n in initial if n != "alpha" or self.rule.alpha]:
      squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b), range(2, a.ndim)), now[name],
                             initial[name])
      out[f"moved/{name}"] = jnp.mean(jnp.sqrt(sum(jax.tree.leaves(squares))))
    valid = layout.valid_BxS[:, None]
    for name, value in gates.items():
      out[name[:-2]] = jnp.sum(jnp.where(valid, value,
                                         0)) / jnp.maximum(jnp.sum(valid) * self.heads, 1)
    return jax.lax.stop_gradient(out)


def build(config) -> SelfMod:
  """The module of a configuration."""
  m, s = config.model, config.selfmod
  kind, _, chunks = s.through_writes.partition(":")
  truncate = int(chunks) if chunks else {"full": 0, "none": 1}[kind]
  return SelfMod(from_config(s), m.heads, m.layers, int(s.hidden * m.dim // m.heads), s.conv,
                 s.gate_skip, s.eta_init,
                 s.alpha_init, truncate, s.remat_chunks, compute_dtype(config), name="selfmod")


def fresh_state(config, batch: int) -> State:
  """Of streams that have read nothing."""
  m, s = config.model, config.selfmod
  width = m.dim // m.heads
  memory = empty_memory(from_config(s), batch, m.heads, width, int(s.hidden * width), s.gate_skip)
  return State(memory, None if s.conv == "none"
               else jnp.zeros((batch, CONV - 1, m.dim), compute_dtype(config)))


def check(config) -> None:
  """ValueError for chunks, gates or bounds that do not fit."""
  s, d = config.selfmod, config.data
  small, large = sorted((s.chunk_generators, s.chunk_memory))
  faults = (
      (large % small, f"selfmod.chunk_generators={s.chunk_generators} and "
                      f"chunk_memory={s.chunk_memory}: one must be a multiple of the other; set "
                      f"the larger to {-(-large // small) * small}"),
      (d.align % large, f"data.align={d.align} is not a multiple of the chunk size {large}: "
                        "documents would start inside a chunk; set data.align to "
                        f"{-(-d.align // large) * large}"),
      (not re.fullmatch(r"full|none|chunks:[1-9]\d*", s.through_writes),
       f"selfmod.through_writes={s.through_writes!r}: choose full, none or chunks:n"),
      (not 0 <= s.momentum < 1, f"selfmod.momentum={s.momentum}: set it to 0 or more and below 1"),
      (not (0 < s.alpha_init < 1 and s.eta_init > 0),
       f"selfmod.alpha_init={s.alpha_init}, eta_init={s.eta_init}: retention "
                                                      "lies between 0 and 1, the step is positive"),
      (s.bound and not s.alpha, f"selfmod.bound={s.bound} is kept by forgetting, and selfmod.alpha "
                                "is off: set selfmod.bound=0"),
      (s.bound and s.factor != "layer", f"selfmod.bound={s.bound} needs the steps of "
                                        "selfmod.factor=layer: set selfmod.bound=0"))
  for wrong, message in faults:
    if wrong:
      raise ValueError(message)


def _numbered(names) -> dict[str, int]:
  return {name: i for i, name in enumerate(names)}


def _vectors(config) -> dict[str, int]:
  return _numbered(mlp_memory.vectors(from_config(config.selfmod)))


def _gates(config) -> dict[str, int]:
  return _numbered(mlp_memory.GATES)


def _rows(config) -> dict[str, slice]:
  return linear_memory.rows(from_config(config.selfmod), config.model.dim // config.model.heads)


MIXER = Mixer(
    build=build, fresh=fresh_state, forget=lambda state: state, context=lambda config: 0,
    grid=lambda config: from_config(config.selfmod).grid, check=check, writes=True,
    parameters=(
        Parameter(r"in/kernel", ("model", "heads"), "matrix", r"self_modifying.in_proj.weight",
                  True),
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"self_modifying.out_proj.weight",
                  True),
        Parameter(r"norm/scale", (), "vector", r"self_modifying.norm.weight"),
        Parameter(r"(conv(_[kvq])?)", (), "vector", r"self_modifying.\1.weight"),
        Parameter(r"w_q", ("heads", None, "model"), "matrix", r"self_modifying.q_proj.weight"),
        Parameter(r"v_(in|out)", ("heads", None, None, "model"), "matrix",
                  r"self_modifying.memory_{part}.w_\1", cuts=_vectors),
        Parameter(r"g_(in)", ("heads", None, None, "model"), "matrix",
                  r"self_modifying.memory_{part}.w_\1", cuts=_gates),
        Parameter(r"g_(out|skip)", ("heads", None, None, "model"), "vector",
                  r"self_modifying.memory_{part}.w_\1", cuts=_gates),
        Parameter(r"w", ("heads", None, "model"), "matrix", r"self_modifying.memory_{part}.weight",
                  cuts=_rows),
        Parameter(r"b_(eta|alpha)", (), "vector", r"self_modifying.memory_\1.bias")),
    state_axes=((r"memory/.*", ("heads",)), (r".*", ())))
