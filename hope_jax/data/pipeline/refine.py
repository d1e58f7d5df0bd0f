"""The stages from sources to documents: filter, exact, signatures, pairs, clusters, documents.

filter: reads, normalises, filters and decontaminates one part. exact: of a sixteenth of all
digests, which were there before. signatures, pairs, clusters: near.py. documents: what stays.
Every item that was read is a line of `documents` or of a list in `dropped`, never of both.
"""

import collections
import hashlib
from pathlib import Path
import unicodedata

from datatrove.data import Document
from ml_collections import ConfigDict
import numpy as np

from hope_jax.data import corpus, files
from hope_jax.data.pipeline import contamination, filters, near, store
from hope_jax.data.pipeline.stages import Meter, Place
from hope_jax.data.units import LeftOut

SLICES = 16  # of all digests, one in memory at a time
_EXCERPT = 200  # characters


class _Drops:
  """Writes what goes and why, and counts it."""

  def __init__(self, write, examples: int):
    self._write, self._examples = write, examples
    self.counts, self.bytes = collections.Counter(), collections.Counter()

  def add(self, name: str, rule: str, text: str = "", **more) -> None:
    self.counts[rule] += 1
    size = len(files.encode(text))
    self.bytes[rule] += size
    if text and self.counts[rule] <= self._examples:
      more["begins"] = text[:_EXCERPT]
    self._write(dict(name=name, rule=rule, bytes=size) | more)


def normalised(text: str, options: ConfigDict) -> str:
  """The text, with what the recipe changes changed."""
  if options.line_ends:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
  return unicodedata.normalize(options.unicode, text) if options.unicode else text


def index(place: Place, rank: int, meter: Meter) -> None:
  """The evaluation sets' runs of words."""
  options = place.recipe.decontaminate

  def metered():
    for text in contamination.texts(options.files):
      meter.add(len(text))
      yield text
  with store.whole(place.work / "evaluations.npz") as new:
    contamination.save(new, contamination.index(metered(), options.n, options.least))


def select(place: Place, rank: int, meter: Meter) -> None:
  """Filters a part."""
  source, part = place.source(rank), place.parts[rank]
  chain = filters.of(place.recipe, source.filters)
  known = contamination.Finder(contamination.load(place.work / "evaluations.npz"))
  digests, items = [], 0
  with store.lines(place.kept(rank)) as keep, store.lines(place.dropped(rank, "filter")) as write:
    drops = _Drops(write, place.recipe.examples)
    for items, item in enumerate(corpus.items(source, part.units), 1):
      if isinstance(item, LeftOut):
        drops.add(item.name, item.why)
        continue
      size = len(files.encode(item.text))
      meter.add(size)
      document = Document(normalised(item.text, place.recipe.normalise), item.name)
      rule = filters.judge(document, chain)
      shared = None if rule else known.found(document.text)
      if rule or shared:
        drops.add(item.name, rule or "contaminated", item.text, **{"shared": shared} if shared
                  else {})
        continue
      digests.append(hashlib.blake2b(files.encode(document.text), digest_size=16).digest())
      keep(dict(name=item.name, domain=item.domain, text=document.text))
  store.write_array(place.work / "digests" / f"{rank:05d}.npy",
                    np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2))
  store.write_facts(place.counts("filter", rank), dict(
      source=source.name, documents=items, bytes=meter.bytes, dropped=drops.counts,
      dropped_bytes=drops.bytes))


def exact(place: Place, rank: int, meter: Meter) -> None:
  """(N, 4): part and number of a document that was there before, and of the first such."""
  owners, digests = [], []
  for number in range(len(place.parts)):
    of_part = np.load(place.work / "digests" / f"{number:05d}.npy", mmap_mode="r")
    mine = np.flatnonzero(of_part[:, 0] % SLICES == rank) if len(of_part) else np.zeros(0, int)
    digests.append(np.asarray(of_part[mine]))
    owners.append(np.stack([np.full(len(mine), number), mine], 1))
    meter.documents += len(mine)
  owners, digests = np.concatenate(owners), np.concatenate(digests)
  order = np.lexsort((digests[:, 1], digests[:, 0]))  # keeps the order of equal ones
  owners, digests = owners[order], digests[order]
  again = np.concatenate([[False], (digests[1:] == digests[:-1]).all(1)])[:len(owners)]
  first = owners[np.maximum.accumulate(np.where(again, 0, np.arange(len(owners))))]
  store.write_array(_exact(place, rank), np.concatenate([owners, first], 1)[again])


def _exact(place: Place, rank: int) -> Path:
  return place.work / "exact" / f"{rank:02d}.npy"


def repeated(place: Place, rank: int) -> dict[int, tuple[int, int]]:
  """{number of a part's document that was there before: (part, number) of the first}."""
  if not place.recipe.exact:
    return {}
  every = np.concatenate([np.load(_exact(place, n)) for n in range(SLICES)])
  return {int(n): (int(part), int(number)) for _, n, part, number in every[every[:, 0] == rank]}


def sign(place: Place, rank: int, meter: Meter) -> None:
  """MinHash signatures of a part's documents, but of those that were there before."""
  again = repeated(place, rank)

  def texts():
    for number, record in enumerate(store.read_lines(place.kept(rank))):
      meter.add(len(files.encode(record["text"])))
      yield "" if number in again else record["text"]
  near.sign(place.work / "near", place.recipe.near, rank, texts())


def pair(place: Place, rank: int, meter: Meter) -> None:
  near.pair(place.work / "near", place.recipe.near, rank)


def cluster(place: Place, rank: int, meter: Meter) -> None:
  near.cluster(place.work / "near", place.recipe.near)


def write(place: Place, rank: int, meter: Meter) -> None:
  """Writes a part's documents that stay."""
  again, groups, removed = repeated(place, rank), {}, set()
  if place.recipe.near.on:
    removed = near.removed(place.work / "near", rank)
    groups = near.clusters(place.work / "near", rank)
  kept = {}
  with store.lines(place.documents(rank)) as keep, \
      store.lines(place.dropped(rank, "duplicates")) as write_drop:
    drops = _Drops(write_drop, place.recipe.examples)
    for number, record in enumerate(store.read_lines(place.kept(rank))):
      size = len(files.encode(record["text"]))
      meter.add(size)
      if number in again:
        drops.add(record["name"], "exact_duplicate", record["text"], of=again[number])
      elif number in removed:
        drops.add(record["name"], "near_duplicate", record["text"], cluster=groups[number])
      else:
        keep(record)
        split = corpus.split_of(record["name"], place.recipe.val_fraction)
        total = kept.setdefault(record["domain"], {}).setdefault(
            split, dict(documents=0, bytes=0, chars=0, lengths=collections.Counter()))
        total["documents"] += 1
        total["bytes"] += size
        total["chars"] += len(record["text"])
        total["lengths"][size.bit_length()] += 1
  store.write_facts(place.counts("documents", rank), dict(
      source=place.source(rank).name, kept=kept, dropped=drops.counts, dropped_bytes=drops.bytes,
      clusters=sorted(collections.Counter(groups.values()).items())))
