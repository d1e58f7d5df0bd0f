"""What a configuration has to be, by checks without data; an error names the field and the fix."""

import math
import re

from ml_collections import ConfigDict

from hope_jax import config as configs
from hope_jax.config import Level, OPTIMIZERS
from hope_jax.data import tokenized
from hope_jax.data.synthetic import TASKS
from hope_jax.memory.inner_rules import RULES
from hope_jax.model import mixers, plan, sharding
from hope_jax.runtime.boards import BOARDS

CHOICES = {
    "model.titan": ("none", "plain", "modified"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "block"),
    "attention.bias": ("none", "qkv", "all"),
    "attention.rope_scaling": ("none", "linear", "llama3"),
    "channel.kind": ("swiglu", "cms"),
    "channel.connection": ("sequential", "independent", "nested"),
    "channel.norm": ("rms", "layer"),
    "channel.activation": ("gelu", "swiglu"),
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
    "data.task": ("text", *TASKS),
    "control.sign": (1, -1),
    "optim.name": OPTIMIZERS,
    "optim.schedule": ("cosine", "wsd"),
    "optim.train": ("all", "levels"),
    "train.on_save_error": ("stop", "warn"),
    "train.on_evaluation_error": ("stop", "warn"),
}
MOST = 2**31 - 1  # what devices count to
LARGE = 1e30  # float32 ends at 3e38
ABOVE_0, BELOW_1 = 1e-30, 1 - 2**-24
RANGES = (  # (least, most, fields): a number that is none of them may be any, of a size that counts
    (1, 10_000, ("model.layers", "mesh.fsdp", "mesh.tensor")),
    (0, 10_000, ("mesh.data",)),
    (1, MOST, ("model.dim", "model.heads", "model.vocab", "selfmod.chunk_generators",
               "selfmod.chunk_memory", "teach.chunk", "titan.period", "data.seq", "data.align",
               "data.batch", "data.symbols", "data.copied", "data.tokenizer_chars",
               "optim.accumulate", "train.steps", "train.log_every", "train.eval_every",
               "train.eval_batches", "train.save_every", "train.keep", "gated_deltanet.chunk",
               "mamba.expand", "mamba.entries", "mamba.chunk", "titans.chunk", "titans.segment",
               "m3.slow")),
    (1, 4, ("titans.depth",)),
    (0, MOST, ("titans.remat_chunks", "titans.persistent", "m3.iterations",
               "attention.window", "attention.context", "attention.kv_heads", "attention.width",
               "selfmod.remat_chunks", "titan.warmup", "teach.warmup", "teach.decay_start",
               "teach.decay_duration", "optim.warmup", "data.recall_gap", "data.recall_fillers",
               "train.keep_best", "train.keep_every", "train.rollback_after")),
    (0, 2**32 - 1, ("seed", "data.seed")),
    (0, LARGE, ("selfmod.bound", "titan.lr", "teach.scale", "teach.clip", "optim.lr", "muon.lr",
                "optim.final_lr", "optim.weight_decay", "optim.skip_above", "m3.lr", "m3.beta1",
                "m3.beta2", "m3.beta3", "m3.alpha")),
    (0, 1, ("optim.decay",)),
    (0, math.inf, ("teach.threshold",)),
    (ABOVE_0, math.inf, ("optim.clip",)),
    (ABOVE_0, LARGE, ("model.embed_std", "model.norm_epsilon", "attention.rope_base",
                      "selfmod.eta_init", "titans.step", "m3.eps")),
    (ABOVE_0, 2, ("gated_deltanet.beta_max",)),
    (ABOVE_0, 1e6, ("channel.hidden", "selfmod.hidden", "titan.hidden", "titans.hidden")),
    (0, BELOW_1, ("model.dropout", "selfmod.momentum", "titan.beta", "data.val_fraction",
                  "adamw.b1", "adamw.b2")),
)


