"""The language model: embedding, N blocks scanned over stacked parameters, norm, head tied to the embedding.

A block is a token mixer (attention, attention with a Titan memory, or self-modifying Titans), then a channel mixer (SwiGLU
or CMS), each pre-normed.

    model = HopeLM(config)
    params = init_params(config, key)
    logits, _, _ = model.apply({"params": params}, tokens_BxT)                      # whole documents
    logits, fast, _ = model.apply({"params": params}, tokens_BxT, init_fast(config, B))   # to be continued
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from hope_jax import config as configs
from hope_jax.memory import level, level_write, write_rule
from hope_jax.model import plan, slots
from hope_jax.model.attention import Attention, empty_cache
from hope_jax.model.cms import CMS
from hope_jax.model.layers import CONV, SwiGLU
from hope_jax.model.selfmod import SelfMod, empty_memory
from hope_jax.model.sharding import constrain, constrain_params
from hope_jax.model.state import FastState, LayerState
from hope_jax.model.titan import Titan

REMAT = {  # what is kept of a block for the backward pass
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "block": jax.checkpoint_policies.nothing_saveable}


def compute_dtype(config):
  """Of activations and matrix products."""
  return jnp.dtype(config.model.dtype)


def chunk_grid(config) -> int:
  """Documents start at multiples of this; 1: anywhere, but without gaps (bands of attention); 0: anywhere."""
  if config.model.kind == "hope_selfmod":
    return write_rule.from_config(config.selfmod).grid
  return 1 if config.attention.window else 0


def _truncate(through_writes: str) -> int:
  return {"full": 0, "none": 1}.get(through_writes) if ":" not in through_writes else int(through_writes.split(":")[1])


class Block(nn.Module):
  """Token mixer and channel mixer: (x, state or None, layout, dropout key, weights, probes, writes) -> (x, state, stats, taps).

  `weights` are those of levels that a stream has written. `probes` are zeros added inside the levels of those names
  (level.zeros), and "block" at the block's output: their gradients write the memories. `taps` holds what else is needed
  for it: each level's input and its kernels', and what the Titan memory answered ("titan_read"). `writes`: whether
  self-modifying memories do.
  """
  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BxSxD, state, layout, rng, weights, probes, writes):
    c, dtype = self.config, compute_dtype(self.config)
    taps, through = {}, c.teach.through_writes == "full"
    dim, heads, layers = c.model.dim, c.model.heads, c.model.layers
    norm = lambda name: nn.RMSNorm(dtype=dtype, name=name)
    h = norm("mixer_norm")(x_BxSxD)
    if c.model.kind == "hope_selfmod":
      s, rule = c.selfmod, write_rule.from_config(c.selfmod)
      mixer = SelfMod(rule, heads, layers, int(s.hidden * dim // heads), s.conv, s.gate_skip, s.eta_init, s.alpha_init,
                      _truncate(s.through_writes), s.remat_chunks, dtype, name="selfmod")
      memory, tail = (state.memory, state.conv_Bx3xD) if state else (None, None)
      y, memory, tail, stats = mixer(h, memory, tail, layout, writes)
      new = LayerState(memory=memory, conv_Bx3xD=tail)
    else:
      mixer = Attention(heads, layers, c.attention.window, c.attention.rope_base, dtype, name="attention")
      cache = state.cache if state else empty_cache(x_BxSxD.shape[0], 0, heads, dim // heads, dtype)
      y, cache = mixer(h, cache, layout)
      new, stats = LayerState(cache=cache), {}
      if c.model.kind in configs.HYBRIDS:
        titan = Titan(int(c.titan.hidden * dim), layers, c.model.kind == "hope_hybrid", through, name="titan")
        taps["titan_read"], of_kernels = titan(y, weights.get("titan"))
        taps["titan"] = y, of_kernels
        y = y + taps["titan_read"]
    x_BxSxD = x_BxSxD + self.drop(y, rng, 0)

    hidden = int(c.mixer.hidden * dim)
    if c.mixer.kind == "swiglu":
      y = SwiGLU(hidden, layers, dtype, name="mlp")(norm("channel_norm")(x_BxSxD))
    elif c.mixer.levels:
      cms = CMS(tuple(entry.name for entry in c.mixer.levels), c.mixer.connection, hidden, layers, c.mixer.norm,
                c.mixer.activation, through, name="cms")
      y, inputs = cms(x_BxSxD, weights, probes)
      taps |= inputs
    else:
      y = jnp.zeros_like(x_BxSxD)
    x_BxSxD = x_BxSxD + self.drop(y, rng, 1)
    if "block" in probes:
      x_BxSxD = x_BxSxD + probes["block"].astype(dtype)
    return x_BxSxD, new if state else None, stats, taps

  def drop(self, y, rng, branch: int):
    """Dropout, where a key is given."""
    rate = self.config.model.dropout
    if rng is None or not rate:
      return y
    keep = jax.random.bernoulli(jax.random.fold_in(rng, branch), 1 - rate, y.shape)
    return jnp.where(keep, y / (1 - rate), 0)


class HopeLM(nn.Module):
  """tokens -> (logits_BxTxV float32, FastState or None, stats with a leading layer axis[, taps, if there are probes])."""
  config: FrozenConfigDict

  @nn.compact
  def __call__(self, tokens_BxT, fast=None, segments_BxT=None, *, documents: int = 1, aligned: bool = False, rng=None,
               probes=None):
    """One call.

    Args:
      fast: what the streams have read so far (`init_fast`); None: they start here, and no state is returned.
      segments_BxT: document of each token: 0 is padding, another number than before starts a new document. Default:
        one document, no padding.
      documents: at most so many documents in a stream's part of this call (more read not-a-number).
      aligned: documents start at multiples of `chunk_grid(config)` already, as packed windows do.
      rng: key for dropout; None: no dropout.
      probes: zeros with the layers first, whose gradients write memories (`Block`); the tokens must be aligned.
    """
    c, dtype = self.config, compute_dtype(self.config)
    batch = tokens_BxT.shape[0]
    if segments_BxT is None:
      segments_BxT, aligned = jnp.ones_like(tokens_BxT), aligned or fast is None
    zero = jnp.zeros(batch, jnp.int32)
    segment, count = (fast.segment_B, fast.count_B) if fast else (zero, zero)
    layout = slots.arrange(segments_BxT, segment, count, chunk_grid(c), documents, aligned)

    layers, held = (fast.layers.replace(levels=None), fast.held_BxC) if fast else (None, None)
    levels = fast.layers.levels if fast else None
    if levels:
      if documents > 1:
        raise ValueError(f"documents={documents}: with levels that write in context, a call reads one document a stream")
      begins_B = slots.starts(layout)
      levels = level_write.restart(levels, begins_B)
      held = jnp.where(begins_B[:, None], -1, held)
    embed = nn.Embed(c.model.vocab, c.model.dim, embedding_init=nn.initializers.normal(c.model.embed_std), name="embed")
    known_BxT = jnp.where(tokens_BxT < 0, c.model.vocab, tokens_BxT)  # past the table reads nan; -1 would read its end
    table_VxD = constrain(embed.embedding, "vocab", None)  # gathered over fsdp, for both ends
    x = jnp.take(table_VxD, slots.to_slots(layout, known_BxT), 0).astype(dtype) / c.model.embed_std
    x = constrain(x, "streams", None, None)
    block = Block(c, parent=None)
    blocks = self.param("blocks", self.init_blocks, block)

    weights = {name: level.current(level_parameters(blocks, name), own.delta, 1, c.teach.through_writes == "full")
               for name, own in (levels or {}).items()}

    def step(x, xs):
      params, state, weights, probes, writes, i = xs
      key = None if rng is None else jax.random.fold_in(rng, i)
      params = constrain_params(params, gathered=True)
      x, state, stats, taps = block.apply({"params": params}, x, state, layout, key, weights, probes, writes)
      return constrain(x, "streams", None, None), (state, stats, taps if probes else {})

    may_write_L = plan.of(c).layers.get("selfmod", jnp.zeros(c.model.layers, bool))
    if c.model.remat != "none":
      step = jax.checkpoint(step, policy=REMAT[c.model.remat])
    x, (layers, stats, taps) = jax.lax.scan(step, x, (blocks, layers, weights, probes or {},
                                                            may_write_L, jnp.arange(c.model.layers)))
    head = nn.initializers.constant(0.02 / c.model.embed_std)  # the tied head starts the same whatever the embedding's scale
    x = nn.RMSNorm(dtype=dtype, scale_init=head, name="norm")(slots.to_tokens(layout, x))
    logits = jnp.einsum("btd,vd->btv", x, table_VxD.astype(dtype),
                        preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    logits = constrain(logits, "streams", None, "vocab")
    fast = FastState(layout.segment_B, layout.count_B, layers.replace(levels=levels), held) if fast else None
    return (logits, fast, stats) if probes is None else (logits, fast, stats, taps)

  def init_blocks(self, key, block):
    """Parameters of all blocks, stacked on a leading axis."""
    c = self.config
    x, ones, zero = jnp.zeros((1, 1, c.model.dim), compute_dtype(c)), jnp.ones((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
    layout = slots.arrange(ones, zero, zero, chunk_grid(c))
    return jax.vmap(lambda k: block.init(k, x, None, layout, None, {}, {}, True)["params"])(jax.random.split(key, c.model.layers))


def frozen(config) -> FrozenConfigDict:
  """What a model depends on, as a hashable configuration."""
  parts = {part: config[part] for part in ("model", "attention", "mixer", "selfmod", "titan", "teach")}
  return FrozenConfigDict(parts | {"data": {"seq": config.data.seq}})


def build(config) -> HopeLM:
  """The model of a configuration."""
  return HopeLM(frozen(config))


def init_params(config, key) -> dict:
  """Fresh parameters, float32."""
  return build(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def context_length(config) -> int:
  """Tokens that attention keeps while it generates; 0 where nothing is kept but the memories."""
  if config.model.kind == "hope_selfmod":
    return 0
  return config.attention.window or config.attention.context or config.data.seq


def init_fast(config, batch: int) -> FastState:
  """The state of B streams that have read nothing."""
  c = config
  width = c.model.dim // c.model.heads
  if c.model.kind == "hope_selfmod":
    rule = write_rule.from_config(c.selfmod)
    memory = empty_memory(rule, batch, c.model.heads, width, int(c.selfmod.hidden * width), c.selfmod.gate_skip)
    tail = None if c.selfmod.conv == "none" else jnp.zeros((batch, CONV - 1, c.model.dim), compute_dtype(c))
    layer = LayerState(memory=memory, conv_Bx3xD=tail)
  else:
    layer = LayerState(cache=empty_cache(batch, context_length(c), c.model.heads, width, compute_dtype(c)))
  layer = layer.replace(levels=_fresh_levels(c, batch))
  zero = lambda: jnp.zeros(batch, jnp.int32)  # two buffers, so that the state can be donated
  held = jnp.full((batch, plan.of(c).chunk), -1) if layer.levels else None
  return FastState(zero(), zero(), jax.tree.map(lambda a: jnp.stack([a] * c.model.layers), layer), held)


def level_parameters(blocks: dict, name: str) -> dict:
  """Of a CMS level, or of the Titan memory, in a block's parameters or all blocks'."""
  return blocks["titan"]["memory"] if name == "titan" else blocks["cms"][name]


def _fresh_levels(config, batch: int) -> dict | None:
  clocks = plan.of(config).clocks
  if not clocks:
    return None
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0))["blocks"])
  zeros = lambda name: jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), level_parameters(shapes, name))
  return {name: level_write.fresh(clock, zeros(name), batch, compute_dtype(config)) for name, clock in clocks.items()}
