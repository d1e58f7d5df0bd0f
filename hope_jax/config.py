"""The configuration: every field with its default and meaning, and the checks that need no data.

A config file returns `base()` with some fields changed; `--config.model.dim=128` changes one more.
The tree is locked: a field that is not below is an error, and so is a value of another type.
"""

import json
import re
from pathlib import Path

from ml_collections import ConfigDict

LATER_KINDS = ("hope_hybrid", "titan_hybrid", "titans_lmm", "titans_mac", "titans_mag", "titans_mal",
               "gated_deltanet", "samba")
CHOICES = {
    "model.kind": ("transformer", "hope_attention", "hope_selfmod"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "block"),
    "mixer.kind": ("swiglu", "cms"),
    "mixer.connection": ("sequential", "independent", "nested"),
    "selfmod.memory": ("mlp", "linear"),
    "selfmod.objective": ("l2", "dot"),
    "selfmod.factor": ("layer", "input"),
    "selfmod.conv": ("none", "shared", "separate"),
    "data.task": ("text", "recall"),
    "optim.name": ("adamw", "muon"),
}
AT_LEAST_ONE = ("model.dim", "model.layers", "model.heads", "model.vocab", "selfmod.chunk_generators",
                "selfmod.chunk_memory", "data.seq", "data.align", "data.batch", "optim.accumulate", "train.steps",
                "train.log_every", "train.eval_every", "train.eval_batches", "train.save_every", "train.keep")


def base() -> ConfigDict:
  """The defaults. Lengths and periods are in tokens."""
  c = ConfigDict()
  c.seed = 0  # initial parameters and dropout; data order has its own

  c.model = ConfigDict()
  c.model.kind = "hope_selfmod"  # transformer | hope_attention | hope_selfmod
  c.model.dim = 256
  c.model.layers = 4
  c.model.heads = 4
  c.model.vocab = 4096  # must be the tokenizer's size
  c.model.dtype = "float32"  # of activations and matrix products: float32 | bfloat16; parameters stay float32
  c.model.remat = "none"  # none | block: recompute each block in the backward pass
  c.model.embed_std = 0.02  # of the embedding at the start, divided out at the input; larger: embeddings move slower
  c.model.dropout = 0.0  # on each residual branch

  c.attention = ConfigDict()  # transformer and hope_attention
  c.attention.window = 0  # each token sees this many tokens, itself included; 0: the whole sequence
  c.attention.rope_base = 10_000.0
  c.attention.context = 0  # cache length when window is 0; 0: data.seq

  c.mixer = ConfigDict()  # the channel mixer
  c.mixer.kind = "cms"  # swiglu | cms
  c.mixer.hidden = 2.0  # swiglu: width / dim.  cms: width of each level / dim
  c.mixer.levels = (("fast", 0),)  # cms: (name, period); period 0 or up to data.seq: stepped at every optimizer step
  c.mixer.connection = "sequential"  # sequential (NL Eq. 73) | independent (Eq. 74) | nested (Eq. 72)
  c.mixer.in_context = False  # levels write themselves while they read (refused by this version)

  c.selfmod = ConfigDict()  # hope_selfmod, NL Eq. 83-93
  c.selfmod.memory = "mlp"  # mlp | linear
  c.selfmod.hidden = 1.0  # mlp: memory hidden width / head width
  c.selfmod.chunk_generators = 64  # keys, values, step sizes, retention
  c.selfmod.chunk_memory = 64  # M_mem
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
  c.selfmod.bound = 8.0  # keeps every memory's spectral norm below max(this, its norm at the start); 0: no bound
  c.selfmod.through_writes = "full"  # full | none | chunks:n
  c.selfmod.remat_chunks = 1  # recompute the backward pass in groups of n chunks; 0: store all

  c.teach = ConfigDict()  # refused by this version unless 0
  c.teach.scale = 0.0
  c.teach.clip = 0.0
  c.teach.warmup = 0  # optimizer steps
  c.teach.decay_start = 0
  c.teach.decay_duration = 0

  c.data = ConfigDict()
  c.data.dir = "runs/data/embedded_4k"  # tokenizer and token shards: built when missing, checked when there
  c.data.sources = (  # where text comes from
      ConfigDict(dict(name="embedded", kind="embedded", path="", field="text", domains="", weight=1.0)),)
  c.data.val_fraction = 0.05  # by a hash of the document's name
  c.data.tokenizer_chars = 5_000_000  # characters the tokenizer learns from
  c.data.seq = 512
  c.data.align = 64  # documents start at multiples of this many tokens: a multiple of both chunk sizes
  c.data.batch = 8  # sequences per optimizer step, all devices together
  c.data.seed = 0
  c.data.task = "text"  # text | recall
  c.data.recall_pairs = 8
  c.data.recall_keys = 64

  c.optim = ConfigDict()
  c.optim.name = "adamw"  # adamw | muon: matrices by Muon, all else by AdamW
  c.optim.lr = 1e-3  # AdamW
  c.optim.muon_lr = 1e-2
  c.optim.warmup = 100  # steps
  c.optim.final_lr = 0.1  # of the peak, at train.steps (cosine)
  c.optim.weight_decay = 0.1  # matrices only
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.clip = 1.0  # global gradient norm
  c.optim.accumulate = 1  # micro-batches per step

  c.train = ConfigDict()
  c.train.steps = 1000
  c.train.log_every = 10
  c.train.eval_every = 200
  c.train.eval_batches = 16
  c.train.save_every = 200
  c.train.keep = 2  # checkpoints
  return c.lock()


