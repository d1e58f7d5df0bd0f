"""The language model: embedding, N blocks scanned over stacked parameters, norm, head tied to the
embedding.

A block is a token mixer (mixers.py), perhaps with a Titan memory, then a channel mixer (gated MLP
or CMS), each pre-normed. The token mixers of successive layers are those of model.pattern,
repeated; the scan goes over one period of it, so that what is compiled does not grow with depth.
Parameters and state that all layers have lie in stacks of L, those of a token mixer in a stack of
its own layers.

    model = build(config)
    params = init_params(config, key)
    logits, _, _ = model.apply({"params": params}, tokens_BxT)       # whole documents
    fast = init_fast(config, B)                                      # streams, to be continued
    logits, fast, _ = model.apply({"params": params}, tokens_BxT, fast)
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from hope_jax.memory import level, level_write
from hope_jax.model import mixers, plan, slots
from hope_jax.model.axes import constrain
from hope_jax.model.cms import CMS
from hope_jax.model.layers import compute_dtype
from hope_jax.model.mlp import SwiGLU
from hope_jax.model.sharding import constrain_params
from hope_jax.model.state import FastState, LayerState
from hope_jax.model.titan import Titan

REMAT = {  # what is kept of a block for the backward pass
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable}


def chunk_grid(config) -> int:
  """Documents start at multiples of this; 1: anywhere, but without gaps (bands of attention);
  0: anywhere.
  """
  grids = [grid for mixer in mixers.of(config).values() if (grid := mixer.grid(config))]
  return math.lcm(*grids) if grids else 0


class Block(nn.Module):
  """Token mixer and channel mixer: (x, state or None, layout, dropout key, weights, probes,
  may_write)
  -> (x, state, notes, taps).

  `weights` are those of levels that a stream has written. `probes` are zeros added inside the
  levels of those names (level.zeros), and "block" at the block's output: their gradients write the
  memories. `taps` holds what else is needed for it: each level's input and its kernels', and what
  the Titan memory answered ("titan_read"). `may_write`: whether memories of the token mixer's own
  do. `notes` are the token mixer's.
  """
  config: FrozenConfigDict
  mixer: str

  @nn.compact
  def __call__(self, x_BxSxD, state, layout, rng, weights, probes, may_write):
    c, dtype = self.config, compute_dtype(self.config)
    taps, through = {}, c.teach.through_writes == "full"
    dim, layers = c.model.dim, c.model.layers
    h = nn.RMSNorm(dtype=dtype, name="mixer_norm")(x_BxSxD)
    y, state, notes = mixers.TABLE[self.mixer].build(c)(h, state, layout, may_write)
    if c.model.titan != "none":
      titan = Titan(int(c.titan.hidden * dim), layers, c.model.titan == "modified", through,
                    name="titan")
      taps["titan_read"], of_kernels = titan(y, weights.get("titan"))
      taps["titan"] = y, of_kernels
      y = y + taps["titan_read"]
    x_BxSxD = x_BxSxD + self.drop(y, rng, 0)

    hidden = int(c.channel.hidden * dim)
    if c.channel.kind == "swiglu":
      h = nn.RMSNorm(dtype=dtype, name="channel_norm")(x_BxSxD)
      y = SwiGLU(hidden, layers, dtype, name="mlp")(h)
    elif c.channel.levels:
      names = tuple(entry.name for entry in c.channel.levels)
      cms = CMS(names, c.channel.connection, hidden, layers, c.channel.norm, c.channel.activation,
                through, name="cms")
      y, inputs = cms(x_BxSxD, weights, probes)
      taps |= inputs
    else:
      y = jnp.zeros_like(x_BxSxD)
    x_BxSxD = x_BxSxD + self.drop(y, rng, 1)
    if "block" in probes:
      x_BxSxD = x_BxSxD + probes["block"].astype(dtype)
    return x_BxSxD, state, notes, taps

  def drop(self, y, rng, branch: int):
    """Dropout, where a key is given."""
    rate = self.config.model.dropout
    if rng is None or not rate:
      return y
    keep = jax.random.bernoulli(jax.random.fold_in(rng, branch), 1 - rate, y.shape)
    return jnp.where(keep, y / (1 - rate), 0)


class HopeLM(nn.Module):
  """tokens -> (logits_BxTxV float32, FastState or None, notes).

  notes: {mixer: its notes, stacked by layer}; with probes also {"taps": those of `Block`, stacked}.
  """
  config: FrozenConfigDict

  @nn.compact
  def __call__(self, tokens_BxT, fast=None, segments_BxT=None, *, documents: int = 1,
               aligned: bool = False, rng=None, probes=None):
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
    """
    c, dtype = self.config, compute_dtype(self.config)
    batch = tokens_BxT.shape[0]
    if segments_BxT is None:
      segments_BxT, aligned = jnp.ones_like(tokens_BxT), aligned or fast is None
    zero = jnp.zeros(batch, jnp.int32)
    segment, count = (fast.segment_B, fast.count_B) if fast else (zero, zero)
    layout = slots.arrange(segments_BxT, segment, count, chunk_grid(c), documents, aligned)
    tokens, levels, held = (fast.layers.tokens, fast.layers.levels,
                            fast.held_BxC) if fast else ({}, None, None)
    if levels:
      levels, held = self.restart(levels, held, layout, documents)

    embed = nn.Embed(c.model.vocab, c.model.dim,
                     embedding_init=nn.initializers.normal(c.model.embed_std), name="embed")
    # past the table reads nan; -1 would read its end
    known_BxT = jnp.where(tokens_BxT < 0, c.model.vocab, tokens_BxT)
    table_VxD = constrain(embed.embedding, "vocab", None)  # gathered over fsdp, for both ends
    x = jnp.take(table_VxD, slots.to_slots(layout, known_BxT), 0).astype(dtype) / c.model.embed_std
    x = constrain(x, "streams", None, None)
    blocks = self.param("blocks", lambda key: init_blocks(c, key))
    weights = {name: level.current(level_parameters(blocks, name), own.delta, 1,
                                   c.teach.through_writes == "full")
               for name, own in (levels or {}).items()}
    x, tokens, notes = self.scan(x, blocks, tokens, weights, probes, layout, rng)

    # so the tied head starts the same at any embed_std
    head = nn.initializers.constant(0.02 / c.model.embed_std)
    x = nn.RMSNorm(dtype=dtype, scale_init=head, name="norm")(slots.to_tokens(layout, x))
    logits = jnp.einsum("btd,vd->btv", x, table_VxD.astype(dtype),
                        preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    logits = constrain(logits, "streams", None, "vocab")
    fast = FastState(layout.segment_B, layout.count_B, LayerState(tokens, levels),
                     held) if fast else None
    return logits, fast, notes

  def restart(self, levels, held, layout, documents: int):
    """Levels and held tokens of streams, fresh where a document begins."""
    if documents > 1:
      raise ValueError(f"documents={documents}: with levels that write in context, a call reads "
                       "one document a stream")
    begins_B = slots.starts(layout)
    return level_write.restart(levels, begins_B), jnp.where(begins_B[:, None], -1, held)

  def scan(self, x, blocks, tokens, weights, probes, layout, rng):
    """All layers, one period of the pattern after the other: (x, token mixers' states, notes)."""
    c, period = self.config, len(self.config.model.pattern)
    may = {name: jnp.asarray(plan.of(c).layers.get(name, jnp.zeros(c.model.layers, bool)))
           for name in mixers.of(c)}
    of_all = {"blocks": {name: part for name, part in blocks.items() if name not in may},
              "weights": weights, "probes": probes or {}, "may": may,
              "layer": jnp.arange(c.model.layers)}
    of_mixer = {name: {"blocks": blocks[name], "state": tokens.get(name)} for name in may}
    each = {name: c.model.pattern.count(name) for name in may}  # layers of a mixer in a period

    def block(name, x, one, own):
      key = None if rng is None else jax.random.fold_in(rng, one["layer"])
      params = constrain_params(one["blocks"] | {name: own["blocks"]}, gathered=True,
                                below="blocks/")
      x, state, notes, taps = Block(c, name, parent=None).apply(
          {"params": params}, x, own["state"], layout, key, one["weights"], one["probes"],
          one["may"][name])
      return constrain(x, "streams", None, None), (state, notes), taps if probes else {}

    def step(x, xs):
      of_all, of_mixer = xs
      new, taps, seen = {name: [] for name in of_mixer}, [], dict.fromkeys(of_mixer, 0)
      for i, name in enumerate(c.model.pattern[:len(of_all["layer"])]):
        x, own, tap = block(name, x, _pick(of_all, i), _pick(of_mixer[name], seen[name]))
        new[name].append(own)
        taps.append(tap)
        seen[name] += 1
      return x, ({name: _stack(own) for name, own in new.items() if own}, _stack(taps))

    if c.model.remat != "none":
      step = jax.checkpoint(step, policy=REMAT[c.model.remat])
    whole, rest = divmod(c.model.layers, period)
    periods = (_periods(of_all, whole, period),
               {name: _periods(own, whole, each[name]) for name, own in of_mixer.items()})
    x, (new, taps) = jax.lax.scan(step, x, periods)
    new, taps = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (new, taps))
    if rest:
      x, (more, more_taps) = step(x, (
          _after(of_all, whole * period),
          {name: _after(own, whole * each[name]) for name, own in of_mixer.items()}))
      new |= {name: _joined(new[name], own) for name, own in more.items()}
      taps = _joined(taps, more_taps)
    states = {name: state for name, (state, _) in new.items()}
    notes = {name: own for name, (_, own) in new.items() if own}
    return x, states, notes | ({"taps": taps} if probes is not None else {})


