"""The configuration: every field with its default and meaning, and the checks that need no data.

A config file returns `base()` with some fields changed; `--config.model.dim=128` changes one more.
The tree is locked: a field that is not below is an error, and so is a value of another type.
"""

import dataclasses
import json
import re
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

LATER_KINDS = ("titans_lmm", "titans_mac", "titans_mag", "titans_mal", "gated_deltanet", "samba")
HYBRIDS = ("hope_hybrid", "titan_hybrid")  # attention and a Titan memory that the teach signal writes
RULES = ("sgd", "momentum", "preconditioned", "dmgd", "nl_l2_precond", "nl_l2_projector", "delta_momentum", "muon")
CHOICES = {
    "model.kind": ("transformer", "hope_attention", "hope_selfmod", *HYBRIDS),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "block"),
    "mixer.kind": ("swiglu", "cms"),
    "mixer.connection": ("sequential", "independent", "nested"),
    "mixer.norm": ("rms", "layer"),
    "mixer.activation": ("gelu", "swiglu"),
    "titan.modifier": ("on", "teach_only", "off"),
    "titan.rule": RULES,
    "teach.signal": ("layer", "global"),
    "teach.target": ("exact", "block"),
    "teach.reduction": ("sum", "mean"),
    "teach.metric": ("l2", "loss", "logit_entropy"),
    "teach.mode": ("chunked", "exact"),
    "teach.through_writes": ("none", "full"),
    "selfmod.memory": ("mlp", "linear"),
    "selfmod.objective": ("l2", "dot"),
    "selfmod.factor": ("layer", "input"),
    "selfmod.conv": ("none", "shared", "separate"),
    "data.task": ("text", "recall"),
    "optim.name": ("adamw", "muon"),
    "train.on_save_error": ("stop", "warn"),
}
AT_LEAST_ONE = ("model.dim", "model.layers", "model.heads", "model.vocab", "selfmod.chunk_generators",
                "selfmod.chunk_memory", "teach.chunk", "titan.period", "data.seq", "data.align", "data.batch",
                "mesh.fsdp", "mesh.tensor", "optim.accumulate", "train.steps", "train.log_every", "train.eval_every",
                "train.eval_batches", "train.save_every", "train.keep")
AT_LEAST_ZERO = ("train.keep_best", "train.keep_every")


