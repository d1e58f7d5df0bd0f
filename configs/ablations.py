"""What each choice is worth: NAME[,SIZE], a base with the fields of `SETS` changed, and no others.

    python -m hope_jax.launch --config=configs/ablations.py:teach_05 --workdir=runs/teach_05
    python -m hope_jax.ablate --set=teach,cms --seeds=3 --workdir=runs/ablations

Sizes: small (minutes on two cores; the shapes of baselines.py), pilot (configs/pilot.py). The base
is hope_hybrid with the teach schedule of the pilot; for the set `memories`, hope_selfmod. Sets
begin with what the others are held against.
"""

import dataclasses

from configs import baselines, controls, pilot
from hope_jax import config
from hope_jax.memory.inner_rules import RULES

SIZES = ("small", "pilot")


def _levels(c, *periods, **fields):
  """The first levels at these periods; more of them are like the last."""
  own = [*c.channel.levels, *[c.channel.levels[-1]] * 4][:len(periods)]
  names = ("fast", "mid", "slow", "ultra")
  return {"channel.levels": tuple(dataclasses.replace(level, name=name, period=period, **fields)
                                  for level, name, period in zip(own, names, periods))}


def _each(**values):
  """Levels with other values of their fields: values of one field, from fast to slow."""
  (field, own), = values.items()
  return lambda c: {"channel.levels": tuple(
      dataclasses.replace(level, **{field: value}) for level, value in zip(c.channel.levels, own))}


def _controlled(name):
  def changes(c):
    changed = controls.controlled(c.copy_and_resolve_references(), name)
    return {field: value for field, value in fields(changed).items() if value != fields(c)[field]}
  return changes


def fields(c) -> dict:
  """{section.field: value} of a configuration."""
  return {"seed": c.seed} | {f"{section}.{name}": c[section][name]
                             for section in c if section != "seed" for name in c[section]}


SETS = {  # set: {name: fields that are changed, or a function of the base that says them}
    "teach": {
        "full": {}, "teach_05": {"teach.scale": 0.05}, "teach_15": {"teach.scale": 0.15},
        "teach_20": {"teach.scale": 0.2}, "teach_no_decay": {"teach.decay_duration": 0},
        "teach_fast_most": _each(scale=(2.0, 1.0, 0.5, 0.25)),
        "teach_slow_most": _each(scale=(0.25, 0.5, 1.0, 2.0))},
    "cms": {
        "full": {}, "cms_every_token": lambda c: _levels(c, 1, 1, 1, 1),
        "cms_sparse": lambda c: _levels(c, 8, 32, 128, 512),
        "cms_one": lambda c: _levels(c, 32), "cms_three": lambda c: _levels(c, 1, 4, 32),
        "cms_none": {"channel.levels": ()}},
    "selfmod": {
        "full": {}, "modifier_off": {"titan.modifier": "off"},
        "modifier_teach_only": {"titan.modifier": "teach_only"}},
    "optimizer": {
        "full": {}, **{name: {"optim.name": name} for name in ("adamw", "full_muon", "m3")}},
    "rule": {
        "full": {}, **{f"rule_{rule}": _each(rule=(rule,) * 4) for rule in RULES if rule != "sgd"}},
    "attention": {
        "full": {}, "attention_window": lambda c: {"attention.window": c.data.seq // 8},
        "attention_deltanet": {"model.pattern": ("gated_deltanet",)}},
    "surprise": {
        "full": {}, "surprise_loss": {"teach.metric": "loss", "teach.threshold": 2.0},
        "surprise_entropy": {"teach.metric": "logit_entropy", "teach.threshold": 2.0}},
    "controls": {"full": {}, **{name: _controlled(name) for name in (
        "memory_off", "reset", "frozen", "reversed", "shuffled", "one_period",
        "no_self_modification")}},  # without CMS: cms_none
    "memories": {
        "memories": {}, "no_rank_one": {"selfmod.rank_one": False},
        "no_retention": {"selfmod.alpha": False, "selfmod.bound": 0.0},  # forgetting bounds
        "chunk_8": {"selfmod.chunk_generators": 8, "selfmod.chunk_memory": 8},
        "chunk_8_64": {"selfmod.chunk_generators": 8, "selfmod.chunk_memory": 64},
        "memories_no_cms": {"channel.levels": ()}, "momentum": {"selfmod.momentum": 0.9},
        "memories_reversed": _controlled("reversed"), "memories_keys": _controlled("keys")},
}
CHANGES = {name: change for changes in SETS.values() for name, change in changes.items()}
BASES = ("full", "memories")


def base(name: str = "full", size: str = "small"):
  """What the others differ from."""
  preset = "hope_hybrid" if name == "full" else "hope_selfmod"
  if size == "pilot":
    c = pilot.get_config()
    c.model.update(config.PRESETS[preset])
  else:
    c = baselines.get_config(f"{preset},small")
    c.channel.levels = tuple(config.Level(name, period) for name, period in (
        ("fast", 16), ("mid", 32), ("slow", 64), ("ultra", 256)))
    c.channel.hidden /= 2  # of each of four levels, where baselines.py has two
    c.teach.update(dict(scale=0.1, clip=4.0, warmup=20, decay_start=100, decay_duration=20))
    c.train.steps = 200
  c.selfmod.update(dict(chunk_generators=64, chunk_memory=64))
  return c


def get_config(spec: str = "full"):
  name, _, size = spec.partition(",")
  if name not in CHANGES or (size or "small") not in SIZES:
    raise ValueError(f"no ablation {spec}: choose NAME or NAME,SIZE from {', '.join(CHANGES)} and "
                     f"{', '.join(SIZES)}")
  of = next(iter(next(changes for changes in SETS.values() if name in changes)))
  c = base(of, size or "small")
  changes = CHANGES[name](c) if callable(CHANGES[name]) else CHANGES[name]
  c.update_from_flattened_dict(changes)
  return c
