"""What a configuration has to be, by checks without data; an error names the field and the fix."""

from ml_collections import ConfigDict

from hope_jax.config import OPTIMIZERS
from hope_jax.memory.inner_rules import RULES
from hope_jax.model import mixers, plan, sharding

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
    "data.task": ("text", "recall"),
    "optim.name": OPTIMIZERS,
    "optim.train": ("all", "levels"),
    "train.on_save_error": ("stop", "warn"),
    "train.on_evaluation_error": ("stop", "warn"),
}
AT_LEAST_ONE = ("model.dim", "model.layers", "model.heads", "model.vocab",
                "selfmod.chunk_generators",
                "selfmod.chunk_memory", "teach.chunk", "titan.period", "data.seq", "data.align",
                "data.batch",
                "mesh.fsdp", "mesh.tensor", "optim.accumulate", "train.steps", "train.log_every",
                "train.eval_every", "train.eval_batches", "train.save_every", "train.keep")
AT_LEAST_ZERO = ("train.keep_best", "train.keep_every", "attention.kv_heads", "attention.width")


def validate(config: ConfigDict, devices: int | None = None) -> None:
  """ValueError, naming field and fix, for a configuration that cannot run (on so many devices)."""
  c = config
  used = mixers.of(c)
  for field, allowed in CHOICES.items():
    _check(_get(c, field) in allowed, f"{field}={_get(c, field)!r}: choose one of "
                                      f"{', '.join(allowed)}")
  for field in AT_LEAST_ONE:
    _check(_get(c, field) >= 1, f"{field}={_get(c, field)}: set it to 1 or more")
  for field in AT_LEAST_ZERO:
    _check(_get(c, field) >= 0, f"{field}={_get(c, field)}: set it to 0 or more")

  m, d = c.model, c.data
  _check(m.dim % m.heads == 0 or c.attention.width > 0 and set(used) == {"attention"},
         f"model.dim={m.dim} is not divisible by model.heads={m.heads}: change one of them")
  for name in ("embed_std", "norm_epsilon"):
    _check(m[name] > 0, f"model.{name}={m[name]}: set it above 0")
  _check(0 <= m.dropout < 1, f"model.dropout={m.dropout}: set it to 0 or more and below 1")
  _check(m.layers >= len(m.pattern), f"model.layers={m.layers} is less than model.pattern has, "
                                     f"{len(m.pattern)}: set model.layers to {len(m.pattern)} or "
                                     "more")
  for mixer in used.values():
    mixer.check(c)
  _check(d.seq % d.align == 0, f"data.seq={d.seq} is not a multiple of data.align={d.align}: set "
                               f"data.seq to {-(-d.seq // d.align) * d.align}")
  _check(c.mesh.data >= 0, f"mesh.data={c.mesh.data}: set it to 0 (all devices that are left) or "
                           "more")
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
  _check(patience >= 0, f"train.rollback_after={patience}: set it to 0 or more")
  _check(o.skip_above == 0 or o.skip_above > 1,
         f"optim.skip_above={o.skip_above} skips ordinary steps: set it to 0, or well above 1, "
         "e.g. 5")
  _check(patience > 0 or o.skip_above == 0,
         f"optim.skip_above={o.skip_above} needs an end to skipping: set "
                                            "train.rollback_after, e.g. 10")
  _validate_levels(c)
  known = plan.of(c).paths
  for path in c.teach.paths:
    _check(path in (*known, "none"), f"teach.paths: {path} is not written by this model: choose "
                                     f"from {', '.join(known)}, or none")
  for layer in c.teach.layers:
    _check(layer in range(m.layers), f"teach.layers: {layer} is none of the layers 0 to "
                                     f"{m.layers - 1}")
  if plan.of(c).levels:
    _validate_teach(c)


def _validate_levels(c):
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
    _check(entry.writes in ("all", "down"), f"channel.levels: writes={entry.writes} of "
                                            f"{entry.name}: choose all or down")
    _check(entry.period >= 0, f"channel.levels: period {entry.period} of {entry.name} is negative")
    _check(entry.period > 0 or not c.channel.in_context,
           f"channel.levels: period 0 of {entry.name} never writes in context: set it to 1 or "
           "more, or channel.in_context=False")
    _check(entry.period <= c.data.seq or entry.period % c.data.seq == 0,
           f"channel.levels: period {entry.period} of {entry.name} is longer than "
           f"data.seq={c.data.seq} but no multiple of it: set it to "
           f"{-(-entry.period // c.data.seq) * c.data.seq}")


def _validate_teach(c):
  t, chunk = c.teach, plan.of(c).chunk
  _check(t.scale > 0, f"teach.scale={t.scale}: nothing would be written; set it above 0, or "
                      "channel.in_context=False")
  _check(t.clip >= 0 and t.threshold >= 0,
         f"teach.clip={t.clip}, teach.threshold={t.threshold}: set them to 0 or more")
  _check(c.data.align % chunk == 0, f"data.align={c.data.align} is not a multiple of "
                                    f"teach.chunk={chunk}: documents would start inside a chunk; "
                                    f"set data.align to {-(-c.data.align // chunk) * chunk}")
  for name, entry in plan.of(c).levels.items():
    _check(entry.lr >= 0 and 0 <= entry.beta < 1 and entry.warmup >= 0 and entry.scale > 0,
           f"{name}: lr={entry.lr}, beta={entry.beta}, warmup={entry.warmup}, scale={entry.scale}: "
           "set lr and warmup to 0 or more, beta to 0 or more and below 1, scale above 0")
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
