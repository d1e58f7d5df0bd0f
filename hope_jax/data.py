"""Token shards and batches: text is tokenised once, and packed into windows by arithmetic on offsets.

    python -m hope_jax.data --config=configs/pilot.py       builds data.dir or verifies it, and prints what is in it

data.dir holds tokenizer.model, manifest.json (what it was built from; size and sha256 of every file) and, for each
source and split, `tokens` (flat, one document after another, each <s> ... </s>), `offsets` and `domains`.

Packing: the documents, in a fixed random order, each on a multiple of `align` slots, form one long row that is cut
every `seq` slots. So a document, and every piece of one that continues in the next window, starts at a multiple of
`align`. A window: int32 [seq] `tokens` (0 in padding), `labels` (the document's next token, also when it lies in the
next window; -1 at its end and in padding), `segments` (1, 2, ... by document; 0 in padding). Every next-token pair
occurs exactly once.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import app
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from hope_jax import corpus, integrity, program, recall
from hope_jax.corpus import SPLITS
from hope_jax.shard import Shard
from hope_jax.tokenizer import Tokenizer, train as train_tokenizer

_FORMAT = 1
_BATCH_CHARS = 4_000_000  # tokenised at a time
_EVAL_SEED = 0  # not data.seed: runs with different seeds are evaluated on the same windows
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # batches read ahead


def build(config: ConfigDict, verify: bool = False) -> Path:
  """The data folder, built if it is missing, else checked: config, tokenizer digest, file sizes; all bytes if `verify`.

  Raises ValueError, naming the fix, when the folder does not fit the config or is damaged.
  """
  _check_sources(config)
  folder = Path(config.data.dir)
  if folder.exists():
    _check(folder, config, verify)
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    _write(partial, config)
    partial.chmod(0o755)  # mkdtemp's folders are private
    try:
      partial.rename(folder)
    except OSError:
      if not folder.exists():
        raise
      _check(folder, config, verify)  # another process was first: its folder is as good
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def tokenizer(config: ConfigDict) -> Tokenizer:
  """The tokenizer of the data folder, which is built if it is missing."""
  return Tokenizer(build(config) / "tokenizer.model")


def digest(config: ConfigDict) -> str:
  """Changes with any byte of the token shards: what the position of a data iterator refers to."""
  if _task(config) == "recall":
    return "none"
  files = json.loads((build(config) / "manifest.json").read_text())["files"]
  return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def check_unchanged(config: ConfigDict, meta: dict) -> None:
  """ValueError if data.dir was built anew since the checkpoint with this `meta` was saved: its position fits no more."""
  mine, folder = digest(config), config.data.dir
  if meta["data"] != mine and json.loads(meta["config"])["data"]["dir"] == folder:
    raise ValueError(f"{folder} holds other shards ({mine}) than those the checkpoint was trained on ({meta['data']}): put them "
                     "back, or build the new ones in another data.dir, which is then read from the same position")


def train_batches(config: ConfigDict, rows: Sequence[int] | None = None) -> grain.DatasetIterator:
  """Endless batches, dicts of int32 [data.batch, data.seq]; sources mixed by weight, each reshuffled every epoch.

  `rows`: only these of every batch, in this order; nothing else is read. `get_state` and `set_state` resume exactly, with any
  rows. Raises ValueError if the windows do not fill one batch.
  """
  if _task(config) == "recall":
    windows = recall.dataset(config, "train")
  else:
    folder = build(config)
    parts = [Windows(folder, s.name, "train", config.data.seq, config.data.align, config.data.seed)
             for s in config.data.sources]
    count = sum(map(len, parts))
    if count < config.data.batch:
      raise ValueError(f"{folder}: {count} training windows are fewer than one batch of {config.data.batch}; "
                       "give more text (data.sources), or lower data.batch or data.seq")
    windows = grain.MapDataset.mix(
        [grain.MapDataset.source(p).seed(config.data.seed).shuffle().repeat() for p in parts],
        [s.weight for s in config.data.sources])
  size, own = config.data.batch, range(config.data.batch) if rows is None else rows
  mine = grain.MapDataset.range(sys.maxsize).map(lambda i: windows[i // len(own) * size + own[i % len(own)]])
  return iter(mine.batch(len(own), drop_remainder=True).to_iter_dataset(_READ))


def eval_batches(config: ConfigDict, batches: int) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
  """The first `batches` batches of the validation windows, always the same, in turn from every source and domain.

  Yields names [data.batch], "source/domain" of each row, and a batch as in training. There are fewer batches if the
  windows run out; the last one is then filled up with rows of name "" and nothing but padding.
  """
  size = config.data.batch
  rows = _eval_rows(config, batches * size)
  return (_stack(rows[i:i + size], size) for i in range(0, len(rows), size))


def _eval_rows(config: ConfigDict, count: int) -> list[tuple[str, Sequence, int]]:
  """(name, windows, index) of each row."""
  if _task(config) == "recall":
    windows = recall.dataset(config, "validation")
    return [("recall", windows, i) for i in range(count)]
  folder = build(config)
  kept = json.loads((folder / "manifest.json").read_text())["domains"]
  parts = [(f"{source.name}/{domain}", Windows(folder, source.name, "validation", config.data.seq, config.data.align,
                                               _EVAL_SEED, domain=number))
           for source in config.data.sources for number, domain in enumerate(kept[source.name])]
  rounds = range(max(len(windows) for _, windows in parts))
  rows = [(name, windows, i) for i in rounds for name, windows in parts if i < len(windows)]
  if not rows:
    raise ValueError(f"{folder}: no validation document; "
                     "raise data.val_fraction or split the sources into more documents")
  return rows[:count]


def _stack(rows: list[tuple[str, Sequence, int]], size: int) -> tuple[list[str], dict[str, np.ndarray]]:
  windows = [windows[i] for _, windows, i in rows]
  empty = dict(tokens=np.zeros_like(windows[0]["tokens"]), labels=np.full_like(windows[0]["labels"], -1),
               segments=np.zeros_like(windows[0]["segments"]))
  missing = size - len(rows)
  return [name for name, _, _ in rows] + [""] * missing, {
      key: np.stack([w[key] for w in windows] + [empty[key]] * missing) for key in empty}


class Windows:
  """Random access to the packed windows of one source and split (of one domain, if given its number)."""

  def __init__(self, folder: Path, source: str, split: str, seq: int, align: int, seed: int, domain: int | None = None):
    if align < 1 or seq < 1 or seq % align:
      raise ValueError(f"data.seq {seq} is not a multiple of data.align {align}; "
                       f"set data.seq to {max(1, seq // max(align, 1)) * max(align, 1)}")
    stem = folder / f"{source}.{split}"
    offsets, domains = np.load(f"{stem}.offsets.npy"), np.load(f"{stem}.domains.npy")
    self._shard = Shard(Path(f"{stem}.tokens.npy"))
    chosen = np.arange(len(domains)) if domain is None else np.flatnonzero(domains == domain)
    chosen = np.random.default_rng(seed).permutation(chosen)
    self._starts, self._lengths = offsets[chosen], np.diff(offsets)[chosen]  # in the shard, in packed order
    self._ends = np.cumsum(-(-self._lengths // align))  # in the packed row, in blocks of `align` slots
    self._seq, self._align = seq, align

  @property
  def padding(self) -> float:
    """The share of slots that hold no token."""
    slots = len(self) * self._seq
    return 1 - self._lengths.sum() / slots if slots else 0.0

  def __len__(self) -> int:
    blocks = int(self._ends[-1]) if len(self._ends) else 0
    return -(-blocks * self._align // self._seq)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    blocks = index * (self._seq // self._align) + np.arange(self._seq // self._align)
    # Blocks after the last document count as more of it: they lie beyond its length, so they become padding.
    document = np.minimum(np.searchsorted(self._ends, blocks, side="right"), len(self._ends) - 1)
    first = np.where(document > 0, self._ends[document - 1], 0)
    place = ((blocks - first) * self._align)[:, None] + np.arange(self._align)
    left = self._lengths[document][:, None] - place  # tokens from this slot to the document's end
    ahead = self._shard.read(self._starts[document] + place[:, 0], self._align + 1)
    nothing = np.int32(0)
    tokens = np.where(left > 0, ahead[:, :-1], nothing)
    labels = np.where(left > 1, ahead[:, 1:], np.int32(-1))
    segments = np.where(left > 0, (document - document[0] + 1)[:, None].astype(np.int32), nothing)
    return dict(tokens=tokens.ravel(), labels=labels.ravel(), segments=segments.ravel())


def _task(config: ConfigDict) -> str:
  if config.data.task not in ("text", "recall"):
    raise ValueError(f"unknown data.task {config.data.task!r}; set it to text or recall")
  return config.data.task


def _check_sources(config: ConfigDict) -> None:
  sources = config.data.sources
  names = [s.name for s in sources]
  if not sources or len(set(names)) < len(names) or not all(re.fullmatch(r"[\w-]+", n) for n in names):
    raise ValueError(f"data.sources are named {names}: give each a name of its own, of letters, digits, _ and -")
  for s in sources:
    if not s.weight > 0:
      raise ValueError(f"source {s.name}: weight {s.weight} is not positive; "
                       "remove it from data.sources to leave it out")


def _wanted(config: ConfigDict) -> dict:
  """What decides the folder's content. Weights mix batches only."""
  return dict(format=_FORMAT, vocab=config.model.vocab, val_fraction=config.data.val_fraction,
              tokenizer_chars=config.data.tokenizer_chars,
              sources=[{k: v for k, v in s.to_dict().items() if k != "weight"} for s in config.data.sources])


