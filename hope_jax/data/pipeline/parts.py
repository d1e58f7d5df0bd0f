"""Parts of the input: the files that one task reads, by their order and sizes alone.

    for part in parts.of(recipe): ...

Neither the number of workers nor the place where the files lie changes what is a part.
"""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.data import corpus, files
from hope_jax.data.units import Unit


@dataclasses.dataclass(frozen=True)
class Part:
  """source: its number in the recipe; units: its files, in order."""

  source: int
  units: tuple[Unit, ...]

  @property
  def bytes(self) -> int:
    """On disk."""
    return sum(unit.bytes for unit in self.units)


def of(recipe: ConfigDict) -> list[Part]:
  """The parts of all sources, in order: as many files as reach recipe.part_bytes."""
  found = []
  for number, source in enumerate(recipe.sources):
    some, size = [], 0
    for unit in corpus.select(source):
      some.append(unit)
      size += unit.bytes
      if size >= recipe.part_bytes:
        found.append(Part(number, tuple(some)))
        some, size = [], 0
    if some:
      found.append(Part(number, tuple(some)))
  return found


def to_json(some: list[Part]) -> list[dict]:
  """With the time of each file's last change: so a build that goes on finds that one is new."""
  return [dict(source=part.source,
               units=[dataclasses.asdict(unit) | {"changed": _changed(unit.path)}
                      for unit in part.units]) for part in some]


def _changed(path: str) -> int:
  """Of what is not on this machine only the size is known."""
  return 0 if files.is_url(path) else Path(path).stat().st_mtime_ns


def from_json(stored: list[dict]) -> list[Part]:
  return [Part(part["source"], tuple(
      Unit(**{key: value for key, value in unit.items() if key != "changed"})
      for unit in part["units"])) for part in stored]


def changed(stored: list[dict], now: list[dict]) -> str | None:
  """The first file that is not what it was; None if all are."""
  before, after = ({json.dumps(unit, sort_keys=True): unit["path"]
                    for part in some for unit in part["units"]} for some in (stored, now))
  others = sorted({before.get(key) or after[key] for key in before.keys() ^ after.keys()})
  return others[0] if others else None
