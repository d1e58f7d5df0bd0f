"""Text in an order: domains or years, each with documents to learn from and others to be tested on.

    groups = domains(["fiction.jsonl.gz", "news.jsonl.gz"], "text")     # or years(...)
    segments = cut(groups, tokenizer, learn=8192, tests=16, tokens=512, seed=0)
"""

import hashlib
from pathlib import Path
import re
from typing import NamedTuple

from hope_jax.scoring import published
from hope_jax.scoring.published import Row, Source


class Segment(NamedTuple):
  """Token ids of documents, each with <s> in front; sizes: bytes of text of each test document."""
  name: str
  learn: list[list[int]]
  test: list[list[int]]
  sizes: list[int]


def domains(paths: list[str], field: str) -> dict[str, list[tuple[str, str]]]:
  """{name of a file: its (place, text)}, in this order. ValueError for two of one name."""
  groups = {}
  for path in paths:
    name = Path(path).name.split(".")[0]
    if name in groups:
      raise ValueError(f"two files are called {name}: rename one")
    groups[name] = [(row.where, _text(row, field)) for row in _rows(path)]
  return groups


def years(path: str, field: str, date: str) -> dict[str, list[tuple[str, str]]]:
  """{year: (place, text)}, in order, of documents whose field `date` begins with a year."""
  groups = {}
  for row in _rows(path):
    year = str(row.fields.get(date, ""))[:4]
    if not re.fullmatch(r"\d{4}", year):
      raise row.wrong(f"its field {date} begins with no year: {row.fields.get(date)!r}")
    groups.setdefault(year, []).append((row.where, _text(row, field)))
  return dict(sorted(groups.items()))


def _rows(path: str) -> list[Row]:
  if not Path(path).is_file():
    raise FileNotFoundError(f"no {path}: --domains and --years name files of JSON lines")
  return published.rows(Source(Path(path).name.removesuffix(".gz"), "your own text", split="whole"),
                        str(Path(path).parent))


def _text(row: Row, field: str) -> str:
  if not isinstance(row.fields.get(field), str):
    raise row.wrong(f"it has no text in the field {field}")
  return row.fields[field]


def cut(groups: dict[str, list[tuple[str, str]]], tokenizer, *, learn: int, tests: int,
        tokens: int, seed: int) -> list[Segment]:
  """A segment of each group: documents in the order of a hash, the first ones for the test.

  Args:
    learn: tokens to learn from; the last document is cut.
    tests: documents, each cut to so many `tokens`.

  Raises ValueError for a group that has too little text, or fewer than two groups.
  """
  if len(groups) < 2:
    raise ValueError(f"{len(groups)} segments: forgetting needs 2; give more files, or years")
  return [_segment(name, documents, tokenizer, learn, tests, tokens, seed)
          for name, documents in groups.items()]


def _segment(name, documents, tokenizer, learn, tests, tokens, seed) -> Segment:
  def order(document):
    return hashlib.sha256(f"{seed} {Path(document[0]).name}".encode()).digest()
  segment, left = Segment(name, [], [], []), learn
  for _, text in sorted(documents, key=order):
    ids = tokenizer.encode(text)
    if len(ids) < 2:
      continue
    if len(segment.test) < tests:
      segment.test.append([*tokenizer.begin, *ids[:tokens]])
      segment.sizes.append(int(tokenizer.token_bytes[ids[:tokens]].sum()))
    elif left >= 2:
      segment.learn.append([*tokenizer.begin, *ids[:left]])
      left -= len(ids[:left])
  if left >= 2:
    raise ValueError(f"segment {name} has {len(documents)} documents: too few for {tests} to test "
                     f"and {learn:,} tokens to learn; {left:,} are missing: lower --learn_tokens "
                     "or --test_documents")
  return segment
