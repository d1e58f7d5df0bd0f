"""The language model: embedding, N blocks scanned over stacked parameters, norm, head.

The token mixers of successive layers are those of model.pattern, repeated; the scan goes over one
period of it, so that what is compiled does not grow with depth. Parameters and state that all
layers have lie in stacks of L, those of a token mixer in a stack of its own layers (stacks.py).

    model = build(config)
    params = init_params(config, key)
    logits, _, _ = model.apply({"params": params}, tokens_BxT)       # whole documents
    fast = init_fast(config, B)                                      # streams, to be continued
    logits, fast, _ = model.apply({"params": params}, tokens_BxT, fast)
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from hope_jax.memory import level, level_write, products
from hope_jax.model import mixers, plan, slots, stacks
from hope_jax.model.axes import constrain
from hope_jax.model.block import Block
from hope_jax.model.layers import compute_dtype
from hope_jax.model.sharding import constrain_params
from hope_jax.model.state import FastState, LayerState

REMAT = {  # what is kept of a block for the backward pass
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable}


def chunk_grid(config) -> int:
  """Documents start at multiples of this; 1: anywhere, no gaps (attention bands); 0: anywhere."""
  grids = [grid for mixer in mixers.of(config).values() if (grid := mixer.grid(config))]
  return math.lcm(*grids) if grids else 0


class HopeLM(nn.Module):
  """tokens -> (logits_BxTxV float32, FastState or None, notes).

  notes: {mixer: its notes, stacked by layer}; with probes also {"taps": those of `Block`, stacked}.
  """
  config: FrozenConfigDict

  @nn.compact
  def __call__(self, tokens_BxT, fast=None, segments_BxT=None, *, documents: int = 1,
               aligned: bool = False, rng=None, probes=None, weights=None):
    """One call.

    Args:
      fast: what the streams have read so far (`init_fast`); None: they start here, and no state is
        returned.
      segments_BxT: document of each token: 0 is padding, another number than before starts a new
        document. Default: one document, no padding.
      documents: at most so many documents in a stream's part of this call (more read not-a-number).
      aligned: documents start at multiples of `chunk_grid(config)` already, as packed windows do.
      rng: key for dropout; None: no dropout.
      probes: zeros with the layers first, whose gradients write memories (`Block`); the tokens must
        be aligned.
      weights: those of levels, as `current_weights` gives them; None: they are computed. Where a
        stream has learned something, no document may begin in the call.
    """
    c, dtype = self.config, compute_dtype(self.config)
    zero = jnp.zeros(len(tokens_BxT), jnp.int32)
    before = FastState(zero, zero, LayerState({})) if fast is None else fast
    if segments_BxT is None:
      segments_BxT, aligned = jnp.ones_like(tokens_BxT), aligned or fast is None
    layout = slots.arrange(segments_BxT, before.segment_B, before.count_B, chunk_grid(c), documents,
                           aligned)
    levels, held = self.restart(before, layout, documents)

    embed = nn.Embed(c.model.vocab, c.model.dim,
                     embedding_init=nn.initializers.normal(c.model.embed_std), name="embed")
    table_VxD = constrain(embed.embedding, "vocab", None)  # gathered over fsdp, for both ends
    # past the table reads nan; -1 would read its end
    known_BxT = jnp.where(tokens_BxT < 0, c.model.vocab, tokens_BxT)
    x = jnp.take(table_VxD, slots.to_slots(layout, known_BxT), 0).astype(dtype) / c.model.embed_std
    blocks = self.param("blocks", lambda key: init_blocks(c, key))
    if weights is None:
      weights = _weights(c, blocks, levels)
    x, tokens, notes = self.scan(constrain(x, "streams", None, None), blocks, before.layers.tokens,
                                 weights, probes, layout, rng)

    # so the tied head starts the same at any embed_std
    scale = nn.initializers.constant(0.02 / c.model.embed_std if c.model.tied else 1.0)
    x = nn.RMSNorm(c.model.norm_epsilon, dtype=dtype, scale_init=scale,
                   name="norm")(slots.to_tokens(layout, x))
    head_VxD = table_VxD if c.model.tied else constrain(self.own_head(), "vocab", None)
    logits = products.scores(x, head_VxD.astype(dtype))
    after = FastState(layout.segment_B, layout.count_B, LayerState(tokens, levels), held)
    return constrain(logits, "streams", None, "vocab"), None if fast is None else after, notes

  def own_head(self):
    """(V, D), where the head is not the embedding."""
    m = self.config.model
    return nn.Embed(m.vocab, m.dim, embedding_init=nn.initializers.normal(0.02),
                    name="head").embedding

  def restart(self, fast, layout, documents: int):
    """Levels and held tokens of streams, fresh where a document begins; None: there are none."""
    if not fast.layers.levels:
      return fast.layers.levels, fast.held_BxC
    if documents > 1:
      raise ValueError(f"documents={documents}: with levels that write in context, a call reads "
                       "one document a stream")
    begins_B = slots.starts(layout)
    levels = _found(self.config, fast)
    return (level_write.restart(levels, begins_B),
            jnp.where(begins_B[:, None], -1, fast.held_BxC))

  def scan(self, x, blocks, tokens, weights, probes, layout, rng):
    """All layers, one period of the pattern after the other: (x, token mixers' states, notes).

    What all layers have lies in stacks of all layers, what is a mixer's in stacks of its own. The
    scan takes a period's part of each; layers that fill no period follow one by one.
    """
    c, pattern = self.config, self.config.model.pattern
    period, each = len(pattern), {name: pattern.count(name) for name in pattern}
    may = {name: jnp.asarray(plan.of(c).layers.get(name, jnp.zeros(c.model.layers, bool)))
           for name in each}
    of_all = {"blocks": {name: part for name, part in blocks.items() if name not in each},
              "weights": weights, "probes": probes or {}, "may": may,
              "layer": jnp.arange(c.model.layers)}
    of_mixer = {name: {"blocks": blocks[name], "state": tokens.get(name)} for name in each}

    def block(name, x, one, own):
      key = None if rng is None else jax.random.fold_in(rng, one["layer"])
      params = constrain_params(one["blocks"] | {name: own["blocks"]}, gathered=True,
                                below="blocks/")
      x, state, notes, taps = Block(c, name, parent=None).apply(
          {"params": params}, x, own["state"], layout, key, one["weights"], one["probes"],
          one["may"][name])
      return constrain(x, "streams", None, None), (state, notes), taps if probes else {}

    run = {name: functools.partial(block, name) for name in each}
    if c.model.remat != "none":
      run = {name: jax.checkpoint(f, policy=REMAT[c.model.remat]) for name, f in run.items()}

    def some(x, names, of_all, of_mixer):
      new, taps = {name: [] for name in names}, []
      for name, one in zip(names, of_all):
        x, own, tap = run[name](x, one, of_mixer[name][len(new[name])])
        new[name].append(own)
        taps.append(tap)
      return x, new, taps

    def step(x, xs):
      of_all, of_mixer = xs
      x, new, taps = some(x, pattern, stacks.split(of_all, period),
                          {name: stacks.split(of_mixer[name], n) for name, n in each.items()})
      return x, ({name: stacks.stack(own) for name, own in new.items()}, stacks.stack(taps))

    whole, rest = divmod(c.model.layers, period)
    x, (new, taps) = jax.lax.scan(step, x, (
        stacks.periods(of_all, whole, period),
        {name: stacks.periods(of_mixer[name], whole, n) for name, n in each.items()}))
    new, taps = ({name: stacks.flat(new[name], n) for name, n in each.items()},
                 stacks.flat(taps, period))
    names = pattern[:rest]
    x, last, last_taps = some(
        x, names, stacks.after(of_all, whole * period, rest),
        {name: stacks.after(of_mixer[name], whole * each[name], names.count(name))
         for name in names})
    new = {name: stacks.joined(own, last.get(name, [])) for name, own in new.items()}
    notes = {name: own for name, (_, own) in new.items() if own}
    if probes is not None:
      notes["taps"] = stacks.joined(taps, last_taps)
    return x, {name: state for name, (state, _) in new.items()}, notes


def init_blocks(config, key) -> dict:
  """Parameters of all blocks, stacked on a leading axis: of all layers, or a token mixer's own."""
  c, keys = config, jax.random.split(key, config.model.layers)
  x, ones, zero = (jnp.zeros((1, 1, c.model.dim), compute_dtype(c)), jnp.ones((1, 1), jnp.int32),
                   jnp.zeros(1, jnp.int32))
  layout = slots.arrange(ones, zero, zero, chunk_grid(c))
  own, shared, order = {}, [], []
  for name in mixers.of(c):
    layers = mixers.layers_of(c, name)
    block = Block(c, name, parent=None)
    made = jax.vmap(lambda k: block.init(k, x, None, layout, None, {}, {},
                                         True)["params"])(keys[jnp.array(layers)])
    own[name] = made.pop(name)
    shared.append(made)
    order += layers
  if len(shared) == 1:
    return shared[0] | own
  place = jnp.argsort(jnp.array(order))
  return jax.tree.map(lambda *a: jnp.concatenate(a)[place], *shared) | own


def frozen(config) -> FrozenConfigDict:
  """What a model depends on, as a hashable configuration."""
  parts = {part: config[part] for part in ("model", "channel", "titan", "teach", "control",
                                           *mixers.SECTIONS)}
  return FrozenConfigDict(parts | {"data": {"seq": config.data.seq}})


def build(config) -> HopeLM:
  """The model of a configuration."""
  return HopeLM(frozen(config))


def init_params(config, key) -> dict:
  """Fresh parameters, float32."""
  return build(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def context_length(config) -> int:
  """Tokens kept as context while a text is generated; 0 where only the memories are kept."""
  return max(mixer.context(config) for mixer in mixers.of(config).values())


def init_fast(config, batch: int) -> FastState:
  """The state of B streams that have read nothing."""
  tokens = {name: _repeated(mixer.fresh(config, batch), len(mixers.layers_of(config, name)))
            for name, mixer in mixers.of(config).items()}
  levels = _repeated(_fresh_levels(config, batch), config.model.layers)
  def zero():
    return jnp.zeros(batch, jnp.int32)  # two buffers, so that the state can be donated
  held = jnp.full((batch, plan.of(config).chunk), -1) if levels else None
  return FastState(zero(), zero(), LayerState(tokens, levels), held)


def forget_context(config, fast: FastState) -> FastState:
  """The streams with what they have learned, and without the context that token mixers keep."""
  tokens = {name: mixers.TABLE[name].forget(own) for name, own in fast.layers.tokens.items()}
  return fast.replace(layers=fast.layers.replace(tokens=tokens))


def current_weights(config, params, fast: FastState) -> dict:
  """{level: weights of each stream}, for calls that write no level: one token costs less then."""
  return _weights(config, params["blocks"], _found(config, fast))


def _found(config, fast: FastState) -> dict | None:
  """The levels as a call finds them: under control.reset, nothing of what was written."""
  levels = fast.layers.levels
  if not config.control.reset or not levels:
    return levels
  every_B = jnp.ones_like(fast.segment_B, bool)
  return {name: level_write.restart(own, every_B).replace(updates_B=own.updates_B)
          for name, own in levels.items()}


def _weights(config, blocks: dict, levels: dict | None) -> dict:
  """Layers first, then streams."""
  through = config.teach.through_writes == "full"
  return {name: level.current(level_parameters(blocks, name), own.delta, 1, through)
          for name, own in (levels or {}).items()}


def level_parameters(blocks: dict, name: str) -> dict:
  """Of a CMS level, or of the Titan memory, in a block's parameters or all blocks'."""
  return blocks["titan"]["memory"] if name == "titan" else blocks["cms"][name]


def _fresh_levels(config, batch: int) -> dict | None:
  clocks = plan.of(config).clocks
  if not clocks:
    return None
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0))["blocks"])
  def zeros(name):
    return jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), level_parameters(shapes, name))
  return {name: level_write.fresh(clock, zeros(name), batch, compute_dtype(config))
          for name, clock in clocks.items()}


def _repeated(tree, count: int):
  return jax.tree.map(lambda a: jnp.stack([a] * count), tree)