def validate(config: ConfigDict, devices: int | None = None) -> None:
  """ValueError, naming field and fix, for a configuration that cannot run (on so many devices)."""
  c = config
  for field, allowed in CHOICES.items():
    _check(_get(c, field) in allowed, f"{field}={_get(c, field)!r}: choose one of "
                                      f"{', '.join(map(str, allowed))}")
  _validate_fields(c)

  m, d = c.model, c.data
  _check(m.dim % m.heads == 0 or c.attention.width > 0 and set(mixers.of(c)) == {"attention"},
         f"model.dim={m.dim} is not divisible by model.heads={m.heads}: change one of them")
  _check(m.layers >= len(m.pattern), f"model.layers={m.layers} is less than model.pattern has, "
                                     f"{len(m.pattern)}: set model.layers to {len(m.pattern)} or "
                                     "more")
  for mixer in mixers.of(c).values():
    mixer.check(c)
  _validate_widths(c)
  _check(d.dir and "\0" not in d.dir, f"data.dir={d.dir!r} is no folder: name one")
  if d.task == "text":
    tokenized.check_sources(c)
  _check(d.seq % d.align == 0, f"data.seq={d.seq} is not a multiple of data.align={d.align}: set "
                               f"data.seq to {-(-d.seq // d.align) * d.align}")
  _check(not d.carry or d.task == "text", "data.carry=True needs documents that go on, and the "
                                          f"sequences of data.task={d.task} do not: set it to "
                                          "False")
  if devices is not None:
    data, fsdp, tensor = sharding.mesh_shape(c, devices)
    _check(m.heads % tensor == 0, f"model.heads={m.heads} is not divisible by "
                                  f"mesh.tensor={tensor}: change one of them")
    _check(c.attention.kv_heads % tensor == 0,
           f"attention.kv_heads={c.attention.kv_heads} is not divisible by mesh.tensor={tensor}: "
           "set mesh.tensor to a divisor of it")
  streams = 1 if devices is None else data * fsdp
  parts = c.optim.accumulate * streams
  _check(d.batch % parts == 0, f"data.batch={d.batch} is not divisible by {streams} devices "
                               "(mesh.data x mesh.fsdp) times "
                               f"optim.accumulate={c.optim.accumulate}: set data.batch to "
                               f"{-(-d.batch // parts) * parts}")
  o, patience = c.optim, c.train.rollback_after
  _check(o.skip_above == 0 or o.skip_above > 1,
         f"optim.skip_above={o.skip_above} skips ordinary steps: set it to 0, or well above 1, "
         "e.g. 5")
  _check(patience > 0 or o.skip_above == 0,
         f"optim.skip_above={o.skip_above} needs an end to skipping: set "
                                            "train.rollback_after, e.g. 10")
  _validate_levels(c)
  _check(all(isinstance(path, str) for path in c.teach.paths),
         f"teach.paths={c.teach.paths}: names of memories, e.g. ('selfmod',)")
  _check(all(isinstance(layer, int) for layer in c.teach.layers),
         f"teach.layers={c.teach.layers}: numbers of layers, e.g. (0, 1)")
  known = plan.of(c).paths
  for path in c.teach.paths:
    _check(path in (*known, "none"), f"teach.paths: {path} is not written by this model: choose "
                                     f"from {', '.join(known)}, or none")
  for layer in c.teach.layers:
    _check(layer in range(m.layers), f"teach.layers: {layer} is none of the layers 0 to "
                                     f"{m.layers - 1}")
  if plan.of(c).levels:
    _validate_teach(c)


def _validate_fields(c):
  ranges = {field: (least, most) for least, most, fields in RANGES for field in fields}
  _check(all(name in [*BOARDS] for name in c.train.boards),
         f"train.boards={tuple(c.train.boards)}: choose from {', '.join(BOARDS)}")
  numbers = {"seed": c.seed} | {f"{section}.{name}": c[section][name] for section in c
                                if section != "seed" for name in c[section]}
  for field, value in numbers.items():
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      size = LARGE if isinstance(value, float) else MOST
      least, most = ranges.get(field, (-size, size))
      _check(least <= value <= most, f"{field}={value}: set it {_range(least, most, value)}")


def _validate_widths(c):
  widths = {"channel": c.model.dim} | ({"titan": c.model.dim} if c.model.titan != "none" else {})
  if "selfmod" in c.model.pattern and c.selfmod.memory == "mlp":
    widths["selfmod"] = c.model.dim // c.model.heads
  for section, width in widths.items():
    hidden = c[section].hidden
    _check(int(hidden * width) >= 1, f"{section}.hidden={hidden} of {width} is a width below 1: "
                                     f"set it to {1 / width:.3g} or more")


def _range(least, most, value) -> str:
  if value > most and most != BELOW_1:
    return f"to at most {most:,}"
  low = "above 0" if least == ABOVE_0 else f"to {least:,} or more"
  return low + " and below 1" * (most == BELOW_1)


