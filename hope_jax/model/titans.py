"""Titans (arXiv 2501.00663): a neural memory, written at every token with a step, a momentum and a
forgetting that the token decides.

    titans_lmm    the memory alone is the token mixer
    titans_mag    the memory gates attention to a window: both read the same
    titans_mal    the memory is a layer before attention to a window
    titans_mac    what the memory answers is context of attention to a segment (titans_mac.py)

Queries, keys and values come out of short convolutions; entries of queries and keys have a mean
square of 1, and the loss of a write is a mean over the width, so that a step means the same at any.
The memory: memory/neural_memory.py.
"""

import math
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from hope_jax.memory import neural_memory
from hope_jax.memory.neural_memory import Token
from hope_jax.memory.write_rule import unit
from hope_jax.model import attention, projections
from hope_jax.model.contract import Mixer, Parameter
from hope_jax.model.layers import CONV, compute_dtype
from hope_jax.model.slots import Layout

# at the start: half of the largest step, momentum 0.5, a hundredth is forgotten
GATES = {"step": 0.0, "momentum": 0.0, "forget": math.log(0.01 / 0.99)}


@struct.dataclass
class State:
  """What streams keep."""
  memory: dict  # weights read, written, and the momentum: neural_memory.fresh, (B, H, ...)
  conv_Bx3xN: jax.Array  # the convolutions' last inputs


def shapes(config) -> dict:
  """Of one head's weights."""
  m, own = config.model, config.titans
  width = m.dim // m.heads
  widths = [width, *[int(own.hidden * width)] * (own.depth - 1), width]
  layers = {f"w_{i}": pair for i, pair in enumerate(zip(widths[1:], widths))}
  return layers | ({"gain": (width,)} if own.residual else {})


def initial(module: nn.Module, config) -> dict:
  """The memories' initial weights, parameters of a module: (H, ...)."""
  def init(name, shape):
    return nn.initializers.zeros if name == "gain" else nn.initializers.normal(shape[-1] ** -0.5)
  return {name: module.param(name, init(name, shape), (config.model.heads, *shape))
          for name, shape in shapes(config).items()}


def begins(config, position):
  """Whether memories are fresh at a position of a document."""
  return position % config.titans.chunk == 0 if config.control.reset else position == 0


def moved(weights: dict, start: dict):
  """How far the memories (B, H, ...) are from there: the mean of their distances."""
  squares = [jnp.sum(jnp.square(weights[name] - w), range(2, w.ndim)) for name, w in start.items()]
  return jax.lax.stop_gradient(jnp.mean(jnp.sqrt(sum(squares))))


def gates(config, raw_NxBxHxS, writes_BxHxS) -> dict:
  """step, momentum and forget, (B, H, S), of gates before their sigmoid; padding writes nothing."""
  own, (step, momentum, forget) = config.titans, jax.nn.sigmoid(raw_NxBxHxS)
  width = config.model.dim // config.model.heads
  step = config.control.sign * own.step / width * step
  return {"step_T": jnp.where(writes_BxHxS, step, 0.0),
          "momentum_T": jnp.where(writes_BxHxS, own.momentum * momentum, 1.0),
          "forget_T": jnp.where(writes_BxHxS, own.forget * forget, 0.0)}


class Memory(nn.Module):
  """All heads' memories: ([q, k, v], gates before sigmoid, state, layout) -> (y, state, notes).

  q, k, v and y: (B, H, K, S).
  """
  config: Any
  name_of_notes: str

  @nn.compact
  def __call__(self, inputs, raw_NxBxHxS, state: dict | None, layout: Layout, may_write=True):
    own, (q, k, v) = self.config.titans, inputs
    batch, heads, width, total = q.shape
    params, control = initial(self, self.config), self.config.control
    q = k if control.keys_as_queries else q
    valid = layout.valid_BxS[:, None]
    position = layout.position_BxS[:, None]
    def of_all(a_Bx1xS):
      return jnp.broadcast_to(a_Bx1xS, (batch, heads, total))
    writes = of_all(valid & may_write)
    token = Token(width ** 0.5 * unit(q), width ** 0.5 * unit(k), v, valid_T=writes,
                  first_T=of_all(valid & begins(self.config, position)),
                  boundary_T=of_all(valid & (position % own.chunk == 0)),
                  **gates(self.config, raw_NxBxHxS, writes))

    def run(*args):
      return neural_memory.run(*args, size=own.chunk, remat=own.remat_chunks)
    # a copy of the initial weights for each stream: their gradient is summed over streams once
    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (batch, *p.shape)), params)
    memory, y = jax.vmap(jax.vmap(run))(copies, state, token)
    return y, memory, {f"moved/{self.name_of_notes}": moved(memory["run"], copies)}


