"""What a configuration writes while it reads, as its section `teach` says: which memories, in which layers, how often."""

from ml_collections import ConfigDict
import numpy as np

from hope_jax.config import HYBRIDS, Level


def levels(config: ConfigDict) -> dict[str, Level]:
  """What the teach signal writes: the CMS levels by name, and "titan"."""
  c, out = config, {}
  if c.model.kind in HYBRIDS:
    rate = 0.0 if c.titan.modifier == "off" else c.titan.lr
    out["titan"] = Level("titan", c.titan.period, rule=c.titan.rule, lr=rate, beta=c.titan.beta, warmup=c.titan.warmup)
  if c.mixer.kind == "cms" and c.mixer.in_context:
    out |= {entry.name: entry for entry in c.mixer.levels if 1 <= entry.period <= c.data.seq}
  return out


def chunk(config: ConfigDict) -> int:
  """Tokens read between two writes."""
  if config.teach.mode == "chunked":
    return config.teach.chunk
  return min([config.teach.chunk, *(entry.period for entry in levels(config).values())])


def paths(config: ConfigDict) -> tuple[str, ...]:
  """Names of all memories that a model writes while it reads, as teach.paths knows them."""
  own = ("selfmod",) if config.model.kind == "hope_selfmod" else ()
  return own + tuple(map(path, levels(config)))


def path(name: str) -> str:
  """Of what `levels` calls by this name."""
  return name if name == "titan" else f"cms_{name}"


def enabled(config: ConfigDict) -> list[str]:
  """Paths of the memories that may be written: in teach.paths, in some layer, at a rate above 0."""
  rates = {path(name): entry.lr for name, entry in levels(config).items()} | {"selfmod": 1.0}
  return [known for known in paths(config) if layers(config, known).any() and rates[known] > 0]


def layers(config: ConfigDict, path: str) -> np.ndarray:
  """(L,) bool: the layers in which the memory of this path may be written."""
  t, every = config.teach, np.arange(config.model.layers)
  return np.isin(every, t.layers or every) & (not t.paths or path in t.paths)
