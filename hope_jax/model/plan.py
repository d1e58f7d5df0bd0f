"""What a configuration writes while it reads, by `of`: which memories, what layers, how often."""

import dataclasses
import functools

from ml_collections import ConfigDict, FrozenConfigDict
import numpy as np

from hope_jax.config import Level
from hope_jax.memory.level_write import Clock
from hope_jax.model import mixers


@dataclasses.dataclass(frozen=True)
class Plan:
  """Of one configuration. A path is a memory's name in teach.paths: titan, cms_<level>, selfmod."""
  levels: dict[str, Level]  # what the teach signal writes: CMS levels by name, and "titan"
  chunk: int  # tokens read between two writes
  clocks: dict[str, Clock]  # of each level
  # path of each memory that is written while it reads -> (L,) bool: where it may be
  layers: dict[str, np.ndarray]
  enabled: tuple[str, ...]  # paths that may be written somewhere, at a rate above 0

  @property
  def paths(self) -> tuple[str, ...]:
    """Of all memories that are written while they read."""
    return tuple(self.layers)


def path(name: str) -> str:
  """Of what `Plan.levels` calls by this name."""
  return name if name == "titan" else f"cms_{name}"


def of(config: ConfigDict) -> Plan:
  """The plan of a configuration."""
  sections = {name: config[name] for name in ("model", "channel", "titan", "teach")}
  return _of(FrozenConfigDict(sections | {"seq": config.data.seq}))


@functools.lru_cache
def _of(c: FrozenConfigDict) -> Plan:
  levels, chunk, every = _levels(c), c.teach.chunk, np.arange(c.model.layers)
  if c.teach.mode == "exact":
    chunk = min([chunk, *(entry.period for entry in levels.values())])
  own = mixers.of(c)
  rates = {name: 1.0 for name, mixer in own.items() if mixer.writes}
  rates |= {path(name): entry.lr for name, entry in levels.items()}
  in_layer = np.isin(every, c.teach.layers or every)
  has = {name: np.isin(every, mixers.layers_of(c, name)) for name in own}
  layers = {name: has.get(name, True) & in_layer & (not c.teach.paths or name in c.teach.paths)
            for name in rates}
  clocks = {name: Clock(entry.period, chunk, entry.rule, entry.beta, epsilon=c.model.norm_epsilon,
                        writes=entry.writes)
            for name, entry in levels.items()}
  enabled = tuple(name for name, rate in rates.items() if layers[name].any() and rate > 0)
  return Plan(levels, chunk, clocks, layers, enabled)


def _levels(c) -> dict[str, Level]:
  out = {}
  if c.model.titan != "none":
    t = c.titan
    rate = 0.0 if t.modifier == "off" else t.lr
    out["titan"] = Level("titan", t.period, rule=t.rule, lr=rate, beta=t.beta, warmup=t.warmup)
  if c.channel.kind == "cms" and c.channel.in_context:
    out |= {entry.name: entry for entry in c.channel.levels if 1 <= entry.period <= c.seq}
  return out