@dataclasses.dataclass(frozen=True)
class Level:
  """An entry of mixer.levels: one level of the continuum memory system.

  period: tokens per update. In context (mixer.in_context): from 1 to data.seq. Longer: stepped by the outer optimizer,
    once per period. 0: by the outer optimizer, at every step.
  rule, lr, beta: the inner optimizer (inner.py).
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


def base() -> ConfigDict:
  """The defaults. Lengths and periods are in tokens."""
  c = ConfigDict()
  c.seed = 0  # initial parameters and dropout; data order has its own

  c.model = ConfigDict()
  c.model.kind = "hope_selfmod"  # transformer | hope_attention | hope_selfmod | hope_hybrid | titan_hybrid
  c.model.dim = 256
  c.model.layers = 4
  c.model.heads = 4
  c.model.vocab = 4096  # must be the tokenizer's size
  c.model.dtype = "float32"  # of activations and matrix products: float32 | bfloat16; parameters stay float32
  c.model.remat = "none"  # what the backward pass recomputes: none | dots: all but products with parameters | block: all
  c.model.embed_std = 0.02  # of the embedding at the start, divided out at the input; larger: embeddings move slower
  c.model.dropout = 0.0  # on each residual branch

  c.attention = ConfigDict()  # all but hope_selfmod
  c.attention.window = 0  # each token sees this many tokens, itself included; 0: the whole sequence
  c.attention.rope_base = 10_000.0
  c.attention.context = 0  # cache length when window is 0; 0: data.seq

  c.mixer = ConfigDict()  # the channel mixer
  c.mixer.kind = "cms"  # swiglu | cms
  c.mixer.hidden = 2.0  # swiglu: width / dim.  cms: width of each level / dim
  c.mixer.norm = "rms"  # cms: rms | layer
  c.mixer.activation = "gelu"  # cms: gelu | swiglu
  c.mixer.levels = (Level("fast", 0),)  # cms, from fast to slow
  c.mixer.connection = "sequential"  # sequential (NL Eq. 73) | independent (Eq. 74) | nested (Eq. 72)
  c.mixer.in_context = False  # levels of period 1 to data.seq write themselves while they read

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

  c.titan = ConfigDict()  # hope_hybrid and titan_hybrid: an MLP memory read from the attention's output
  c.titan.hidden = 4.0  # width / dim
  c.titan.period = 8
  c.titan.rule = "sgd"
  c.titan.lr = 0.1
  c.titan.beta = 0.9
  c.titan.warmup = 0
  c.titan.modifier = "on"  # hope_hybrid: on | teach_only (not trained) | off (the memory is not written)

  c.teach = ConfigDict()  # what writes CMS levels and the Titan memory while they read
  c.teach.scale = 1.0  # of the gradient at a block's output
  c.teach.clip = 0.0  # largest norm per token, after scaling, of the Titan memory's error too; 0: none
  c.teach.warmup = 0  # optimizer steps of linear warm-up
  c.teach.decay_start = 0  # optimizer step from which the scale goes to 0 ...
  c.teach.decay_duration = 0  # ... within so many; 0: no decay
  c.teach.signal = "layer"  # layer: each block's own | global: the last block's, for all
  c.teach.target = "exact"  # each level gets exact: the gradient at its own output | block: at its block's
  c.teach.reduction = "sum"  # of the loss, over tokens: sum | mean (over the chunk's tokens and streams)
  c.teach.threshold = 0.0  # a chunk writes where its surprise is at least this
  c.teach.metric = "l2"  # surprise: l2 (mean norm of the scaled signal) | loss | logit_entropy
  c.teach.paths = ()  # what may be written: titan, cms_<level>, selfmod; ("none",): nothing; (): all
  c.teach.layers = ()  # which layers may be written; (): all
  c.teach.chunk = 64  # tokens read at once, before what they taught is written
  c.teach.mode = "chunked"  # periods below the chunk: chunked (gradients at its start) | exact (shorter chunks, slow)
  c.teach.through_writes = "none"  # the outer gradient through the writes: none | full (second order)
  c.teach.flush_partial = True  # at the end of a stream, use what an unfinished period has taught

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
  c.data.recall_gap = 0  # tokens between the pairs and the queries; training draws from 0 to this, per sequence
  c.data.recall_fillers = 0  # what fills is drawn from so many ids; 0: it is id 0
  c.data.recall_taught = False  # facts are labelled too, key -> value: what a teach signal learns from

  c.mesh = ConfigDict()  # devices: data x fsdp x tensor of them (sharding.py)
  c.mesh.data = 0  # parts of the batch, each with all parameters; 0: as many as there are devices left
  c.mesh.fsdp = 1  # parts of the batch and of every matrix: a block's matrices are gathered while it computes
  c.mesh.tensor = 1  # parts of the heads, the hidden widths and the vocabulary: devices that share the same rows

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
  c.optim.skip_above = 0.0  # times the mean norm: a step with a larger one is skipped; 0: only one that is not finite
  c.optim.accumulate = 1  # micro-batches per step

  c.train = ConfigDict()
  c.train.steps = 1000
  c.train.log_every = 10
  c.train.eval_every = 200
  c.train.eval_batches = 16
  c.train.save_every = 200
  c.train.keep = 2  # the last so many checkpoints, and besides them
  c.train.keep_best = 0  # so many of lowest validation loss, among those saved at an evaluation
  c.train.keep_every = 0  # each whose step is a multiple of this; 0: none
  c.train.on_save_error = "stop"  # stop | warn: train on; the last save has to succeed, and all of many processes
  c.train.rollback_after = 0  # bad steps are skipped; so many in a row: back to a checkpoint, on to new data.  0: they stop the run
  return c.lock()


def written(config: ConfigDict) -> dict[str, Level]:
  """What the teach signal writes in context: the CMS levels by name, and "titan"."""
  c, out = config, {}
  if c.model.kind in HYBRIDS:
    rate = 0.0 if c.titan.modifier == "off" else c.titan.lr
    out["titan"] = Level("titan", c.titan.period, rule=c.titan.rule, lr=rate, beta=c.titan.beta, warmup=c.titan.warmup)
  if c.mixer.kind == "cms" and c.mixer.in_context:
    out |= {entry.name: entry for entry in c.mixer.levels if 1 <= entry.period <= c.data.seq}
  return out


def writing_chunk(config: ConfigDict) -> int:
  """Tokens read between two writes."""
  if config.teach.mode == "chunked":
    return config.teach.chunk
  return min([config.teach.chunk, *(entry.period for entry in written(config).values())])


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
  """(data, fsdp, tensor) of config.mesh for so many devices. ValueError, naming the fix, unless they are all used."""
  m = config.mesh
  whole = m.fsdp * m.tensor
  _check(devices % whole == 0 and m.data in (0, devices // whole),
         f"mesh.data={m.data}, mesh.fsdp={m.fsdp}, mesh.tensor={m.tensor} do not fit {devices} devices: their product must be "
         f"{devices} (data=0: what is left). On a CPU, JAX_NUM_CPU_DEVICES={(m.data or 1) * whole} makes so many")
  return devices // whole, m.fsdp, m.tensor


def to_json(config: ConfigDict) -> str:
  """One canonical text per configuration."""
  return json.dumps(config.to_dict(), indent=1, sort_keys=True,
                    default=lambda part: dataclasses.asdict(part) if isinstance(part, Level) else part.to_dict())


def from_json(text: str) -> ConfigDict:
  """Inverse of `to_json`. Fields this version does not know are an error."""
  c = base()
  stored = json.loads(text)
  stored["mixer"]["levels"] = tuple(Level(**entry) for entry in stored["mixer"]["levels"])
  stored["teach"] |= {name: tuple(stored["teach"][name]) for name in ("paths", "layers")}
  stored["data"]["sources"] = tuple(ConfigDict(s) for s in stored["data"]["sources"])
  c.update(stored)
  return c


def load(path: str | Path) -> ConfigDict:
  """The configuration kept in a workdir or beside a checkpoint."""
  return from_json(Path(path).read_text())


def validate(config: ConfigDict, devices: int | None = None) -> None:
  """Raises ValueError, naming the field and the fix, for a configuration that cannot run; on so many devices, if given."""
  c = config
  if c.model.kind in LATER_KINDS:
    raise ValueError(f"model.kind={c.model.kind} is not in this version: set --config.model.kind to one of "
                     f"{', '.join(CHOICES['model.kind'])}")
  for field, allowed in CHOICES.items():
    _check(_get(c, field) in allowed, f"{field}={_get(c, field)!r}: choose one of {', '.join(allowed)}")
  for field in AT_LEAST_ONE:
    _check(_get(c, field) >= 1, f"{field}={_get(c, field)}: set it to 1 or more")
  for field in AT_LEAST_ZERO:
    _check(_get(c, field) >= 0, f"{field}={_get(c, field)}: set it to 0 or more")

  m, s, d = c.model, c.selfmod, c.data
  _check(m.dim % m.heads == 0, f"model.dim={m.dim} is not divisible by model.heads={m.heads}: change one of them")
  _check(m.embed_std > 0, f"model.embed_std={m.embed_std}: set it above 0")
  _check(0 <= m.dropout < 1, f"model.dropout={m.dropout}: set it to 0 or more and below 1")
  _check((m.kind == "transformer") <= (c.mixer.kind == "swiglu"),
         "a transformer with mixer.kind=cms is hope_attention: set model.kind=hope_attention or mixer.kind=swiglu")
  _check((m.kind == "titan_hybrid") <= (c.mixer.kind == "swiglu"),
         "a titan_hybrid with mixer.kind=cms is hope_hybrid: set model.kind=hope_hybrid or mixer.kind=swiglu")
  if m.kind != "hope_selfmod":
    _check(m.dim // m.heads % 2 == 0, f"head width {m.dim // m.heads} is odd, rotary positions need it even: "
                                      "change model.dim or model.heads")
  else:
    _validate_selfmod(s, d)
  _check(d.seq % d.align == 0, f"data.seq={d.seq} is not a multiple of data.align={d.align}: set data.seq to "
                               f"{-(-d.seq // d.align) * d.align}")
  _check(c.mesh.data >= 0, f"mesh.data={c.mesh.data}: set it to 0 (all devices that are left) or more")
  if devices is not None:
    data, fsdp, tensor = mesh_shape(c, devices)
    _check(m.heads % tensor == 0, f"model.heads={m.heads} is not divisible by mesh.tensor={tensor}: change one of them")
  streams = 1 if devices is None else data * fsdp
  parts = c.optim.accumulate * streams
  _check(d.batch % parts == 0, f"data.batch={d.batch} is not divisible by {streams} devices (mesh.data x mesh.fsdp) times "
                               f"optim.accumulate={c.optim.accumulate}: set data.batch to {-(-d.batch // parts) * parts}")
  o, patience = c.optim, c.train.rollback_after
  _check(patience >= 0, f"train.rollback_after={patience}: set it to 0 or more")
  _check(o.skip_above == 0 or o.skip_above > 1,
         f"optim.skip_above={o.skip_above} skips ordinary steps: set it to 0, or well above 1, e.g. 5")
  _check(patience > 0 or o.skip_above == 0, f"optim.skip_above={o.skip_above} needs an end to skipping: set "
                                            "train.rollback_after, e.g. 10")
  _validate_levels(c)
  known = paths(c)
  for path in c.teach.paths:
    _check(path in (*known, "none"), f"teach.paths: {path} is not written by this model: choose from {', '.join(known)}, "
                                     "or none")
  for layer in c.teach.layers:
    _check(layer in range(m.layers), f"teach.layers: {layer} is none of the layers 0 to {m.layers - 1}")
  if written(c):
    _validate_teach(c)


def _validate_levels(c):
  names = [entry.name for entry in c.mixer.levels]
  _check(len(set(names)) == len(names), f"mixer.levels: names repeat in {names}")
  _check(not {"titan", "selfmod"} & set(names), "mixer.levels: titan and selfmod are names of other memories: rename")
  for entry in c.mixer.levels:
    _check(entry.rule in RULES, f"mixer.levels: rule {entry.rule} of {entry.name}: choose one of {', '.join(RULES)}")
    _check(entry.period >= 0, f"mixer.levels: period {entry.period} of {entry.name} is negative")
    _check(entry.period > 0 or not c.mixer.in_context,
           f"mixer.levels: period 0 of {entry.name} never writes in context: set it to 1 or more, or mixer.in_context=False")
    _check(entry.period <= c.data.seq or entry.period % c.data.seq == 0,
           f"mixer.levels: period {entry.period} of {entry.name} is longer than data.seq={c.data.seq} but no multiple of "
           f"it: set it to {-(-entry.period // c.data.seq) * c.data.seq}")


def _validate_teach(c):
  t, chunk = c.teach, writing_chunk(c)
  _check(t.scale > 0, f"teach.scale={t.scale}: nothing would be written; set it above 0, or mixer.in_context=False")
  _check(t.clip >= 0 and t.threshold >= 0, f"teach.clip={t.clip}, teach.threshold={t.threshold}: set them to 0 or more")
  _check(c.data.align % chunk == 0, f"data.align={c.data.align} is not a multiple of teach.chunk={chunk}: documents would "
                                    f"start inside a chunk; set data.align to {-(-c.data.align // chunk) * chunk}")
  for name, entry in written(c).items():
    _check(entry.lr >= 0 and 0 <= entry.beta < 1 and entry.warmup >= 0 and entry.scale > 0,
           f"{name}: lr={entry.lr}, beta={entry.beta}, warmup={entry.warmup}, scale={entry.scale}: set lr and warmup to 0 or more, "
           "beta to 0 or more and below 1, scale above 0")
    _check(chunk % entry.period == 0 or entry.period % chunk == 0,
           f"period {entry.period} of {name} is neither a divisor nor a multiple of the chunk of {chunk} tokens: set "
           f"teach.chunk={entry.period}, or the period to {max(entry.period // chunk, 1) * chunk}")
  if c.model.kind == "hope_selfmod":
    grid = max(c.selfmod.chunk_generators, c.selfmod.chunk_memory)
    _check(chunk == 1 or chunk % grid == 0, f"a chunk of {chunk} tokens is no multiple of the self-modifying memories' "
                                            f"{grid}: set teach.chunk, or both selfmod chunks to {chunk}")
  _check(t.signal == "layer" or t.target == "block", "teach.signal=global gives every level the last block's signal: set "
                                                      "teach.target=block")


def paths(config: ConfigDict) -> tuple[str, ...]:
  """Names of all memories that a model writes while it reads, as teach.paths knows them."""
  own = ("selfmod",) if config.model.kind == "hope_selfmod" else ()
  return own + tuple(map(path, written(config)))


def path(name: str) -> str:
  """Of what `written` calls by this name."""
  return name if name == "titan" else f"cms_{name}"


def enabled(config: ConfigDict) -> list[str]:
  """Paths of the memories that may be written: in teach.paths, in some layer, at a rate above 0."""
  rates = {path(name): entry.lr for name, entry in written(config).items()} | {"selfmod": 1.0}
  return [known for known in paths(config) if written_layers(config, known).any() and rates[known] > 0]


def written_layers(config: ConfigDict, path: str) -> np.ndarray:
  """(L,) bool: the layers in which the memory of this path may be written."""
  t, layers = config.teach, np.arange(config.model.layers)
  return np.isin(layers, t.layers or layers) & (not t.paths or path in t.paths)


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
