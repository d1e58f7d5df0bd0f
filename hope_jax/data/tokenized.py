"""The data folder: text is tokenised once, into shards of tokens that are checked at every use.

data.dir holds the tokenizer, manifest.json (what it was built from; size and sha256 of every
file) and, for each source and split, `tokens` (flat, one document after another, each
<s> ... </s>, if the tokenizer has <s>), `offsets` and `domains`.
"""

import array
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from hope_jax.checkpoints import sidecar
from hope_jax.data import corpus
from hope_jax.data.corpus import SPLITS
from hope_jax.data.pieces import Pieces
from hope_jax.data.shard import Writer
from hope_jax.data.tokenizer import find, load, train as train_tokenizer
from hope_jax.data.windows import Windows
from hope_jax.runtime import lock

PATIENCE = 24 * 3600  # seconds in which one process of a run builds what the others wait for
_FORMAT = 1
_LONG_LINE = 4096  # characters that are drawn for the tokenizer at once
_BATCH_CHARS = 4_000_000  # tokenised at a time


def build(config: ConfigDict, verify: bool = False, together: bool = False) -> Path:
  """The data folder, built if it is missing, else checked.

  Checked are config, tokenizer digest and file sizes; all bytes if `verify`. Raises ValueError,
  naming the fix, when the folder does not fit the config or is damaged; BlockingIOError, saying who
  it is, when another process builds it; one of many that do the same `together` waits for it.
  """
  check_sources(config)
  folder = Path(config.data.dir).expanduser()
  if folder.exists():
    _check(folder, config, verify)
    return folder
  with lock.held(folder.with_name(f".{folder.name}.lock"), "another data.dir",
                 PATIENCE if together else 0):
    if folder.exists():  # another process has just built it
      _check(folder, config, verify)
    else:
      _build(folder, config)
  return folder


def _build(folder: Path, config: ConfigDict) -> None:
  for dead in folder.parent.glob(f".{folder.name}.*-build"):
    if not lock.is_held(f"{dead}.lock"):
      shutil.rmtree(dead, ignore_errors=True)
  partial = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}-build")
  with lock.held(f"{partial}.lock", "another data.dir"):
    partial.mkdir()
    try:
      _write(partial, config)
      _publish(partial, folder, config)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path, config: ConfigDict) -> None:
  try:
    partial.rename(folder)
  except OSError:
    if not folder.exists():
      raise
    _check(folder, config, False)  # another process was first: its folder is as good


def tokenizer(config: ConfigDict) -> Pieces:
  """The tokenizer of the data folder, which is built if it is missing."""
  return load(build(config))


def manifest(folder: Path) -> dict:
  """What a data folder was built from and holds: config, tokenizer, python, domains, files."""
  return json.loads((folder / "manifest.json").read_text())


def digest(config: ConfigDict) -> str:
  """Changes with any byte of the token shards: what the position of a data iterator refers to."""
  if config.data.task != "text":
    return "none"
  files = manifest(build(config))["files"]
  return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def check_unchanged(config: ConfigDict, meta: dict) -> None:
  """ValueError if data.dir was built anew after `meta` was saved: its position fits no more."""
  mine, folder = digest(config), config.data.dir
  if meta["data"] != mine and json.loads(meta["config"])["data"]["dir"] == folder:
    raise ValueError(f"{folder} holds other shards ({mine}) than those the checkpoint was trained "
                     f"on ({meta['data']}): put them back, or build the new ones in another "
                     "data.dir, which is then read from the same position (--allow_changes)")


def check_sources(config: ConfigDict) -> None:
  """ValueError for sources that are not described as corpus.py says."""
  sources, fields = config.data.sources, ("name", "kind", "path", "field", "domains")
  for s in sources:
    if (not isinstance(s, ConfigDict) or {*s} != {*fields, "weight"}
        or not all(isinstance(s[field], str) and "\0" not in s[field] for field in fields)
        or not isinstance(s.weight, (int, float))):
      about = s.to_dict() if isinstance(s, ConfigDict) else s
      raise ValueError(f"data.sources: {about!r} is no source: give each the texts "
                       f"{', '.join(fields)} and a number, weight")
  names = [s.name for s in sources]
  if (not sources or len(set(names)) < len(names)
      or not all(re.fullmatch(r"[\w-]+", n) for n in names)):
    raise ValueError(f"data.sources are named {names}: give each a name of its own, of letters, "
                     "digits, _ and -")
  for s in sources:
    if not 0 < s.weight < math.inf:
      raise ValueError(f"source {s.name}: weight {s.weight} is not positive; "
                       "remove it from data.sources to leave it out")


