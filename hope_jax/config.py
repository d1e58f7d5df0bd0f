"""The configuration: every field with its default and meaning, and the checks that need no data.

A config file returns `base()` with some fields changed; `--config.model.dim=128` changes one more.
The tree is locked: a field that is not below is an error, and so is a value of another type.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

MODEL_KINDS = ("transformer", "hope_attention", "hope_selfmod")
LATER_KINDS = ("hope_hybrid", "titan_hybrid", "titans_lmm", "titans_mac", "titans_mag", "titans_mal",
               "gated_deltanet", "samba")


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
  c.selfmod.remat_chunks = 0  # recompute the backward pass in groups of n chunks; 0: store all

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
  c.data.tokenizer_chars = 20_000_000  # characters the tokenizer learns from
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
  return json.dumps(config.to_dict(), indent=1, sort_keys=True)


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
