"""Reading and learning by chunks: forward, loss, teach signals of one backward pass, writes.

Every stream reads C tokens with what its memories hold, is told what came next, and writes.
Attention sees the past through its cache; the next chunk reads with what this one wrote. What is
written is data for the outer gradient, unless teach_signal.through_writes is full.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.data import files
from hope_jax.memory import level, level_write, teach_signal
from hope_jax.model import axes, lm, mixers, plan, sharding, titan
from hope_jax.model.layers import compute_dtype
from hope_jax.model.state import FastState


class Strength(NamedTuple):
  """How much is written, as arrays: it may change without compiling again."""
  scale: Any  # of the teach signal
  rates: dict  # inner learning rate of each level
  threshold: Any  # of the surprise


def token_losses(logits_BxTxV, labels_BxT):
  """Cross-entropy in nats, 0 where there is no label."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, jnp.maximum(labels_BxT, 0))
  return jnp.where(labels_BxT >= 0, losses, 0.0)


def strength(config, step=None) -> Strength | None:
  """As configured, at a step (None: after warm-ups, before decay); None: nothing to be written."""
  if not plan.of(config).levels:
    return None
  t = config.teach
  factor = 1.0 if step is None else teach_signal.schedule(t, step)
  def risen(warmup):
    return jnp.minimum(1.0, step / warmup) if warmup and step is not None else 1.0
  rates = {name: entry.lr * risen(entry.warmup) for name, entry in plan.of(config).levels.items()}
  return Strength(t.scale * factor, rates, t.threshold)


def in_training(config, step) -> Strength | None:
  """`strength` for one of optim.accumulate pieces of a batch; a mean is over all of them."""
  strong = strength(config, step)
  if strong is None or config.teach.reduction != "mean":
    return strong
  return strong._replace(scale=strong.scale / config.optim.accumulate)


def at_evaluation(config, step=None) -> Strength | None:
  """`strength` as teach.at_evaluation has it; `step`: of the training that is under way, if any."""
  kind, _, number = config.teach.at_evaluation.partition(":")
  return strength(config, None if kind == "full" else int(number) if number else step)


def shares(config, step: int | None = None) -> dict[str, float]:
  """{path of each level: how strongly it is written where nothing is trained, of its full rate}."""
  now, full = at_evaluation(config, step), strength(config)
  return {plan.path(name): float(now.scale * now.rates[name] / full.scale / rate)
          for name, rate in (full.rates.items() if full else ()) if rate}


def describe(strengths: dict[str, float]) -> str:
  """What `shares` has to say, if not everything is written at its full strength."""
  weak = [f"{path} {share:.3g}" for path, share in strengths.items() if share < 1]
  return f"; of full strength, as trained: {', '.join(weak)}" if weak else ""


def tell_long(config, tokens: int) -> None:
  """Says once that a text is longer than what attention to all of it keeps."""
  keeps = config.attention.context or config.data.seq
  if "attention" in config.model.pattern and not config.attention.window and tokens > keeps:
    files.tell(f"a text is longer than the {keeps:,} tokens that attention keeps "
               "(attention.context): it is read all the same, each token sees so many before it")


def probes(config, params, batch: int) -> dict:
  """Zeros added inside levels and at blocks' outputs; their gradients write memories (block.py)."""
  c, names = config, plan.of(config).levels
  chunk, out = plan.of(c).chunk, {}
  if c.teach.target == "block" or "titan" in names:
    out["block"] = jnp.zeros((c.model.layers, batch, chunk, c.model.dim), compute_dtype(c))
  if c.teach.target == "exact":
    clocks = plan.of(c).clocks
    out |= {name: jax.vmap(lambda layer: level.zeros(layer, batch, chunk))(
        clocks[name].written(lm.level_parameters(params["blocks"], name)))
            for name in names if name != "titan"}
  return out


