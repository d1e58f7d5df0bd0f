"""Makes the data folder of a recipe, or goes on where it was interrupted.

    facts = build.make(recipe)            # the manifest
"""

import os
from pathlib import Path
import sys

from ml_collections import ConfigDict

from hope_jax.data import files
from hope_jax.data.corpus import SPLITS
from hope_jax.data.pipeline import manifest, parts, recipe as recipes, refine, stages, store, tokens
from hope_jax.data.pipeline.stages import Place, Stage
from hope_jax.runtime import lock

PATIENCE = 24 * 3600  # seconds to wait for another process that makes the same folder
_ELSE = "choose another dir, or delete {} and make it anew"


def stages_of(place: Place) -> list[Stage]:
  """In order; each reads what those before it have written."""
  r, every = place.recipe, len(place.parts)
  return [Stage("inputs", every, manifest.digests),
          Stage("index", 1, refine.index),
          Stage("filter", every, refine.select),
          *([Stage("exact", refine.SLICES, refine.exact)] if r.exact else ()),
          *([Stage("signatures", every, refine.sign), Stage("pairs", r.near.buckets, refine.pair),
             Stage("clusters", 1, refine.cluster)] if r.near.on else ()),
          Stage("documents", every, refine.write),
          Stage("tokenizer", 1, tokens.train),
          Stage("tokenise", every, tokens.encode),
          Stage("shards", len(SPLITS) * len(r.sources), tokens.shards)]


def make(recipe: ConfigDict) -> dict:
  """The manifest of the folder, which is made if it is not whole. Waits for another that makes it.

  ValueError, naming the fix, for a recipe or input that does not fit, or has changed.
  """
  recipes.check(recipe)
  place = Place(recipe)
  with lock.held(place.folder.with_name(f".{place.folder.name}.lock"), "another dir", PATIENCE):
    if (place.folder / manifest.NAME).exists():
      return _whole(place)
    _plan(place)
    with stages.Workers(place, recipe.workers or os.cpu_count()) as workers:
      store.sweep(place.folder)
      for stage in stages_of(place):
        workers.run(stage)
        _check(place, stage)
    return manifest.write(place)


def _whole(place: Place) -> dict:
  facts = manifest.read(place.folder)
  if facts["digest"] != recipes.digest(place.recipe):
    raise ValueError(f"{place.folder} was made by another recipe ("
                     f"{_difference(facts['recipe'], recipes.settings(place.recipe))}); "
                     + _ELSE.format(place.folder))
  return facts


def _plan(place: Place) -> None:
  """Writes what is to be made of which files, or checks that it is the same as before."""
  path = place.work / "plan.json"
  now = dict(recipe=recipes.settings(place.recipe), parts=parts.to_json(parts.of(place.recipe)),
             evaluations=_evaluations(place.recipe.decontaminate.files))
  if not path.exists():
    store.write_facts(path, now)
    return
  before = store.read_facts(path)
  if difference := _difference(before["recipe"], now["recipe"]):
    raise ValueError(f"{place.folder} was begun by another recipe ({difference}); "
                     + _ELSE.format(place.folder))
  changed = parts.changed(before["parts"], now["parts"])
  if not changed and before["evaluations"] != now["evaluations"]:
    changed = "a file of decontaminate.files"
  if changed:
    raise ValueError(f"{changed} has changed since {place.folder} was begun; put it back, "
                     + _ELSE.format(place.folder))


def _evaluations(places: tuple[str, ...]) -> list[list]:
  found = [path for place in places for path in files.below(Path(place).expanduser())]
  return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def _difference(before: dict, now: dict) -> str:
  """The first setting that is another."""
  for key in now:
    if before.get(key) != now[key]:
      inner = isinstance(now[key], dict) and isinstance(before.get(key), dict)
      return (f"{key}.{_difference(before[key], now[key])}" if inner
              else f"{key} was {before.get(key)!r}, is {now[key]!r}")
  return ""


def _check(place: Place, stage: Stage) -> None:
  """Says what a stage has dropped; ValueError where it leaves nothing to go on with."""
  if stage.name not in ("filter", "documents"):
    return
  counts = [store.read_facts(place.counts(stage.name, rank)) for rank in range(stage.tasks)]
  for source in place.recipe.sources:
    rules = {}
    for own in (c for c in counts if c["source"] == source.name):
      for rule, n in own["dropped"].items():
        rules[rule] = rules.get(rule, 0) + n
    said = ", ".join(f"{n} {rule}" for rule, n in sorted(rules.items(), key=lambda i: -i[1]))
    print(f"{source.name}: dropped {said or 'nothing'}", file=sys.stderr)
  for source in place.recipe.sources if stage.name == "documents" else ():
    if not any("train" in splits for c in counts if c["source"] == source.name
               for splits in c["kept"].values()):
      raise ValueError(f"source {source.name}: no document is left to train on; look into "
                       f"{place.folder}/dropped, and lower filters, or remove it from sources")
