"""The token mixer of self-modifying Titans: projections, convolutions, each head's memories.

The memories and how they are read and written: memory/self_modifying.py.
"""

import functools
import math
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.config import chunks
from hope_jax.memory import linear_memory, mlp_memory, self_modifying
from hope_jax.memory.write_rule import Rule, from_config
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import CONV, Dense, compute_dtype, conv, conv_tail, extend
from hope_jax.model.layers import near_identity, pass_through
from hope_jax.model.slots import Layout


@struct.dataclass
class State:
  """What streams keep."""
  memory: dict  # weights read and written, (B, H, ...)
  conv_Bx3xD: jax.Array | None  # the convolutions' last inputs


class SelfMod(nn.Module):
  """(x, state, layout, may_write) -> (y, state, stats).

  With state None the streams start here and no state is returned.
  """
  rule: Rule
  heads: int
  hidden: int
  conv: str  # none | shared | separate
  gate_skip: bool
  eta_init: float
  alpha_init: float
  truncate: int
  remat: int
  dtype: Any

  def memory_parameters(self, width: int) -> dict:
    """Initial weights, (heads, ...): at or near the identity, the gates near zero."""
    rule, out = self.rule, {}
    scales = {"out": self.hidden ** -0.5 / 4, "in": width ** -0.5}  # by the end of the name
    shapes = self_modifying.parameter_shapes(rule, width, self.hidden, self.gate_skip)
    for name, shape in shapes.items():
      scale = scales.get(name.split("_")[-1], 0.02)
      out[name] = self.param(name, nn.initializers.normal(scale), (self.heads, *shape))
    if rule.memory == "linear":
      out["w"] += jnp.concatenate([
          jnp.zeros((1, width)) if name in mlp_memory.GATES else jnp.eye(width)
          for name in linear_memory.rows(rule, width)])
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
    x_BxSxD = Dense(dim, self.dtype, near_identity(), name="in")(x_BxSxD)
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
    operator = functools.partial(self_modifying.run, self.rule, truncate=self.truncate,
                                 remat=self.remat)
    by_head = jax.vmap(operator, in_axes=(0, 0, 0, 0, 0, None, None, None))
    # a copy of the initial weights for each stream: their gradient is then summed over streams
    # once, not at every chunk
    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (batch, *p.shape)), params)
    streams = jax.vmap(by_head, in_axes=(0, 0, 0, 0, 0, 0, 0, None))
    y, written, gates = streams(copies, memory, *map(split, mixed), layout.valid_BxS,
                                layout.position_BxS, may_write)

    y = nn.RMSNorm(dtype=self.dtype, name="norm")(jnp.moveaxis(y, -1, 1))
    y = Dense(dim, self.dtype, near_identity(), name="out")(y.reshape(batch, total, dim))
    stats = self.stats(params, written, gates, layout)
    return y, State(written, tail_Bx3xD) if state else None, stats

  def stats(self, params, state, gates, layout) -> dict:
    """How far each memory is from its initial weights, and the gates: means of all heads.

    The distance is a Frobenius norm.
    """
    kind = self_modifying.memories(self.rule)
    initial = jax.vmap(lambda p: kind.weights(self.rule, p, kind.fresh(self.rule, p)))(params)
    now = jax.vmap(jax.vmap(lambda p, s: kind.weights(self.rule, p, s)), (None, 0))(params, state)
    out = {}
    # without retention nothing writes M_alpha
    for name in [n for n in initial if n != "alpha" or self.rule.alpha]:
      squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b), range(2, a.ndim)), now[name],
                             initial[name])
      out[f"moved/{name}"] = jnp.mean(jnp.sqrt(sum(jax.tree.leaves(squares))))
    valid = layout.valid_BxS[:, None]
    for name, value in gates.items():
      count = jnp.maximum(jnp.sum(valid) * self.heads, 1)
      out[name.removesuffix("_T")] = jnp.sum(jnp.where(valid, value, 0)) / count
    return jax.lax.stop_gradient(out)


def build(config) -> SelfMod:
  """The module of a configuration."""
  m, s = config.model, config.selfmod
  return SelfMod(from_config(s, config.control), m.heads, int(s.hidden * m.dim // m.heads), s.conv,
                 s.gate_skip, s.eta_init, s.alpha_init, chunks(s.through_writes), s.remat_chunks,
                 compute_dtype(config), name="selfmod")


def fresh_state(config, batch: int) -> State:
  """Of streams that have read nothing."""
  m, s = config.model, config.selfmod
  width = m.dim // m.heads
  memory = self_modifying.empty_memory(from_config(s), batch, m.heads, width,
                                       int(s.hidden * width), s.gate_skip)
  tail_Bx3xD = jnp.zeros((batch, CONV - 1, m.dim), compute_dtype(config))
  return State(memory, None if s.conv == "none" else tail_Bx3xD)


def check(config) -> None:
  """ValueError for documents inside a chunk, gates or bounds that do not fit."""
  s, d = config.selfmod, config.data
  chunks(s.through_writes, "selfmod.through_writes")
  grid = math.lcm(s.chunk_generators, s.chunk_memory)
  faults = (
      (d.align % grid, f"data.align={d.align} is not a multiple of {grid}, where chunks of "
                       f"selfmod.chunk_generators={s.chunk_generators} and "
                       f"chunk_memory={s.chunk_memory} begin together: documents would start "
                       f"inside a chunk; set data.align to {-(-d.align // grid) * grid}"),
      (not 0 <= s.momentum < 1, f"selfmod.momentum={s.momentum}: set it to 0 or more and below 1"),
      (not (0 < s.alpha_init < 1 and s.eta_init > 0),
       f"selfmod.alpha_init={s.alpha_init}, eta_init={s.eta_init}: retention lies between 0 and 1, "
       "the step is positive"),
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
                  True, heads=-1),
        Parameter(r"out/kernel", ("heads", "model"), "matrix", r"self_modifying.out_proj.weight",
                  True, heads=-2),
        Parameter(r"norm/scale", (), "vector", r"self_modifying.norm.weight"),
        Parameter(r"(conv(_[kvq])?)", (), "vector", r"self_modifying.\1.weight"),
        Parameter(r"w_q", ("heads", None, "model"), "matrix", r"self_modifying.q_proj.weight"),
        Parameter(r"v_(in|out)", ("heads", None, None, "model"), "matrix",
                  r"self_modifying.memory_{part}.w_\1", cuts=_vectors, initial=True),
        Parameter(r"g_(in)", ("heads", None, None, "model"), "matrix",
                  r"self_modifying.memory_{part}.w_\1", cuts=_gates, initial=True),
        Parameter(r"g_(out|skip)", ("heads", None, None, "model"), "vector",
                  r"self_modifying.memory_{part}.w_\1", cuts=_gates, initial=True),
        Parameter(r"w", ("heads", None, "model"), "matrix", r"self_modifying.memory_{part}.weight",
                  cuts=_rows, vectors=mlp_memory.GATES, initial=True),
        Parameter(r"b_(eta|alpha)", (), "vector", r"self_modifying.memory_\1.bias")),
    state_axes=((r"memory/.*", ("heads",)), (r".*", ())))
