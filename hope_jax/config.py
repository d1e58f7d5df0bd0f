"""The configuration: every field with its default and meaning, and its JSON.

A config file returns `base()` with some fields changed; `--config.model.dim=128` changes one more.
The tree is locked: a field that is not below is an error, and so is a value of another type.
checks.py checks the rest.
"""

import dataclasses
import importlib
import json
import pkgutil
import re
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax import optimizers, versions

OPTIMIZERS = tuple(module.name for module in pkgutil.iter_modules(optimizers.__path__))
# fields of config.model, by names of models; all but transformer and titan_hybrid have a CMS
PRESETS = {
    "transformer": dict(pattern=("attention",), titan="none"),
    "hope_attention": dict(pattern=("attention",), titan="none"),
    "hope_selfmod": dict(pattern=("selfmod",), titan="none"),
    "hope_hybrid": dict(pattern=("attention",), titan="modified"),
    "titan_hybrid": dict(pattern=("attention",), titan="plain"),
    "gru": dict(pattern=("gru",), titan="none"),
    "gated_deltanet": dict(pattern=("gated_deltanet",), titan="none"),
    "titans_lmm": dict(pattern=("titans_lmm",), titan="none"),
    "titans_mac": dict(pattern=("titans_mac",), titan="none"),
    "titans_mag": dict(pattern=("titans_mag",), titan="none"),  # with an attention.window
    "titans_mal": dict(pattern=("titans_mal",), titan="none"),  # with an attention.window
    "samba": dict(pattern=("mamba", "attention"), titan="none"),  # with an attention.window
}


@dataclasses.dataclass(frozen=True)
class Level:
  """An entry of channel.levels: one level of the continuum memory system.

  period: tokens per update. In context (channel.in_context): from 1 to data.seq. Longer: stepped by
    the outer optimizer, once per period (training/optimizer.py says how). 0: by the outer
    optimizer, at every step.
  rule, lr, beta: the inner optimizer (memory/inner_rules.py).
  writes: what of the level is written in context: all | down: its last kernel (In-Place TTT).
  warmup: optimizer steps in which lr rises from 0.
  scale: of the teach signal, on top of teach.scale.
  """
  name: str
  period: int
  rule: str = "sgd"
  lr: float = 0.1
  beta: float = 0.9
  warmup: int = 0
  scale: float = 1.0
  writes: str = "all"