def chunk(config, params, fast: FastState | None, piece: dict, strong: Strength | None, *,
          outer: bool = False, rng=None):
  """One chunk of every stream, read, and written where the teach signal writes.

  Args:
    fast: None: streams that start here, read whole; nothing can be written then.
    piece: (B, C) arrays tokens, labels (-1: none) and segments (0: padding). For writes, one
      document a stream, its tokens at the slots that are their positions modulo C, and "ends" (B,),
      optional: streams that end here and flush.
    strong: None: only read.
    outer: also return the gradient of the summed loss with respect to the parameters.

  Returns:
    ({"nats_BxC", "correct_BxC", "stats"}, FastState or None, gradients or None);
    stats: {level: {name: (L, B)}, token mixer: {name: (its layers,)}}.
  """
  model, labels_BxC = lm.build(config), piece["labels"]

  def loss(params, probe):
    logits, after, notes = model.apply({"params": params}, piece["tokens"], fast,
                                       piece["segments"], aligned=True, rng=rng, probes=probe)
    losses = token_losses(logits, labels_BxC)
    return jnp.sum(losses), (after, losses, logits, notes)

  probe = None if strong is None else probes(config, params, len(labels_BxC))
  of = (0,) * outer + (1,) * (strong is not None)
  call = jax.value_and_grad(loss, of, has_aux=True) if of else lambda *own: (loss(*own), ())
  (_, (after, losses, logits, notes)), gradients = call(params, probe)
  stats = notes
  if strong is not None:
    seen = params, gradients[-1], notes.pop("taps"), losses, logits
    if config.teach.through_writes != "full":
      seen = jax.lax.stop_gradient(seen)
    levels, stats = _write_layers(config, after, piece, strong, *seen)
    stats, after = stats | notes, after.replace(layers=after.layers.replace(levels=levels))
  out = {"nats_BxC": losses, "stats": stats,
         "correct_BxC": (jnp.argmax(logits, -1) == labels_BxC) & (labels_BxC >= 0)}
  return out, after, gradients[0] if outer else None


class Place(NamedTuple):
  """Where the streams are in a chunk."""
  valid_BxC: jax.Array
  begin_B: jax.Array  # position of the chunk's slot 0
  ends_B: jax.Array  # bool: the stream ends here and flushes

  def due(self, clock):
    """(B, G): periods whose last token is in this chunk; of streams that end, unfinished ones."""
    groups = self.valid_BxC.reshape(len(self.valid_BxC), clock.groups, -1)
    ended_B = (self.begin_B + clock.chunk) % clock.period == 0
    last = jnp.any(groups, -1) | (clock.period > clock.chunk)
    return groups[:, :, -1] & ended_B[:, None] | last & self.ends_B[:, None]


def _write_layers(config, fast, piece, strong, params, signals, taps, losses, logits):
  """All levels of all layers: (states, {level: {name: (L, B)}})."""
  own, t = plan.of(config), config.teach
  valid_BxC, labelled_BxC = piece["segments"] > 0, piece["labels"] >= 0
  begin_B = fast.count_B - jnp.sum(valid_BxC, 1)
  place = Place(valid_BxC, begin_B - begin_B % own.chunk,
                 piece.get("ends", jnp.zeros(begin_B.shape, bool)) & t.flush_partial)
  scale = strong.scale / (labelled_BxC.size * axes.parts() if t.reduction == "mean" else 1)
  if t.signal == "global":
    signals = {"block": jnp.broadcast_to(signals["block"][-1], signals["block"].shape)}
  signals = _controlled(config.control, signals)
  states, stats = {}, {}
  for name, entry in own.levels.items():
    # a level's own gradients; its output's is the last kernel's
    added = signals.get(name)
    signal = signals["block"] if added is None else added["down"]["kernel"]
    factor_LxBxC = teach_signal.factor(signal, scale * entry.scale, t.clip)
    norm_LxBxC = factor_LxBxC * teach_signal.norm(signal)
    surprise = teach_signal.surprise(t.metric, norm_LxBxC, losses, logits, labelled_BxC)
    may_L = jnp.asarray(own.layers[plan.path(name)]) & (strong.scale * strong.rates[name] > 0)
    gate_LxB = (surprise >= strong.threshold) & jnp.any(labelled_BxC, 1) & may_L[:, None]
    write = functools.partial(_write_layer, config, name, strong.rates[name], place)
    blocks = {part: params["blocks"][part] for part in ("cms", "titan") if part in params["blocks"]}
    _, (states[name], written) = jax.lax.scan(
        lambda _, xs: (None, write(*xs)), None,
        (blocks, fast.layers.levels[name], taps, signal, added, factor_LxBxC, gate_LxB))
    stats[name] = written | {
        "surprise": surprise, "open": gate_LxB.astype(jnp.int32),
        "teach": jnp.sum(norm_LxBxC * valid_BxC, -1) / jnp.maximum(jnp.sum(valid_BxC, -1), 1),
        "pending": jnp.broadcast_to(_pending(own.clocks[name], place, fast.count_B),
                                    gate_LxB.shape)}
  if config.channel.connection == "nested":
    states = _restart_nested(config, own.clocks, states, place)
  return states, stats


