"""What a folder was made from and holds: one manifest for sources, tokenizer, filters and shards.

    manifest.json   recipe, and its digest; of each source its address, licence and date, its files'
                    sizes and digests, and counts of what came in, stayed and went by which rule;
                    how many documents of one are in another; the tokenizer's digest; size and
                    digest of every file that was made

`verify` reads every byte again. shards/manifest.json is what a model's training checks.
"""

import collections
import hashlib
from pathlib import Path

from hope_jax.checkpoints import sidecar
from hope_jax.data import files, tokenizer
from hope_jax.data.corpus import SPLITS
from hope_jax.data.pipeline import recipe as recipes, refine, store, tokens
from hope_jax.data.pipeline.stages import Meter, Place

NAME = "manifest.json"
MADE = ("documents", "dropped", "shards")


def digests(place: Place, rank: int, meter: Meter) -> None:
  """SHA-256 of a part's input files."""
  found = {}
  for unit in place.parts[rank].units:
    with files.open_url(unit.path) if files.is_url(unit.path) else open(unit.path, "rb") as file:
      found[unit.name] = dict(bytes=unit.bytes,
                              sha256=hashlib.file_digest(file, "sha256").hexdigest())
    meter.add(unit.bytes)
  store.write_facts(place.counts("inputs", rank), found)


def write(place: Place) -> dict:
  """Writes both manifests; returns the whole one."""
  tok = tokenizer.load(tokens.folder(place))
  sources = {s.name: _source(place, s) for s in place.recipe.sources}
  settings = recipes.settings(place.recipe)
  of_shards = {name: record for name, record in _digests(tokens.folder(place), "").items()
               if name != NAME}
  store.write_facts(tokens.folder(place) / NAME, dict(
      recipe=recipes.digest(place.recipe), tokenizer=tok.digest,
      config=dict(vocab=tok.size, val_fraction=place.recipe.val_fraction),
      domains={name: facts["tokens"] for name, facts in sources.items()}, files=of_shards))
  facts = dict(recipe=settings, digest=recipes.digest(place.recipe), sources=sources,
               overlap=_overlap(place),
               tokenizer=tok.digest,
               files={name: record for made in MADE
                      for name, record in _digests(place.folder / made, made + "/").items()})
  store.write_facts(place.folder / NAME, facts)
  return facts


def read(folder: Path) -> dict:
  """ValueError where there is no manifest, or a damaged one."""
  try:
    return store.read_facts(folder / NAME)
  except (OSError, ValueError):
    raise ValueError(f"{folder} has no whole {NAME}: make it, python -m hope_jax.data "
                     "--config=its recipe") from None


def verify(folder: Path) -> str:
  """One line of what was read. ValueError for a file that is not as it was written."""
  made = read(folder)["files"]
  for name, record in made.items():
    path = folder / name
    size = path.stat().st_size if path.exists() else -1
    if size != record["bytes"] or sidecar.sha256(path) != record["sha256"]:
      what = "is missing" if size < 0 else "changed since it was written"
      raise ValueError(f"{path} {what}: bring it back from a copy, or delete {folder} and make it "
                       "again")
  size = sum(record["bytes"] for record in made.values())
  return f"{folder}: {len(made)} files, {size:,} bytes, are as they were written"


def _digests(folder: Path, prefix: str) -> dict:
  return {prefix + path.relative_to(folder).as_posix(): dict(
      bytes=path.stat().st_size, sha256=sidecar.sha256(path))
          for path in sorted(folder.rglob("*")) if path.is_file()}


def _source(place: Place, source) -> dict:
  """Of a source: where from, files, documents and bytes that came in, stayed and went."""
  read, dropped, bytes_dropped = collections.Counter(), collections.Counter(), collections.Counter()
  kept, lengths, inputs, of_tokens = collections.Counter(), collections.Counter(), {}, {}
  for rank, part in enumerate(place.parts):
    if place.source(rank).name != source.name:
      continue
    inputs |= store.read_facts(place.counts("inputs", rank))
    first, last = (store.read_facts(place.counts(stage, rank)) for stage in ("filter", "documents"))
    read.update(documents=first["documents"], bytes=first["bytes"])
    for counts in (first, last):
      dropped.update(counts["dropped"])
      bytes_dropped.update(counts["dropped_bytes"])
    for of_split in (total for splits in last["kept"].values() for total in splits.values()):
      kept.update(documents=of_split["documents"], bytes=of_split["bytes"])
      lengths.update(of_split["lengths"])
    _add_tokens(of_tokens, store.read_facts(place.counts("tokens", rank))["domains"])
  order = tokens.domains(place, source.name)
  return {about: source[about] for about in recipes.ABOUT} | dict(
      kind=source.kind, read=read, kept=kept, lengths=lengths, inputs=inputs,
      dropped={rule: dict(documents=n, bytes=bytes_dropped[rule]) for rule, n in dropped.items()},
      tokens={domain: of_tokens[domain] for domain in order})


def _overlap(place: Place) -> dict[str, dict[str, int]]:
  """{source: {source: documents of the first that are, nearly, also in the second}}."""
  names = [s.name for s in place.recipe.sources]
  found = {name: dict.fromkeys(names, 0) for name in names}
  members = {}  # {cluster: {source: documents}}
  for rank in range(len(place.parts)):
    own = place.source(rank).name
    for part, _ in refine.repeated(place, rank).values():
      found[own][place.source(part).name] += 1
    for cluster, n in store.read_facts(place.counts("documents", rank))["clusters"]:
      counts = members.setdefault(cluster, {})
      counts[own] = counts.get(own, 0) + n
  for counts in members.values():
    for own, n in counts.items():
      for other in counts:
        found[own][other] += n if other != own else n - 1
  return found


def _add_tokens(total: dict, domains: dict) -> None:
  for domain, splits in domains.items():
    own = total.setdefault(domain, {s: dict(documents=0, tokens=0, bytes=0) for s in SPLITS})
    for split, numbers in splits.items():
      for key, n in zip(("documents", "tokens", "bytes"), numbers):
        own[split][key] += n


def table(facts: dict) -> str:
  """Of each source what came in, what stayed, and what went by which rule."""
  lines = [f"{'source':24} {'documents':>10} {'MB':>9} {'tokens':>12}  rule"]
  for name, s in facts["sources"].items():
    count = sum(n["tokens"] for splits in s["tokens"].values() for n in splits.values())
    lines.append(_row(name, s["read"], "", "read"))
    for rule, n in sorted(s["dropped"].items(), key=lambda item: -item[1]["bytes"]):
      lines.append(_row("", n, "", rule))
    lines.append(_row("", s["kept"], f"{count:,}", "kept"))
  return "\n".join(lines)


def _row(name: str, n: dict, count: str, rule: str) -> str:
  return (f"{name:24} {n.get('documents', 0):10,} {n.get('bytes', 0) / 1e6:9.2f} {count:>12}  "
          f"{rule}")
