"""The stages from documents to a data folder: tokenizer, tokenise, shards.

    shards/  tokenizer, manifest.json, and for each source and split tokens.00000.npy and on,
             offsets.npy, domains.npy: what a model's data.dir holds (tokenized.py)

Shards have the documents in the order of the input, each document in one of them, and end with the
document that reaches recipe.shard_tokens.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import shutil

import numpy as np

from hope_jax.data import corpus, files, shard, tokenized, tokenizer
from hope_jax.data.corpus import Document, SPLITS
from hope_jax.data.pipeline import store
from hope_jax.data.pipeline.stages import Meter, Place

_AT_ONCE = 1 << 22  # tokens copied


def folder(place: Place) -> Path:
  """Of the tokenizer and the shards."""
  return place.folder / "shards"


def documents(place: Place, rank: int, meter: Meter) -> Iterator[Document]:
  """Those of a part that stay."""
  for record in store.read_lines(place.documents(rank)):
    meter.add(len(files.encode(record["text"])))
    yield Document(record["name"], record["text"], record["domain"])


def train(place: Place, rank: int, meter: Meter) -> None:
  """Trains the tokenizer on train documents, or copies the one that is given."""
  options, new = place.recipe.tokenizer, place.work / "tokenizer"
  shutil.rmtree(new, ignore_errors=True)
  new.mkdir()
  if options.path:
    given = tokenized.given_tokenizer(options.path)
    shutil.copy(given, new / given.name)
  else:
    lines = tokenized.draw(_train_texts(place, meter), _sizes(place), options.chars)
    tokenizer.train(lines, new / "tokenizer.model", options.vocab)
  if (tok := tokenizer.load(new)).size > options.vocab:
    raise ValueError(f"tokenizer.path={options.path} has {tok.size} tokens, more than "
                     f"tokenizer.vocab={options.vocab}: raise it")
  for old in map(folder(place).joinpath, tokenizer.FILES):
    old.unlink(missing_ok=True)
  with store.whole(folder(place) / tokenizer.find(new).name) as there:
    shutil.copy(tokenizer.find(new), there)


def _sizes(place: Place) -> dict[tuple[str, str], int]:
  """Characters to train on by (source, domain)."""
  sizes = {}
  for rank in range(len(place.parts)):
    counts = store.read_facts(place.counts("documents", rank))
    for domain, splits in counts["kept"].items():
      if "train" in splits:
        key = counts["source"], domain
        sizes[key] = sizes.get(key, 0) + splits["train"]["chars"]
  return sizes


def _train_texts(place: Place, meter: Meter) -> Iterator[tuple[tuple[str, str], str]]:
  for rank in range(len(place.parts)):
    for d in documents(place, rank, meter):
      if corpus.split_of(d.name, place.recipe.val_fraction) == "train":
        yield (place.source(rank).name, d.domain), d.text


def encode(place: Place, rank: int, meter: Meter) -> None:
  """Writes a part's tokens, the lengths of its documents and the numbers of their domains."""
  tok, numbered = tokenizer.load(folder(place)), domains(place, place.source(rank).name)
  lengths, numbers = ({s: [] for s in SPLITS} for _ in range(2))
  sizes = {}  # {domain: {split: [documents, tokens, bytes]}}
  with contextlib.ExitStack() as stack:
    tokens = {s: stack.enter_context(shard.Writer(
        stack.enter_context(store.whole(_part(place, rank, s, "tokens"))), tokenized.dtype(tok)))
              for s in SPLITS}
    for some in tokenized.groups(documents(place, rank, meter)):
      for d, ids in zip(some, tokenized.encoded(tok, some)):
        split = corpus.split_of(d.name, place.recipe.val_fraction)
        tokens[split].add(ids)
        lengths[split].append(len(ids))
        numbers[split].append(numbered[d.domain])
        of_domain = sizes.setdefault(d.domain, {s: [0, 0, 0] for s in SPLITS})[split]
        for i, n in enumerate((1, len(ids), int(tok.token_bytes[ids].sum()))):
          of_domain[i] += n
  for split in SPLITS:
    store.write_array(_part(place, rank, split, "lengths"), np.array(lengths[split], np.int64))
    store.write_array(_part(place, rank, split, "domains"), np.array(numbers[split], np.int32))
  store.write_facts(place.counts("tokens", rank), dict(
      source=place.source(rank).name, domains=sizes))


def _part(place: Place, rank: int, split: str, what: str) -> Path:
  return place.work / "tokens" / f"{rank:05d}.{split}.{what}.npy"


def domains(place: Place, source: str) -> dict[str, int]:
  """{domain: number} of a source, in the order in which its documents have them."""
  found = {}
  for rank in _ranks(place, source):
    for domain in store.read_facts(place.counts("documents", rank))["kept"]:
      found.setdefault(domain, len(found))
  return found


def _ranks(place: Place, source: str) -> list[int]:
  return [rank for rank in range(len(place.parts)) if place.source(rank).name == source]


def shards(place: Place, rank: int, meter: Meter) -> None:
  """Writes the shards of one source and split from its parts."""
  source, split = place.recipe.sources[rank // len(SPLITS)].name, SPLITS[rank % len(SPLITS)]
  stem = folder(place) / f"{source}.{split}"
  for old in stem.parent.glob(f"{stem.name}.*.npy"):
    old.unlink()
  ranks = _ranks(place, source)
  lengths, domains = (np.concatenate(
      [np.load(_part(place, part, split, what)) for part in ranks] or [np.zeros(0, np.int64)])
                      for what in ("lengths", "domains"))
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  pieces = _Pieces(place, ranks, split)
  for number, (first, end) in enumerate(spans(offsets, place.recipe.shard_tokens)):
    with store.whole(Path(f"{stem}.tokens.{number:05d}.npy")) as new:
      _copy(pieces, new, end - first)
  meter.documents, meter.bytes = len(lengths), int(offsets[-1])
  store.write_array(Path(f"{stem}.domains.npy"), domains.astype(np.int32))
  store.write_array(Path(f"{stem}.offsets.npy"), offsets)


def spans(offsets: np.ndarray, most: int) -> list[tuple[int, int]]:
  """(first token, end) of each shard: (0, 5), (5, 9) for documents that end at 3, 5, 9 and most 4.

  One, empty, where there are no documents.
  """
  found, first = [], 0
  while first < offsets[-1]:
    end = int(offsets[min(np.searchsorted(offsets, first + most), len(offsets) - 1)])
    found.append((first, end))
    first = end
  return found or [(0, 0)]


class _Pieces:
  """The tokens of a source's parts, one after another, in pieces of any size."""

  def __init__(self, place: Place, ranks: list[int], split: str):
    self._arrays = [np.load(_part(place, rank, split, "tokens"), mmap_mode="r") for rank in ranks]
    self.dtype = self._arrays[0].dtype
    self._part, self._at = 0, 0

  def take(self, most: int) -> np.ndarray:
    """The next tokens, at most so many, and at least one."""
    while self._at == len(self._arrays[self._part]):
      self._part, self._at = self._part + 1, 0
    found = self._arrays[self._part][self._at:self._at + most]
    self._at += len(found)
    return found


def _copy(pieces: _Pieces, path: Path, count: int) -> None:
  with shard.Writer(path, pieces.dtype) as new:
    while new.size < count:
      new.add(pieces.take(min(_AT_ONCE, count - new.size)))
