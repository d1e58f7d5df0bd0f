"""The recipe of a data folder: from where, through which filters, into which shards.

A recipe file returns `base()` with some fields changed and its sources:

    c = recipe.base()
    c.sources = (recipe.source("web", "jsonl", "texts/web", licence="ODC-BY"),)

    python -m hope_jax.data --config=configs/data/sample.py

Thresholds are those that datatrove took from the papers (filters.py). `training(c)` are the sources
of a model's configuration that trains on what was made; its data.dir is `shards(c)`.
"""

import hashlib
import json
import math
from pathlib import Path
import re

from ml_collections import ConfigDict

from hope_jax.data import corpus

FILTERS = ("quality", "language", "repetition", "sentences")
ABOUT = ("address", "licence", "date")  # where a source came from; nothing is read there


def base() -> ConfigDict:
  """The defaults: every filter as published."""
  c = ConfigDict()
  c.dir = "runs/data/sample"
  c.sources = ()
  c.workers = 0  # processes at work; 0: as many as cores
  c.part_bytes = 32_000_000  # on disk, of the files that one task reads; a file is never cut
  c.examples = 3  # of each rule and part, whose first characters are kept in the list of drops
  c.normalise = ConfigDict()
  c.normalise.unicode = ""  # NFC | NFKC; "": every character stays
  c.normalise.line_ends = False  # CR LF and CR become LF
  c.filters = _filters()
  c.exact = True  # a text that was there before goes
  c.near = ConfigDict()  # MinHash: a text that is nearly one that stays goes
  c.near.on = True
  c.near.n = 5  # words in a run; similarity is the share of runs that two texts have in common
  c.near.buckets = 14  # found with probability 1 - (1 - similarity^hashes)^buckets
  c.near.hashes = 8
  c.near.seed = 1
  c.decontaminate = ConfigDict()
  c.decontaminate.files = ()  # evaluation sets: files or folders
  c.decontaminate.n = 13  # a document that has so many words in a row of one of them goes
  c.decontaminate.least = 8  # shorter texts of them, down to so many words, count if whole
  c.tokenizer = ConfigDict()
  c.tokenizer.path = ""  # a tokenizer that there is; "": it is trained here
  c.tokenizer.vocab = 32_768
  c.tokenizer.chars = 30_000_000  # that it learns from
  c.val_fraction = 0.05  # by a hash of the document's name
  c.shard_tokens = 100_000_000  # a file of tokens ends with the document that reaches so many
  return c


def _filters() -> ConfigDict:
  return ConfigDict(dict(
      language=dict(on=True, languages=("en",), least=0.0, chars=1000),
      quality=dict(
          on=True, min_doc_words=50, max_doc_words=100_000, min_avg_word_length=3,
          max_avg_word_length=10, max_symbol_word_ratio=0.1, max_bullet_lines_ratio=0.9,
          max_ellipsis_lines_ratio=0.3, max_non_alpha_words_ratio=0.8, min_stop_words=2),
      repetition=dict(
          on=True, dup_line_frac=0.3, dup_para_frac=0.3, dup_line_char_frac=0.2,
          dup_para_char_frac=0.2, top_n_grams=((2, 0.2), (3, 0.18), (4, 0.16)),
          dup_n_grams=((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))),
      sentences=dict(
          on=True, rewrite=False, remove_citations=True, filter_no_terminal_punct=True,
          min_num_sentences=5, min_words_per_line=3, max_word_length=1000,
          filter_lorem_ipsum=True, filter_javascript=True, filter_curly_bracket=True,
          filter_policy=True)))


def source(name: str, kind: str, path: str = "", *, field: str = "text", domains: str = "",
           weight: float = 1.0, filters: tuple[str, ...] = FILTERS, address: str = "",
           licence: str = "", date: str = "") -> ConfigDict:
  """A source (corpus.py says which kinds there are), and where it came from.

  weight: in training; filters: those that it goes through.
  """
  return ConfigDict(dict(name=name, kind=kind, path=path, field=field, domains=domains,
                         weight=float(weight), filters=tuple(filters), address=address,
                         licence=licence, date=date))


def folder(c: ConfigDict) -> Path:
  """What a recipe makes lies here."""
  return Path(c.dir).expanduser()


def shards(c: ConfigDict) -> str:
  """The data.dir of a model that trains on it."""
  return str(folder(c) / "shards")


def training(c: ConfigDict) -> tuple[ConfigDict, ...]:
  """The data.sources of a model that trains on it."""
  return tuple(ConfigDict(dict(
      name=s.name, kind="prepared", path=str(folder(c) / "documents" / s.name), field="text",
      domains="", weight=s.weight)) for s in c.sources)


def settings(c: ConfigDict) -> dict:
  """What decides what is made: all but where it lies and how many work on it."""
  stored = json.loads(c.to_json_best_effort())
  kept = {key: value for key, value in stored.items() if key not in ("dir", "workers")}
  return kept | {"sources": [{key: value for key, value in s.items() if key != "weight"}
                             for s in json.loads(json.dumps([s.to_dict() for s in c.sources]))]}


def digest(c: ConfigDict) -> str:
  """Of the settings."""
  return hashlib.sha256(json.dumps(settings(c), sort_keys=True).encode()).hexdigest()


def check(c: ConfigDict) -> None:
  """ValueError, naming the fix, for a recipe that cannot be made."""
  names = [s.name for s in c.sources]
  if not names or len({*names}) < len(names) or not all(re.fullmatch(r"[\w-]+", n) for n in names):
    raise ValueError(f"sources are named {names}: give each a name of its own, of letters, digits, "
                     "_ and -")
  for s in c.sources:
    if s.kind not in corpus.KINDS:
      raise ValueError(f"source {s.name}: unknown kind {s.kind!r}; set it to one of "
                       f"{', '.join(corpus.KINDS)}")
    if not 0 < s.weight < math.inf or {*s.filters} - {*FILTERS}:
      raise ValueError(f"source {s.name}: its weight is a positive number, its filters are of "
                       f"{', '.join(FILTERS)}")
  for name, least in (("part_bytes", 1), ("examples", 0), ("shard_tokens", 1), ("workers", 0)):
    if c[name] < least:
      raise ValueError(f"{name} {c[name]} is below {least}: raise it")
  if c.normalise.unicode not in ("", "NFC", "NFKC"):
    raise ValueError(f"normalise.unicode {c.normalise.unicode!r}: set it to NFC, NFKC or ''")
  if min(c.near.n, c.near.buckets, c.near.hashes) < 1:
    raise ValueError("near.n, near.buckets and near.hashes are at least 1: raise them")
  if not 1 <= c.decontaminate.least <= c.decontaminate.n:
    raise ValueError(f"decontaminate.least {c.decontaminate.least} is not in 1 to decontaminate.n, "
                     f"{c.decontaminate.n}: set it between")
  corpus.split_of("", c.val_fraction)