def _controlled(control, signals):
  """Teach signals (L, B, C, ...) under the controls: another token's, or of the other sign."""
  if control.shuffled_teach:
    tokens = jax.tree.leaves(signals)[0].shape[2]
    order_C = jax.random.permutation(jax.random.key(0), tokens)
    signals = jax.tree.map(lambda g: jnp.take(g, order_C, 2), signals)
  return signals if control.sign == 1 else jax.tree.map(lambda g: control.sign * g, signals)


def _write_layer(config, name, rate, place, blocks, state, taps, signal, added, factor_BxC, gate_B):
  """One level of one layer: (its state, statistics).

  Args:
    taps: what `Block` kept of the level: its input, its kernels' inputs.
    signal: at the level's output, or at its block's; added: of everything inside it, or None.
  """
  clock = plan.of(config).clocks[name]
  blocks = sharding.constrain_params(blocks, gathered=True, below="blocks/")
  x, of_kernels = taps[name]
  signal, force = teach_signal.scaled(signal, factor_BxC), None
  if added is not None:
    force = level.paired(of_kernels,
                         jax.tree.map(lambda g: teach_signal.scaled(g, factor_BxC), added))
  if name == "titan":
    modifier = blocks["titan"].get("modifier")
    if config.titan.modifier == "teach_only":
      modifier = jax.lax.stop_gradient(modifier)
    signal = titan.signal(modifier, clock.period, x, taps["titan_read"], signal)
    # a target that follows its own memory may run away
    signal = teach_signal.scaled(signal, teach_signal.factor(signal, 1.0, config.teach.clip))
  return level_write.write(clock, rate, lm.level_parameters(blocks, name), state, x, signal,
                           place.valid_BxC & gate_B[:, None], place.due(clock),
                           place.begin_B % clock.period, force)


def _pending(clock, place, count_B):
  """(B,): tokens of a period that has not ended."""
  ended_B = jnp.any(place.due(clock), 1) | (clock.period <= clock.chunk)
  return jnp.where(ended_B, 0, count_B % clock.period)


def _restart_nested(config, clocks, states, place):
  """NL Eq. 72: at the end of the next slower level's period, back to the meta-learned weights."""
  names = [entry.name for entry in config.channel.levels if entry.name in clocks]
  for fast, slow in zip(names, names[1:]):
    ends = jnp.any(place.due(clocks[slow]), 1)
    states[fast] = level_write.restart(states[fast], ends).replace(updates_B=states[fast].updates_B)
  return states


def scan_chunks(config, batch: dict) -> dict:
  """(B, T) arrays as (T / C, B, C), to be scanned."""
  size = plan.of(config).chunk
  return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, size), 1, 0), batch)


def by_layer(config, notes: dict) -> dict:
  """Notes {mixer: {name: (its layers,)}} as {name: (L,)}, not-a-number in other mixers' layers."""
  out = {}
  for mixer, values in notes.items():
    layers = jnp.array(mixers.layers_of(config, mixer))
    for name, value in values.items():
      out[name] = (value if len(layers) == config.model.layers
                   else jnp.full(config.model.layers, jnp.nan).at[layers].set(value))
  return out


def summary(config, stats: dict) -> dict:
  """Statistics of N chunks, {level: {name: (N, L, B)}}, as {"name/path": (L,)}: means over streams.

  updates, open (chunks that wrote) and moved (lengths of all changes) are sums over the chunks,
  pending (tokens of an unfinished period) is the last chunk's, the others are means.
  """
  out = {}
  for memory, values in stats.items():
    if memory in mixers.TABLE:
      out |= by_layer(config, {memory: {name: value[-1] for name, value in values.items()}})
      continue
    for name, value in values.items():
      over_chunks = {"updates": jnp.sum, "open": jnp.sum, "moved": jnp.sum,
                     "pending": lambda a, _: a[-1]}.get(name, jnp.mean)
      out[f"{name}/{plan.path(memory)}"] = jnp.mean(over_chunks(value.astype(jnp.float32), 0), -1)
  return jax.lax.stop_gradient(out)