def _validate_levels(c):
  for entry in c.channel.levels:
    _check(isinstance(entry, Level) and isinstance(entry.name, str)
           and re.fullmatch(r"\w+", entry.name) and isinstance(entry.rule, str)
           and isinstance(entry.period, int)
           and all(isinstance(x, (int, float)) for x in (entry.lr, entry.beta, entry.warmup,
                                                         entry.scale)),
           f"channel.levels: {entry!r} is no Level(name, period): give each a name of letters, "
           "digits and _, and numbers")
  names = [entry.name for entry in c.channel.levels]
  _check(c.optim.train == "all" or c.model.titan != "none" or c.channel.kind == "cms" and names,
         "optim.train=levels, but the model has none: set optim.train=all, or channel.kind=cms "
         "with channel.levels")
  _check(len(set(names)) == len(names), f"channel.levels: names repeat in {names}")
  _check(not {"titan", *mixers.TABLE} & set(names),
         "channel.levels: titan and token mixers are names of other memories: rename")
  for entry in c.channel.levels:
    _check(entry.rule in RULES, f"channel.levels: rule {entry.rule} of {entry.name}: choose one of "
                                f"{', '.join(RULES)}")
    _check(0 <= entry.period <= MOST, f"channel.levels: period {entry.period} of {entry.name} is "
                                      "negative, or too long: set it to 0 or more")
    _check(0 <= entry.lr <= LARGE and 0 <= entry.beta < 1 and 0 <= entry.warmup <= MOST
           and 0 < entry.scale <= LARGE,
           f"channel.levels: {entry.name}: lr={entry.lr}, beta={entry.beta}, "
           f"warmup={entry.warmup}, scale={entry.scale}: set lr and warmup to 0 or more, beta to 0 "
           "or more and below 1, scale above 0")
    _check(entry.writes in ("all", "down"), f"channel.levels: writes={entry.writes} of "
                                            f"{entry.name}: choose all or down")
    _check(entry.period > 0 or not c.channel.in_context,
           f"channel.levels: period 0 of {entry.name} never writes in context: set it to 1 or "
           "more, or channel.in_context=False")
    _check(entry.period <= c.data.seq or entry.period % c.data.seq == 0,
           f"channel.levels: period {entry.period} of {entry.name} is longer than "
           f"data.seq={c.data.seq} but no multiple of it: set it to "
           f"{-(-entry.period // c.data.seq) * c.data.seq}")


def _validate_teach(c):
  t, chunk = c.teach, plan.of(c).chunk
  group, count = configs.chunks(t.through_context, "teach.through_context"), c.data.seq // chunk
  fitting = [n for n in range(1, count + 1) if count % n == 0]
  _check(group == 0 or group >= count or count % group == 0,
         f"teach.through_context={t.through_context}: a sequence has {count} chunks; set it to "
         f"full, or to chunks:n with n of {', '.join(map(str, fitting))}")
  _check(t.scale > 0, f"teach.scale={t.scale}: nothing would be written; set it above 0, or "
                      "channel.in_context=False")
  _check(re.fullmatch(r"as_trained|full|step:\d+", t.at_evaluation),
         f"teach.at_evaluation={t.at_evaluation!r}: choose as_trained, full or step:n")
  _check(c.data.align % chunk == 0, f"data.align={c.data.align} is not a multiple of "
                                    f"teach.chunk={chunk}: documents would start inside a chunk; "
                                    f"set data.align to {-(-c.data.align // chunk) * chunk}")
  for name, entry in plan.of(c).levels.items():
    _check(chunk % entry.period == 0 or entry.period % chunk == 0,
           f"period {entry.period} of {name} is neither a divisor nor a multiple of the chunk of "
           f"{chunk} tokens: set teach.chunk={entry.period}, or the period to "
           f"{max(entry.period // chunk, 1) * chunk}")
  for name, mixer in mixers.of(c).items():
    grid = mixer.grid(c)
    _check(chunk == 1 or grid <= 1 or chunk % grid == 0,
           f"a chunk of {chunk} tokens is no multiple of the {grid} of {name}: "
                                                         "set teach.chunk, or its own chunks, to "
                                                         f"{max(chunk, grid)}")
  _check(t.signal == "layer" or t.target == "block",
         "teach.signal=global gives every level the last block's signal: set "
                                                      "teach.target=block")


def _get(config, field):
  section, name = field.split(".")
  return config[section][name]


def _check(good: bool, message: str):
  if not good:
    raise ValueError(message)
