"""How a level is written while its stream is read (NL Eq. 70-71).

A stream is read in chunks of C tokens. A level of period p is updated at every p-th token of its
document with the gradient of the p tokens before, by its inner rule (inner_rules.py), on top of the
parameters. Gradients are taken at the weights that the chunk was read with.

    p = C  one update a chunk: exact.
    p > C  what the period's chunks taught is held until its end: the tokens themselves, or the sum
           of their gradients, whichever is smaller.
    p < C  C / p updates, one after the other, at the end of the chunk ("chunked"). Rules that are
           linear in the gradient, and the L2 rule, do it in closed form, without a matrix per
           period; the others one period after the other.

Letters: B streams, C tokens of the chunk, G periods in it (1 if p >= C), P tokens of a period, D
model width.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from hope_jax.memory import closed_form, inner_rules, level
from hope_jax.memory.closed_form import along


@dataclasses.dataclass(frozen=True)
class Clock:
  """A level's fields in config.channel.levels, and the chunk it is read in."""
  period: int
  chunk: int
  rule: str = "sgd"
  beta: float = 0.9
  hold: str = "smaller"  # smaller | tokens | sums: what is kept of a period longer than the chunk
  epsilon: float = level.EPSILON["rms"]  # of the level's norm
  writes: str = "all"

  @property
  def groups(self) -> int:
    """Updates in a chunk."""
    return max(self.chunk // self.period, 1)

  @property
  def parallel(self) -> bool:
    """Whether several updates in a chunk have a closed form."""
    return self.groups > 1 and (inner_rules.RULES[self.rule].linear or self.rule == "nl_l2_precond")

  def written(self, params: dict) -> dict:
    """What of a level's parameters, or of a tree of their structure, is written."""
    return params if self.writes == "all" else {self.writes: params[self.writes]}


@struct.dataclass
class Tokens:
  """A period's tokens so far."""
  x_BxPxD: jax.Array
  teach_BxPxD: jax.Array
  open_BxP: jax.Array


@struct.dataclass
class Sums:
  """The sums of a period's gradients so far, and of what its rule needs to know of the inputs."""
  gradient: dict
  inputs: dict | None
  open_B: jax.Array


@struct.dataclass
class LevelState:
  """What a level has learned in its stream's document, and what it is about to."""
  delta: dict  # current weights minus parameters
  rule: Any  # the inner rule's state
  held: Tokens | Sums | None
  updates_B: jax.Array


def fresh(clock: Clock, params: dict, batch: int, dtype) -> LevelState:
  """The state of B streams at the start of a document: zeros.

  `params` of one level; `dtype` of the activations.
  """
  zeros = _zeros(clock.written(params), batch)
  rule = jax.vmap(inner_rules.make(clock.rule, 0.0, clock.beta).init)(zeros)
  held = _fresh_held(clock, params, batch, dtype) if clock.period > clock.chunk else None
  return LevelState(zeros, rule, held, jnp.zeros(batch, jnp.int32))


def _zeros(tree, batch: int):
  return jax.tree.map(lambda a: jnp.zeros((batch, *a.shape), a.dtype), tree)


def _fresh_held(clock, params, batch, dtype) -> Tokens | Sums:
  """Room for what a period's chunks taught, in the smaller form if the clock asks for it."""
  width, params = params["up"]["kernel"].shape[0], clock.written(params)
  size = sum(p.size for p in jax.tree.leaves(params))
  if clock.hold == "tokens" or clock.hold == "smaller" and 2 * clock.period * width < size:
    shape = (batch, clock.period)
    return Tokens(jnp.zeros((*shape, width), dtype), jnp.zeros((*shape, width), dtype),
                  jnp.zeros(shape, bool))
  def nothing_read(p):
    return inner_rules.summarise(jnp.zeros((1, len(p)), p.dtype), p) if p.ndim == 2 else None
  inputs = None
  if inner_rules.RULES[clock.rule].needs_inputs:
    inputs = _zeros(jax.tree.map(nothing_read, params), batch)
  return Sums(_zeros(params, batch), inputs, jnp.zeros(batch, bool))


def restart(levels: dict, begins_B):
  """Fresh states (layers first, then streams) for the streams that begin a document."""
  def clear():
    return jax.tree.map(lambda a: jnp.where(along(begins_B, a[0]), jnp.zeros_like(a), a), levels)
  return jax.lax.cond(jnp.any(begins_B), clear, lambda: levels)


def write(clock: Clock, lr, params: dict, state: LevelState, x_BxCxD, teach_BxCxD, open_BxC,
          due_BxG, at_B, force=None):
  """One chunk: (state, {"updates", "moved"}), the norm of what the chunk changed, per stream.

  Args:
    lr: of the inner rule.
    x_BxCxD, teach_BxCxD: the level's inputs, and the gradient of the loss at what it added.
    open_BxC: tokens that write.
    due_BxG: periods that end in this chunk, or are flushed.
    at_B: position of the chunk's first token in its period, for periods longer than the chunk.
    force: level.forces of all this, where a backward pass has given it; else it is computed.
  """
  if isinstance(state.held, Tokens):
    return _hold_tokens(clock, lr, params, state, x_BxCxD, teach_BxCxD, open_BxC, due_BxG[:, 0],
                        at_B)
  if force is None:
    force = level.forces(params, _weights(params, state), x_BxCxD, teach_BxCxD, clock.epsilon)
  if isinstance(state.held, Sums):
    return _hold_sums(clock, lr, params, state, force, open_BxC, due_BxG[:, 0])
  happens_BxG = due_BxG & jnp.any(open_BxC.reshape(*due_BxG.shape, -1), -1)
  if clock.parallel:
    changed = closed_form.update(clock, lr, _weights(params, state), state, force, open_BxC,
                                 happens_BxG)
  else:
    changed = _one_by_one(clock, lr, params, state, force, open_BxC, happens_BxG)
  return _settle(state, changed, jnp.sum(happens_BxG, 1, dtype=jnp.int32))


def _one_by_one(clock, lr, params, state, force, open_BxC, happens_BxG) -> LevelState:
  """The updates of a chunk, one period after the other."""
  def update(state, period):
    force, open_BxP, happens_B = period
    gradients, inputs = _sums(clock, params, state, force, open_BxP)
    return _update(clock, lr, params, state, gradients, inputs, happens_B), None

  def split(a_BxCx):
    return jnp.moveaxis(a_BxCx.reshape(len(a_BxCx), clock.groups, -1, *a_BxCx.shape[2:]), 1, 0)

  if clock.groups == 1:
    return update(state, (force, open_BxC, happens_BxG[:, 0]))[0]
  periods = (*jax.tree.map(split, (force, open_BxC)), happens_BxG.T)
  return jax.lax.scan(update, state, periods)[0]


def _hold_tokens(clock, lr, params, state, x_BxCxD, teach_BxCxD, open_BxC, due_B, at_B):
  """A chunk of a longer period: its tokens are kept, and read again when the period ends."""
  def put(row_Px, new_Cx, open_C, at):  # a chunk may come in parts: what is not open now stays
    old_Cx = jax.lax.dynamic_slice_in_dim(row_Px, at, clock.chunk)
    kept_Cx = jnp.where(along(open_C, old_Cx), new_Cx.astype(row_Px.dtype), old_Cx)
    return jax.lax.dynamic_update_slice_in_dim(row_Px, kept_Cx, at, 0)

  def hold(rows_BxPx, new_BxCx):
    return jax.vmap(put)(rows_BxPx, new_BxCx, open_BxC, at_B)

  held = Tokens(hold(state.held.x_BxPxD, x_BxCxD), hold(state.held.teach_BxPxD, teach_BxCxD),
                hold(state.held.open_BxP, open_BxC))

  def learned():
    force = level.forces(params, _weights(params, state), held.x_BxPxD, held.teach_BxPxD,
                         clock.epsilon)
    return _sums(clock, params, state, force, held.open_BxP)

  happens_B = due_B & jnp.any(held.open_BxP, 1)
  rest = held.replace(open_BxP=held.open_BxP & ~due_B[:, None])
  return _use_held(clock, lr, params, state, learned, rest, happens_B)


def _hold_sums(clock, lr, params, state, force, open_BxC, due_B):
  """A chunk of a longer period: its sums are added to those held, and used when the period ends."""
  def add(old, more):
    return jnp.where(along(writes_B, old), old + more, old)

  def clear(a):
    return jnp.where(along(due_B, a), jnp.zeros_like(a), a)

  writes_B = jnp.any(open_BxC, 1)
  new = _sums(clock, params, state, force, open_BxC)
  sums = jax.tree.map(add, (state.held.gradient, state.held.inputs), new)
  open_B = state.held.open_B | writes_B
  happens_B = due_B & open_B
  rest = Sums(*jax.tree.map(clear, sums), open_B & ~due_B)
  return _use_held(clock, lr, params, state, lambda: sums, rest, happens_B)


def _use_held(clock, lr, params, state, learned, rest: Tokens | Sums, happens_B):
  """One update, with what `learned()` says of the period, where it ends; `rest` stays held."""
  def update():
    return _update(clock, lr, params, state, *learned(), happens_B)
  changed = jax.lax.cond(jnp.any(happens_B), update, lambda: state)
  return _settle(state, changed.replace(held=rest), happens_B.astype(jnp.int32))


def _settle(before: LevelState, after: LevelState, updates_B):
  """What `write` returns, after so many updates."""
  def change():
    pairs = zip(jax.tree.leaves(after.delta), jax.tree.leaves(before.delta))
    return jnp.sqrt(sum(jnp.sum(jnp.square(a - b), range(1, a.ndim)) for a, b in pairs))
  def still():
    return jnp.zeros(updates_B.shape, jax.tree.leaves(before.delta)[0].dtype)
  moved_B = jax.lax.cond(jnp.any(updates_B > 0), change, still)
  return (after.replace(updates_B=before.updates_B + updates_B),
          {"updates": updates_B, "moved": jax.lax.stop_gradient(moved_B)})


def _weights(params, state):
  return level.current(params, state.delta)


def _sums(clock, params, state, force, open_BxN):
  """(gradients, Inputs) of the open tokens, per stream."""
  weight = open_BxN.astype(jax.tree.leaves(params)[0].dtype)
  gradients = jax.tree.map(lambda f: level.gradient(f, weight), force, is_leaf=level.is_force)
  if not inner_rules.RULES[clock.rule].needs_inputs:
    return gradients, None
  def summarise(f, kernel):
    return (None if f.input_BxCxI is None
            else jax.vmap(inner_rules.summarise)(f.input_BxCxI, kernel, weight))
  return gradients, jax.tree.map(summarise, force, _weights(params, state), is_leaf=level.is_force)


def _update(clock, lr, params, state, gradients, inputs, happens_B) -> LevelState:
  """One step of the inner rule, in the streams where it happens."""
  def choose(new, old):
    return jnp.where(along(happens_B, old), new, old)

  tx = inner_rules.make(clock.rule, lr, clock.beta)
  update = jax.vmap(lambda g, s, p, i: tx.update(g, s, p, inputs=i))
  change, rule = update(gradients, state.rule, _weights(params, state), inputs)
  return state.replace(delta=jax.tree.map(lambda d, c: choose(d + c, d), state.delta, change),
                       rule=jax.tree.map(choose, rule, state.rule))