def _wanted(config: ConfigDict) -> dict:
  """What decides the folder's content. Weights mix batches only."""
  given = config.data.tokenizer
  return dict({"tokenizer": sidecar.sha256(given_tokenizer(given))} if given else {},
              format=_FORMAT, vocab=config.model.vocab, val_fraction=config.data.val_fraction,
              tokenizer_chars=config.data.tokenizer_chars,
              sources=[{k: v for k, v in s.to_dict().items() if k != "weight"}
                       for s in config.data.sources])


def given_tokenizer(place: str) -> Path:
  """The file of data.tokenizer, which names it, or a run or data folder that has it."""
  path = Path(place).expanduser()
  path = path if path.is_file() else find(path)
  if not path.is_file():
    raise ValueError(f"data.tokenizer={place} has no tokenizer: name a tokenizer.model, a "
                     "tokenizer.json that python -m hope_jax.pretrained wrote, or a run's folder")
  return path


def _write(folder: Path, config: ConfigDict) -> None:
  sizes, documents = _measure(config)
  if config.data.tokenizer:
    shutil.copy(given_tokenizer(config.data.tokenizer), folder)
  else:
    train_tokenizer(draw(_train_texts(config), sizes, config.data.tokenizer_chars),
                    folder / "tokenizer.model", config.model.vocab)
  tok = load(folder)
  if tok.size > config.model.vocab:
    raise ValueError(f"data.tokenizer={config.data.tokenizer} has {tok.size} tokens, more than "
                     f"model.vocab={config.model.vocab}: give the model's own")
  with tqdm(total=documents, desc="tokenise", unit=" documents", file=sys.stderr) as bar:
    domains = {s.name: _write_source(folder, s, config.data.val_fraction, tok, bar)
               for s in config.data.sources}
  files = {p.name: dict(bytes=p.stat().st_size, sha256=sidecar.sha256(p))
           for p in sorted(folder.iterdir())}
  facts = dict(config=_wanted(config), tokenizer=tok.digest, python=sys.version.split()[0],
               domains=domains, files=files)
  (folder / "manifest.json").write_text(json.dumps(facts, indent=1))


def _measure(config: ConfigDict) -> tuple[dict[tuple[str, str], int], int]:
  """Characters to train on by (source, domain), and the number of documents of both splits."""
  sizes, documents = {}, 0
  for source in config.data.sources:
    for d in tqdm(corpus.read(source), desc=f"read {source.name}", unit=" documents",
                  file=sys.stderr):
      documents += 1
      if corpus.split_of(d.name, config.data.val_fraction) == "train":
        sizes[source.name, d.domain] = sizes.get((source.name, d.domain), 0) + len(d.text)
    if not any(name == source.name for name, _ in sizes):
      raise ValueError(f"source {source.name}: every document fell into the validation split; "
                       "lower data.val_fraction or split the source into more documents")
  return sizes, documents


def _train_texts(config: ConfigDict) -> Iterator[tuple[tuple[str, str], str]]:
  for source in config.data.sources:
    for d in corpus.read(source):
      if corpus.split_of(d.name, config.data.val_fraction) == "train":
        yield (source.name, d.domain), d.text


def draw(texts: Iterator[tuple[tuple[str, str], str]], sizes: dict[tuple[str, str], int],
         chars: int) -> Iterator[str]:
  """Lines, about `chars` characters: as many from each (source, domain), if there.

  sizes: characters of all of its texts.
  """
  share, left = {}, chars
  for n, key in enumerate(sorted(sizes, key=sizes.get)):
    share[key] = min(1.0, left / (len(sizes) - n) / sizes[key])
    left -= share[key] * sizes[key]
  # lines owed: taking one in 1 / share spreads the sample over every document
  due = dict.fromkeys(sizes, 0.0)
  for key, text in texts:
    for line in _lines(text):
      due[key] += share[key]
      if due[key] >= 1:
        due[key] -= 1
        yield line


def _lines(text: str) -> Iterator[str]:
  """Lines, with their ends; long ones in pieces, cut after a blank where there is one."""
  for line in text.splitlines(keepends=True):
    at = 0
    while len(line) - at > _LONG_LINE:
      cut = line.rfind(" ", at, at + _LONG_LINE) + 1 or at + _LONG_LINE
      yield line[at:cut]
      at = cut
    yield line[at:]