def base() -> ConfigDict:
  """The defaults. Lengths and periods are in tokens."""
  c = ConfigDict()
  c.seed = 0  # initial parameters and dropout; data order has its own

  c.model = ConfigDict()
  # token mixers of successive layers (model/mixers.py), repeated; PRESETS has names
  c.model.pattern = ("selfmod",)
  # a memory that the teach signal writes, beside the token mixer: none | plain | modified
  c.model.titan = "none"
  c.model.dim = 256
  c.model.layers = 4
  c.model.heads = 4
  c.model.vocab = 4096  # must be the tokenizer's size
  # of activations and matrix products: float32 | bfloat16; parameters stay float32
  c.model.dtype = "float32"
  # what the backward pass recomputes: none | dots: all but products with parameters | block: all
  c.model.remat = "none"
  # of the embedding at the start, divided out at the input; larger: embeddings move slower
  c.model.embed_std = 0.02
  c.model.tied = True  # the head is the embedding; False: a table of its own
  c.model.norm_epsilon = 1e-6  # of root-mean-square norms, but those of self-modifying memories
  c.model.dropout = 0.0  # on each residual branch

  c.attention = ConfigDict()
  c.attention.window = 0  # each token sees this many tokens, itself included; 0: the whole sequence
  # heads of keys and values, each for model.heads / kv_heads of the queries'; 0: model.heads
  c.attention.kv_heads = 0
  c.attention.width = 0  # of a head; 0: model.dim / model.heads
  c.attention.qk_norm = True  # queries and keys are normalised per head
  c.attention.bias = "none"  # none | qkv: of queries, keys and values | all: of the output too
  c.attention.rope_base = 10_000.0
  # positions beyond those of training: none | linear: divided by the factor | llama3: waves longer
  # than original / low by the factor, those shorter than original / high not, between in between
  c.attention.rope_scaling = "none"
  c.attention.rope_factor = 1.0
  c.attention.rope_low = 1.0
  c.attention.rope_high = 4.0
  c.attention.rope_original = 8192  # positions before scaling
  c.attention.context = 0  # cache length when window is 0; 0: data.seq

  c.channel = ConfigDict()  # the channel mixer
  c.channel.kind = "cms"  # swiglu | cms
  c.channel.hidden = 2.0  # swiglu: width / dim.  cms: width of each level / dim
  c.channel.norm = "rms"  # cms: rms | layer
  c.channel.activation = "gelu"  # cms: gelu | swiglu
  c.channel.bias = False  # of every kernel
  c.channel.levels = (Level("fast", 0),)  # cms, from fast to slow
  # sequential (NL Eq. 73) | independent (Eq. 74) | nested (Eq. 72)
  c.channel.connection = "sequential"
  c.channel.in_context = False  # levels of period 1 to data.seq write themselves while they read

  c.gru = ConfigDict()
  c.gru.forget_init = -1.0  # bias of the gates at the start: below 0 remembers longer

  c.gated_deltanet = ConfigDict()  # arXiv 2412.06464
  c.gated_deltanet.chunk = 64  # tokens processed at once: speed alone
  c.gated_deltanet.alpha = True  # learned retention; off: 1
  c.gated_deltanet.output_gate = True
  c.gated_deltanet.beta_max = 1.0  # largest step; 2: factors of -1 too, which count (parity)

  c.mamba = ConfigDict()  # arXiv 2405.21060
  c.mamba.expand = 2  # inner width / dim; heads stay as wide
  c.mamba.entries = 64  # of state, for each inner channel
  c.mamba.chunk = 64  # tokens processed at once: speed alone

  c.titans = ConfigDict()  # arXiv 2501.00663
  c.titans.depth = 2  # matrices of a head's memory, 1 to 4
  c.titans.hidden = 1.0  # its hidden width / head width
  c.titans.residual = True  # it answers z + gain norm(MLP(z)); off: MLP(z)
  c.titans.chunk = 16  # tokens whose gradients are taken at the same weights
  c.titans.step = 0.1  # largest step of a write
  c.titans.momentum = True  # learned, of the gradients; off: none
  c.titans.forget = True  # learned; off: nothing is forgotten
  c.titans.output_gate = True  # of titans_lmm
  c.titans.segment = 128  # titans_mac: tokens that attention sees, a segment after the other
  c.titans.persistent = 4  # learned tokens that attention always sees, beside or after a memory
  c.titans.remat_chunks = 4  # recompute the backward pass in groups of n chunks; 0: store all

  c.selfmod = ConfigDict()  # NL Eq. 83-93
  c.selfmod.memory = "mlp"  # mlp | linear
  c.selfmod.hidden = 1.0  # mlp: memory hidden width / head width
  # of keys, values, step sizes, retention; so many tokens are read at once as divide both chunks
  c.selfmod.chunk_generators = 64
  c.selfmod.chunk_memory = 64  # of M_mem
  c.selfmod.objective = "l2"  # l2 | dot (Eq. 92)
  c.selfmod.factor = "layer"  # mlp: what the rank-one factor multiplies: layer | input
  c.selfmod.rank_one = True  # the factor (alpha I - eta k k^T); off: alpha alone
  c.selfmod.alpha = True  # learned retention; off: 1
  c.selfmod.momentum = 0.0
  c.selfmod.target_gradient = False  # differentiate the inner loss through its own target
  c.selfmod.unit_target = True  # mlp: targets of width > 1 are normalised
  c.selfmod.gate_skip = False  # mlp: a learned skip in the two scalar memories
  c.selfmod.adaptive_q = False  # queries from a memory of their own
  c.selfmod.conv = "separate"  # none | shared | separate: window 4, one each for k, v, q
  c.selfmod.eta_init = 0.1  # step size at the start
  c.selfmod.alpha_init = 0.98  # retention at the start
  # keeps every memory's spectral norm below max(this, its norm at the start); 0: no bound
  c.selfmod.bound = 8.0
  c.selfmod.through_writes = "full"  # full | none | chunks:n
  c.selfmod.remat_chunks = 1  # recompute the backward pass in groups of n chunks; 0: store all

  c.titan = ConfigDict()  # model.titan: an MLP memory read from the token mixer's output
  c.titan.hidden = 4.0  # width / dim
  c.titan.period = 8
  c.titan.rule = "sgd"
  c.titan.lr = 0.1
  c.titan.beta = 0.9
  c.titan.warmup = 0
  # model.titan=modified: on | teach_only (not trained) | off (the memory is not written)
  c.titan.modifier = "on"

  c.teach = ConfigDict()  # what writes CMS levels and the Titan memory while they read
  c.teach.scale = 1.0  # of the gradient at a block's output
  # largest norm per token, after scaling, of the Titan memory's error too; 0: none
  c.teach.clip = 0.0
  c.teach.warmup = 0  # optimizer steps of linear warm-up
  c.teach.decay_start = 0  # optimizer step from which the scale goes to 0 ...
  c.teach.decay_duration = 0  # ... within so many; 0: no decay
  # strength of the signal and of levels' rates where nothing is trained: as_trained: of the step |
  # step:n: of this one | full: after warm-ups, before decay. A run that is opened to read, learn or
  # evaluate has as_trained replaced by its checkpoint's step
  c.teach.at_evaluation = "as_trained"
  c.teach.signal = "layer"  # layer: each block's own | global: the last block's, for all
  # each level gets exact: the gradient at its own output | block: at its block's
  c.teach.target = "exact"
  # of the loss, over tokens: sum | mean (over the chunk's tokens and streams)
  c.teach.reduction = "sum"
  c.teach.threshold = 0.0  # a chunk writes where its surprise is at least this
  c.teach.metric = "l2"  # surprise: l2 (mean norm of the scaled signal) | loss | logit_entropy
  # what may be written: titan, cms_<level>, selfmod; ("none",): nothing; (): all
  c.teach.paths = ()
  c.teach.layers = ()  # which layers may be written; (): all
  c.teach.chunk = 64  # tokens read at once, before what they taught is written
  # periods below the chunk: chunked (gradients at its start) | exact (shorter chunks, slow)
  c.teach.mode = "chunked"
  # the outer gradient through the writes: none | full (second order)
  c.teach.through_writes = "none"
  # the outer gradient through what is context (attention's cache, convolutions, self-modifying
  # memories): full | chunks:n, cut at every n-th chunk of teach.chunk tokens
  c.teach.through_context = "chunks:1"
  # use what an unfinished period has taught: at the end of a stream; across steps, of a run
  c.teach.flush_partial = True

  c.control = ConfigDict()  # what a claim is held against; no memory at all: teach.paths=("none",)
  c.control.reset = False  # memories start afresh at every chunk
  c.control.frozen = False  # initial values of what is written stay as they are at the start
  c.control.sign = 1  # of every write; -1: gradient ascent
  c.control.keys_as_queries = False  # memories that are written at every token are asked with keys
  c.control.shuffled_teach = False  # a token's teach signal is another's of its chunk

  c.data = ConfigDict()
  # tokenizer and token shards: built when missing, checked when there
  c.data.dir = "runs/data/embedded_4k"
  c.data.sources = (  # where text comes from
      ConfigDict(dict(name="embedded", kind="embedded", path="", field="text", domains="",
                      weight=1.0)),)
  c.data.val_fraction = 0.05  # by a hash of the document's name
  # a file of one, or the run that has it; "": one is trained
  c.data.tokenizer = ""
  c.data.tokenizer_chars = 5_000_000  # characters the tokenizer learns from
  c.data.seq = 512
  # documents start at multiples of this many tokens: a multiple of both chunk sizes of selfmod
  c.data.align = 64
  c.data.batch = 8  # sequences per optimizer step, all devices together
  # each row of the batch reads on in its documents from step to step: fast state goes along until a
  # document ends, as data; False: every sequence starts afresh
  c.data.carry = False
  c.data.seed = 0
  c.data.task = "text"  # text, or one of data/synthetic.py: recall | copy | in_context | parity ...
  c.data.recall_pairs = 8
  c.data.recall_keys = 64
  # tokens between the pairs and the queries; training draws from 0 to this, per sequence
  c.data.recall_gap = 0
  c.data.recall_fillers = 0  # what fills is drawn from so many ids; 0: it is id 0
  # facts are labelled too (recall, copy, in_context): what a teach signal learns from
  c.data.recall_taught = False
  c.data.symbols = 16  # copy, in_context: different ones; in_context: keys, and as many values
  c.data.copied = 8  # copy: symbols to be copied

  c.mesh = ConfigDict()  # devices: data x fsdp x tensor of them (sharding.py)
  # parts of the batch, each with all parameters; 0: as many as there are devices left
  c.mesh.data = 0
  # parts of the batch and of every matrix: a block's matrices are gathered while it computes
  c.mesh.fsdp = 1
  # parts of the heads, the hidden widths and the vocabulary: devices that share the same rows
  c.mesh.tensor = 1

  c.optim = ConfigDict()
  # a file of hope_jax/optimizers, which lists its own fields: adamw | muon | full_muon | m3
  c.optim.name = "adamw"
  # all | levels: all but CMS levels and Titan memory stays as it is
  c.optim.train = "all"
  c.optim.lr = 1e-3
  c.optim.warmup = 100  # steps
  # after the warm-up: cosine | wsd: stable, then a line over the last `decay` of the steps
  c.optim.schedule = "cosine"
  c.optim.decay = 0.2
  c.optim.final_lr = 0.1  # of the peak, at train.steps
  c.optim.weight_decay = 0.1  # matrices only
  # gradient norm of all that is stepped together: all parameters, but for levels stepped once per
  # period, which are clipped by themselves
  c.optim.clip = 1.0
  # times the mean norm: a step with a larger one is skipped; 0: only one that is not finite
  c.optim.skip_above = 0.0
  c.optim.accumulate = 1  # micro-batches per step

  for name in OPTIMIZERS:
    c[name] = ConfigDict(importlib.import_module(f"{optimizers.__name__}.{name}").FIELDS)

  c.train = ConfigDict()
  c.train.steps = 1000
  c.train.log_every = 10
  c.train.eval_every = 200
  c.train.eval_batches = 16
  c.train.save_every = 200
  # programs that score a saved step: "niah:1000 --lengths=2048": name, every so many steps (a
  # multiple of save_every), flags (training/evaluations.py)
  c.train.evaluations = ()
  c.train.boards = ("tensorboard",)  # where numbers are shown (runtime/boards.py): wandb, trackio
  c.train.keep = 2  # the last so many checkpoints, and besides them
  c.train.keep_best = 0  # so many of lowest validation loss, among those saved at an evaluation
  c.train.keep_every = 0  # each whose step is a multiple of this; 0: none
  # stop | warn: train on; the last save has to succeed, and all of many processes
  c.train.on_save_error = "stop"
  # stop | warn: train on, all that was learned is saved before; of many processes all stop
  c.train.on_evaluation_error = "warn"
  # bad steps are skipped; after so many in a row back to a checkpoint, on to new data; 0: stop
  c.train.rollback_after = 0
  return c.lock()