def _write(folder: Path, config: ConfigDict) -> None:
  sizes, documents = _measure(config)
  train_tokenizer(_sample(config, sizes), folder / "tokenizer.model", config.model.vocab)
  tok = Tokenizer(folder / "tokenizer.model")
  with tqdm(total=documents, desc="tokenise", unit=" documents", file=sys.stderr) as bar:
    domains = {s.name: _write_source(folder, s, config.data.val_fraction, tok, bar) for s in config.data.sources}
  files = {p.name: dict(bytes=p.stat().st_size, sha256=integrity.sha256(p)) for p in sorted(folder.iterdir())}
  manifest = dict(config=_wanted(config), tokenizer=tok.digest, python=sys.version.split()[0], domains=domains,
                  files=files)
  (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _measure(config: ConfigDict) -> tuple[dict[tuple[str, str], int], int]:
  """Characters to train on by (source, domain), and the number of documents of both splits."""
  sizes, documents = {}, 0
  for source in config.data.sources:
    for d in tqdm(corpus.read(source), desc=f"read {source.name}", unit=" documents", file=sys.stderr):
      documents += 1
      if corpus.split_of(d.name, config.data.val_fraction) == "train":
        sizes[source.name, d.domain] = sizes.get((source.name, d.domain), 0) + len(d.text)
    if not any(name == source.name for name, _ in sizes):
      raise ValueError(f"source {source.name}: every document fell into the validation split; "
                       "lower data.val_fraction or split the source into more documents")
  return sizes, documents


def _sample(config: ConfigDict, sizes: dict[tuple[str, str], int]) -> Iterator[str]:
  """Lines of the train split, about tokenizer_chars characters: as many from each (source, domain), if it has them."""
  share, left = {}, config.data.tokenizer_chars
  for n, key in enumerate(sorted(sizes, key=sizes.get)):
    share[key] = min(1.0, left / (len(sizes) - n) / sizes[key])
    left -= share[key] * sizes[key]
  due = dict.fromkeys(sizes, 0.0)  # lines owed: taking one in 1 / share spreads the sample over every document
  for source in config.data.sources:
    for d in corpus.read(source):
      if corpus.split_of(d.name, config.data.val_fraction) == "train":
        key = source.name, d.domain
        for line in d.text.splitlines(keepends=True):
          due[key] += share[key]
          if due[key] >= 1:
            due[key] -= 1
            yield line


def _write_source(folder: Path, source: ConfigDict, val_fraction: float, tok: Tokenizer, bar: tqdm) -> dict:
  """Writes a source's shards; returns {domain: {split: {documents, tokens, bytes}}}, in the order of their numbers."""
  dtype = np.uint16 if tok.size <= 2**16 else np.uint32
  totals, tokens = {}, {s: [np.zeros(0, dtype)] for s in SPLITS}
  lengths, numbers = {s: [] for s in SPLITS}, {s: [] for s in SPLITS}
  for documents in _groups(corpus.read(source)):
    for d, ids in zip(documents, tok.encode_batch([d.text for d in documents])):
      split = corpus.split_of(d.name, val_fraction)
      total = totals.setdefault(d.domain, {s: dict(documents=0, tokens=0, bytes=0) for s in SPLITS})
      ids = np.array([tok.bos, *ids, tok.eos], dtype)
      tokens[split].append(ids)
      lengths[split].append(len(ids))
      numbers[split].append(list(totals).index(d.domain))
      for key, n in dict(documents=1, tokens=len(ids), bytes=int(tok.token_bytes[ids].sum())).items():
        total[split][key] += n
    bar.update(len(documents))
  for split in SPLITS:
    for part, array in dict(tokens=np.concatenate(tokens[split]), domains=np.array(numbers[split], np.int32),
                            offsets=np.cumsum([0, *lengths[split]], dtype=np.int64)).items():
      np.save(folder / f"{source.name}.{split}.{part}.npy", array)
  return totals


def _groups(documents: Iterator[corpus.Document]) -> Iterator[list[corpus.Document]]:
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
    manifest = json.loads((folder / "manifest.json").read_text())
    built = manifest["config"]
  except (OSError, json.JSONDecodeError, KeyError):
    raise ValueError(f"{folder} holds no readable manifest.json, so it is not a data folder; "
                     f"choose another data.dir, or {rebuild}") from None
  for key, value in json.loads(json.dumps(_wanted(config))).items():
    if built.get(key) != value:
      raise ValueError(f"{folder} was built with {key} {built.get(key)!r}, the config says {value!r}; "
                       f"set them alike, choose another data.dir, or {rebuild}")
  for name, file in manifest["files"].items():
    path = folder / name
    size = path.stat().st_size if path.exists() else 0
    if name != "tokenizer.model" and size != file["bytes"]:
      raise ValueError(f"truncated shard {path}: {size} bytes, {file['bytes']} were written; {rebuild}")
    if verify and integrity.sha256(path) != file["sha256"]:
      raise ValueError(f"{path} changed since it was built; {rebuild}")
  tok = Tokenizer(folder / "tokenizer.model")
  if tok.digest != manifest["tokenizer"]:
    raise ValueError(f"{folder / 'tokenizer.model'} is not the tokenizer of these shards (sha256 {tok.digest[:12]}, "
                     f"built with {manifest['tokenizer'][:12]}); put the right one back or {rebuild}")


def table(config: ConfigDict) -> str:
  """What the data folder holds, by source, domain and split, and the padding of its packing."""
  folder = build(config)
  domains = json.loads((folder / "manifest.json").read_text())["domains"]
  lines = [f"{'source/domain':32} {'split':10} {'documents':>9} {'tokens':>12} {'bytes':>13} {'bytes/token':>11} "
           f"{'padding':>7}"]
  for source in config.data.sources:
    for split in SPLITS:
      for number, domain in enumerate(domains[source.name]):
        n = domains[source.name][domain][split]
        windows = Windows(folder, source.name, split, config.data.seq, config.data.align, config.data.seed, number)
        lines.append(f"{source.name + '/' + domain:32} {split:10} {n['documents']:9} {n['tokens']:12} {n['bytes']:13} "
                     f"{n['bytes'] / max(1, n['tokens']):11.3f} {windows.padding:7.1%}")
  return "\n".join(lines)


def run() -> None:
  """Entry point of the console script."""
  chosen = config_flags.DEFINE_config_file("config")

  def main(_):
    with program.one_line(ValueError, OSError):
      print(build(chosen.value, verify=True))
      print(table(chosen.value))

  app.run(main, flags_parser=program.parse_flags)


if __name__ == "__main__":
  run()