def to_json(config: ConfigDict) -> str:
  """One canonical text per configuration."""
  return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=lambda c: c.to_dict())


def from_json(text: str) -> ConfigDict:
  """Inverse of `to_json`. Fields this version does not know are an error."""
  c = base()
  stored = json.loads(text)
  stored["mixer"]["levels"] = tuple(map(tuple, stored["mixer"]["levels"]))
  stored["data"]["sources"] = tuple(ConfigDict(s) for s in stored["data"]["sources"])
  c.update(stored)
  return c


def load(path: str | Path) -> ConfigDict:
  """The configuration kept in a workdir or beside a checkpoint."""
  return from_json(Path(path).read_text())


def validate(config: ConfigDict, devices: int = 1) -> None:
  """Raises ValueError, naming the field and the fix, for a configuration that cannot run."""
  c = config
  if c.model.kind in LATER_KINDS:
    raise ValueError(f"model.kind={c.model.kind} is not in this version: set --config.model.kind to one of "
                     f"{', '.join(CHOICES['model.kind'])}")
  if c.mixer.in_context:
    raise ValueError("mixer.in_context: levels that write while they read are not in this version: "
                     "set --config.mixer.in_context=False")
  for field, value in c.teach.items():
    if value:
      raise ValueError(f"teach.{field}={value}: the teach signal is not in this version: set --config.teach.{field}=0")
  for field, allowed in CHOICES.items():
    _check(_get(c, field) in allowed, f"{field}={_get(c, field)!r}: choose one of {', '.join(allowed)}")
  for field in AT_LEAST_ONE:
    _check(_get(c, field) >= 1, f"{field}={_get(c, field)}: set it to 1 or more")

  m, s, d = c.model, c.selfmod, c.data
  _check(m.dim % m.heads == 0, f"model.dim={m.dim} is not divisible by model.heads={m.heads}: change one of them")
  _check(m.embed_std > 0, f"model.embed_std={m.embed_std}: set it above 0")
  _check(0 <= m.dropout < 1, f"model.dropout={m.dropout}: set it to 0 or more and below 1")
  _check((m.kind == "transformer") <= (c.mixer.kind == "swiglu"),
         "a transformer with mixer.kind=cms is hope_attention: set model.kind=hope_attention or mixer.kind=swiglu")
  if m.kind != "hope_selfmod":
    _check(m.dim // m.heads % 2 == 0, f"head width {m.dim // m.heads} is odd, rotary positions need it even: "
                                      "change model.dim or model.heads")
  else:
    _validate_selfmod(s, d)
  _check(d.seq % d.align == 0, f"data.seq={d.seq} is not a multiple of data.align={d.align}: set data.seq to "
                               f"{-(-d.seq // d.align) * d.align}")
  parts = c.optim.accumulate * devices
  _check(d.batch % parts == 0, f"data.batch={d.batch} is not divisible by {devices} devices times optim.accumulate="
                               f"{c.optim.accumulate}: set data.batch to {-(-d.batch // parts) * parts}")
  names = [name for name, _ in c.mixer.levels]
  _check(len(set(names)) == len(names), f"mixer.levels: names repeat in {names}")
  for name, period in c.mixer.levels:
    _check(period >= 0, f"mixer.levels: period {period} of {name} is negative")
    _check(period <= d.seq or period % d.seq == 0,
           f"mixer.levels: period {period} of {name} is longer than data.seq={d.seq} but no multiple of it: set it to "
           f"{-(-period // d.seq) * d.seq}")


def _validate_selfmod(s, d):
  small, large = sorted((s.chunk_generators, s.chunk_memory))
  _check(large % small == 0, f"selfmod.chunk_generators={s.chunk_generators} and chunk_memory={s.chunk_memory}: "
                             f"one must be a multiple of the other; set the larger to {-(-large // small) * small}")
  _check(d.align % large == 0, f"data.align={d.align} is not a multiple of the chunk size {large}: documents would "
                               f"start inside a chunk; set data.align to {-(-d.align // large) * large}")
  _check(re.fullmatch(r"full|none|chunks:[1-9]\d*", s.through_writes) is not None,
         f"selfmod.through_writes={s.through_writes!r}: choose full, none or chunks:n")
  _check(0 <= s.momentum < 1, f"selfmod.momentum={s.momentum}: set it to 0 or more and below 1")
  _check(0 < s.alpha_init < 1 and s.eta_init > 0,
         f"selfmod.alpha_init={s.alpha_init}, eta_init={s.eta_init}: retention lies between 0 and 1, the step is positive")
  if s.bound:
    _check(s.alpha, f"selfmod.bound={s.bound} is kept by forgetting, and selfmod.alpha is off: set selfmod.bound=0")
    _check(s.factor == "layer", f"selfmod.bound={s.bound} needs the steps of selfmod.factor=layer: set selfmod.bound=0")


def _get(config, field):
  section, name = field.split(".")
  return config[section][name]


def _check(good: bool, message: str):
  if not good:
    raise ValueError(message)