class LMM(nn.Module):
  """(x, state, layout, may_write) -> (y, state, notes)."""
  config: Any
  gate: bool = True  # of the output, where it is configured
  mixer: str = "titans_lmm"

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    m, dtype = self.config.model, compute_dtype(self.config)
    inputs, tail = projections.Inputs(m.heads, dtype, name="inputs")(
        x_BxSxD, state.conv_Bx3xN if state else None, layout)
    raw = projections.Gates(m.heads, tuple(GATES.values()), dtype, name="gates")(x_BxSxD)
    y, memory, notes = Memory(self.config, self.mixer, name="memory")(
        inputs, raw, state.memory if state else None, layout, may_write)
    gate = self.gate and self.config.titans.output_gate
    y = projections.Output(m.layers, gate, dtype, name="output")(y, x_BxSxD)
    return y, State(memory, tail) if state else None, notes


def fresh_memory(config, batch: int) -> dict:
  """Of streams that have read nothing: zeros, which their first token replaces."""
  zeros = {name: jnp.zeros((batch, config.model.heads, *shape))
           for name, shape in shapes(config).items()}
  return jax.tree.map(jnp.copy, neural_memory.fresh(zeros))  # buffers that can be donated


def fresh(config, batch: int) -> State:
  """Of streams that have read nothing."""
  tail = jnp.zeros((batch, CONV - 1, 3 * config.model.dim), compute_dtype(config))
  return State(fresh_memory(config, batch), tail)


def check(config) -> None:
  """ValueError for documents that would start inside a chunk, and memories of no width."""
  own, m, align = config.titans, config.model, config.data.align
  if align % own.chunk:
    raise ValueError(f"data.align={align} is not a multiple of titans.chunk={own.chunk}: documents "
                     "would start inside a chunk; set data.align to "
                     f"{-(-align // own.chunk) * own.chunk}")
  if int(own.hidden * (m.dim // m.heads)) < 1:
    raise ValueError(f"titans.hidden={own.hidden} of {m.dim // m.heads} is a width below 1: set it "
                     f"to {m.heads / m.dim:.3g} or more")


@struct.dataclass
class Hybrid:
  """What streams keep of a memory and of attention."""
  memory: State
  cache: attention.Cache


class WithAttention(nn.Module):
  """A memory and attention with persistent tokens; (x, state, layout, may_write) -> the same.

  The paper also lets the memory read the persistent tokens: what it would learn of them is the same
  for every document, and so part of its initial weights.
  """
  config: Any
  layered: bool  # titans_mal, else titans_mag

  @nn.compact
  def __call__(self, x_BxSxD, state, layout: Layout, may_write=True):
    c = self.config
    memory = LMM(c, False, "titans_mal" if self.layered else "titans_mag", name="lmm")
    attend = attention.build(c, c.titans.persistent)
    def norm(name, y):
      return nn.RMSNorm(c.model.norm_epsilon, dtype=compute_dtype(c), name=name)(y)
    own, cache = (state.memory, state.cache) if state else (None, None)
    answer, own, notes = memory(x_BxSxD, own, layout, may_write)
    if self.layered:
      y, cache, _ = attend(norm("memory_norm", answer), cache, layout)
    else:
      y, cache, _ = attend(x_BxSxD, cache, layout)
      y = norm("attention_norm", y) * nn.sigmoid(norm("memory_norm", answer))
    return y, Hybrid(own, cache) if state else None, notes


def fresh_hybrid(config, batch: int) -> Hybrid:
  """Of streams that have read nothing."""
  return Hybrid(fresh(config, batch), attention.fresh(config, batch))


def check_hybrid(config) -> None:
  """ValueError as for each part."""
  check(config)
  attention.check(config)


def below(path: str, rows) -> tuple[Parameter, ...]:
  """The rows of a module that is part of another."""
  return tuple(row._replace(path=f"{path}/{row.path}") for row in rows)


WEIGHTS = (
    Parameter(r"w_(\d)", ("heads", None, "model"), "matrix", r"titans.memory.w_\1", initial=True),
    Parameter(r"gain", (), "vector", r"titans.memory.gain", initial=True))
NORMS = Parameter(r"(attention|memory)_norm/scale", (), "vector", r"titans.\1_norm.weight")
LMM_MIXER = Mixer(
    build=lambda config: LMM(config, name="titans_lmm"), fresh=fresh, forget=lambda state: state,
    context=lambda config: 0, grid=lambda config: config.titans.chunk, check=check, writes=True,
    parameters=(*projections.parameters("titans"), *below("memory", WEIGHTS)),
    state_axes=((r"memory/.*", ("heads",)), (r".*", ())), sections=("titans",))
MAG_MIXER = LMM_MIXER._replace(
    build=lambda config: WithAttention(config, False, name="titans_mag"), fresh=fresh_hybrid,
    forget=lambda state: state.replace(cache=attention.emptied(state.cache)),
    context=attention.context, check=check_hybrid, sections=("titans", "attention"),
    parameters=(
        *below("lmm", LMM_MIXER.parameters), *below("attention", attention.MIXER.parameters),
        Parameter(r"attention/persistent", (), "vector", r"self_attn.persistent.weight"), NORMS),
    state_axes=((r"memory/memory/.*", ("heads",)),
                (r"cache/(key|value)_BxHxWxK", ("heads",)), (r".*", ())))
MAL_MIXER = MAG_MIXER._replace(
    build=lambda config: WithAttention(config, True, name="titans_mal"))