def _write_source(folder: Path, source: ConfigDict, val_fraction: float, tok: Pieces,
                  bar: tqdm) -> dict:
  """Writes a source's shards; {domain: {split: {documents, tokens, bytes}}}, by their numbers."""
  totals = {}
  lengths, numbers = ({s: array.array(kind) for s in SPLITS} for kind in "qi")
  with contextlib.ExitStack() as stack:
    tokens = {s: stack.enter_context(Writer(folder / f"{source.name}.{s}.tokens.npy", dtype(tok)))
              for s in SPLITS}
    for documents in groups(corpus.read(source)):
      for d, ids in zip(documents, encoded(tok, documents)):
        split = corpus.split_of(d.name, val_fraction)
        total = totals.setdefault(d.domain, {s: dict(documents=0, tokens=0, bytes=0)
                                             for s in SPLITS})
        tokens[split].add(ids)
        lengths[split].append(len(ids))
        numbers[split].append(list(totals).index(d.domain))
        for key, n in dict(documents=1, tokens=len(ids),
                           bytes=int(tok.token_bytes[ids].sum())).items():
          total[split][key] += n
      bar.update(len(documents))
  for split in SPLITS:
    np.save(folder / f"{source.name}.{split}.domains.npy", np.array(numbers[split], np.int32))
    np.save(folder / f"{source.name}.{split}.offsets.npy",
            np.cumsum([0, *lengths[split]], dtype=np.int64))
  return totals


def dtype(tok: Pieces) -> type:
  """Of a shard's tokens."""
  return np.uint16 if tok.size <= 2**16 else np.uint32


def encoded(tok: Pieces, documents: list[corpus.Document]) -> Iterator[np.ndarray]:
  """The tokens of each, with those that begin and end a document."""
  for ids in tok.encode_batch([d.text for d in documents]):
    yield np.array([*tok.begin, *ids, tok.eos], dtype(tok))


def groups(documents: Iterator[corpus.Document]) -> Iterator[list[corpus.Document]]:
  """As many at a time as are tokenised together."""
  group, chars = [], 0
  for d in documents:
    group.append(d)
    chars += len(d.text)
    if chars >= _BATCH_CHARS:
      yield group
      group, chars = [], 0
  if group:
    yield group


def _check(folder: Path, config: ConfigDict, verify: bool) -> None:
  rebuild = "delete the folder and rebuild it with python -m hope_jax.data"
  try:
    stored = manifest(folder)
    built = stored["config"]
  except (OSError, json.JSONDecodeError, KeyError):
    raise ValueError(f"{folder} holds no readable manifest.json, so it is not a data folder; "
                     f"choose another data.dir, or {rebuild}") from None
  if "recipe" in stored:
    _check_prepared(folder, config, stored)
  for key, value in () if "recipe" in stored else json.loads(json.dumps(_wanted(config))).items():
    if built.get(key) != value:
      raise ValueError(f"{folder} was built with {key} {built.get(key)!r}, the config says "
                       f"{value!r}; set them alike, choose another data.dir, or {rebuild}")
  for name, file in stored["files"].items():
    path = folder / name
    size = path.stat().st_size if path.exists() else 0
    if path != find(folder) and size != file["bytes"]:
      raise ValueError(f"truncated shard {path}: {size} bytes, {file['bytes']} were written; "
                       f"{rebuild}")
    if verify and sidecar.sha256(path) != file["sha256"]:
      raise ValueError(f"{path} changed since it was built; {rebuild}")
  tok = load(folder)
  if tok.digest != stored["tokenizer"]:
    raise ValueError(f"{find(folder)} is not the tokenizer of these shards (sha256 "
                     f"{tok.digest[:12]}, built with {stored['tokenizer'][:12]}); put the right "
                     f"one back or {rebuild}")


def _check_prepared(folder: Path, config: ConfigDict, stored: dict) -> None:
  """That a configuration is one for shards that a recipe has made."""
  for s in config.data.sources:
    if s.kind != "prepared" or s.name not in stored["domains"]:
      raise ValueError(f"source {s.name}: {folder} was made by a recipe, from the sources "
                       f"{', '.join(stored['domains'])}; give data.sources those names and the "
                       "kind prepared, or choose another data.dir")
  built = stored["config"]
  if config.model.vocab < built["vocab"] or config.data.val_fraction != built["val_fraction"]:
    raise ValueError(f"{folder} was made with {built['vocab']} tokens and val_fraction "
                     f"{built['val_fraction']}; set model.vocab and data.val_fraction alike, or "
                     "choose another data.dir")


def table(config: ConfigDict) -> str:
  """What the data folder holds, by source, domain and split, and the padding of its packing."""
  folder = build(config)
  domains = manifest(folder)["domains"]
  lines = [f"{'source/domain':32} {'split':10} {'documents':>9} {'tokens':>12} {'bytes':>13} "
           f"{'bytes/token':>11} {'padding':>7}"]
  for source in config.data.sources:
    for split in SPLITS:
      for number, domain in enumerate(domains[source.name]):
        n = domains[source.name][domain][split]
        windows = Windows(folder, source.name, split, config.data.seq, config.data.align,
                          config.data.seed, number)
        lines.append(f"{source.name + '/' + domain:32} {split:10} {n['documents']:9} "
                     f"{n['tokens']:12} {n['bytes']:13} {n['bytes'] / max(1, n['tokens']):11.3f} "
                     f"{windows.padding:7.1%}")
  return "\n".join(lines)