def _pick(tree, i: int):
  return jax.tree.map(lambda a: a[i], tree)


def _stack(trees: list):
  return jax.tree.map(lambda *a: jnp.stack(a), *trees)


def _periods(tree, count: int, each: int):
  """Stacks of layers as (count, each, ...)."""
  return jax.tree.map(lambda a: a[:count * each].reshape(count, each, *a.shape[1:]), tree)


def _after(tree, at: int):
  return jax.tree.map(lambda a: a[at:], tree)


def _joined(first, then):
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, then)


def init_blocks(config, key) -> dict:
  """Parameters of all blocks, stacked on a leading axis:
  of all layers, and of those that have a token mixer.
  """
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
  parts = {part: config[part] for part in ("model", "channel", "titan", "teach", *mixers.TABLE)}
  return FrozenConfigDict(parts | {"data": {"seq": config.data.seq}})


def build(config) -> HopeLM:
  """The model of a configuration."""
  return HopeLM(frozen(config))


def init_params(config, key) -> dict:
  """Fresh parameters, float32."""
  return build(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def context_length(config) -> int:
  """Tokens that are kept as context while a text is generated;
  0 where nothing is kept but the memories.
  """
  return max(mixer.context(config) for mixer in mixers.of(config).values())


def init_fast(config, batch: int) -> FastState:
  """The state of B streams that have read nothing."""
  tokens = {name: _stack([mixer.fresh(config, batch)] * len(mixers.layers_of(config, name)))
            for name, mixer in mixers.of(config).items()}
  levels = _stack([_fresh_levels(config, batch)] * config.model.layers)
  def zero():
    return jnp.zeros(batch, jnp.int32)  # two buffers, so that the state can be donated
  held = jnp.full((batch, plan.of(config).chunk), -1) if levels else None
  return FastState(zero(), zero(), LayerState(tokens, levels), held)


def forget_context(config, fast: FastState) -> FastState:
  """The streams with what they have learned, and without the context that token mixers keep."""
  tokens = {name: mixers.TABLE[name].forget(own) for name, own in fast.layers.tokens.items()}
  return fast.replace(layers=fast.layers.replace(tokens=tokens))


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