def to_json(config: ConfigDict) -> str:
  """One canonical text per configuration."""
  return json.dumps(config.to_dict() | {"version": versions.NOW}, indent=1, sort_keys=True,
                    default=lambda part: dataclasses.asdict(part) if isinstance(part, Level)
                    else part.to_dict())


def from_json(text: str) -> ConfigDict:
  """Inverse of `to_json`, also of earlier versions (versions.py); ValueError for anything else."""
  c = base()
  try:
    stored = versions.config(json.loads(text))
    stored["model"]["pattern"] = tuple(stored["model"]["pattern"])
    versions.check_known(stored, c.to_dict())
    stored["channel"]["levels"] = tuple(Level(**entry) for entry in stored["channel"]["levels"])
    stored["teach"] |= {name: tuple(stored["teach"][name]) for name in ("paths", "layers")}
    stored["train"]["evaluations"] = tuple(stored["train"].get("evaluations", ()))
    stored["data"]["sources"] = tuple(ConfigDict(s) for s in stored["data"]["sources"])
    c.update(stored)
  except (KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f"no configuration of hope_jax ({type(error).__name__}: "
                     f"{' '.join(str(error).split())})") from None
  return c


def chunks(value: str, field: str = "") -> int:
  """Chunks between two cuts of a gradient: full is 0 (no cut), chunks:n is n, none is 1.

  ValueError, naming the field, for anything else.
  """
  if not re.fullmatch(r"full|none|chunks:[1-9]\d*", value):
    raise ValueError(f"{field}={value!r}: choose full, none or chunks:n")
  return {"full": 0, "none": 1}[value] if ":" not in value else int(value.partition(":")[2])


def describe(config) -> str:
  """The model in a few words: "attention + titan (modified), cms"."""
  m = config.model
  titan = "" if m.titan == "none" else f" + titan ({m.titan})"
  return f"{', '.join(m.pattern)}{titan}, {config.channel.kind}"


def load(path: str | Path) -> ConfigDict:
  """The configuration kept in a workdir or beside a checkpoint."""
  return from_json(Path(path).read_text())
