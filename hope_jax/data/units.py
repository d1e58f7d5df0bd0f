"""Files of documents, each read by itself: text, JSON lines, parquet, packed or not.

A `Unit` is a file with what is known before it is read; `documents(unit, field)` yields what is in
it, in order: `Document`s, and `LeftOut` for each that has no text, with the reason. Names are
unique in a source: the file's path below the source's, and the line or row.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import json
from pathlib import Path
import re

from hope_jax.data import files

JSONL = re.compile(r"\.(jsonl?|ndjson)$")
PARQUET = re.compile(r"\.(parquet|pq)$")
_ROWS = 256  # of a parquet file at a time
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that do not escape a byte


@dataclasses.dataclass(frozen=True)
class Document:
  """`name`: unique in its source; `text` may hold surrogate escapes; `domain`: for evaluation."""

  name: str
  text: str
  domain: str


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """What could have been a document, and `why` it is none."""

  name: str
  why: str
  domain: str


@dataclasses.dataclass(frozen=True)
class Unit:
  """A file of a source; path may be an address (hf://datasets/...).

  kind: text | jsonl | parquet | topics | prepared | other, which is not read
  name: its path below the source's
  bytes: on disk
  sole: the source is this file, so that it is read whatever it seems to be
  """

  path: str
  name: str
  domain: str
  kind: str
  bytes: int
  sole: bool = False


def kind_of(path: Path) -> str:
  """jsonl, parquet or text, by a file's name."""
  name = files.stem(path)
  return "jsonl" if JSONL.search(name) else "parquet" if PARQUET.search(name) else "text"


def documents(unit: Unit, field: str) -> Iterator[Document | LeftOut]:
  """What a file holds. ValueError, naming file and line, where it is damaged.

  A packed file of a folder of which nothing can be read is left out.
  """
  readers = {"text": _text, "jsonl": _jsonl, "parquet": _parquet, "topics": _topics,
             "prepared": _prepared, "other": lambda unit, field: iter(())}
  found = readers[unit.kind](unit, field)
  try:
    first = list(itertools.islice(found, 1))
  except files.Damaged as error:
    if unit.sole:
      raise
    first = [LeftOut(unit.name, str(error).removeprefix(f"{unit.path} is "), unit.domain)]
    found = ()
  for item in itertools.chain(first, found):
    blank = isinstance(item, Document) and not item.text.strip()
    yield LeftOut(item.name, "blank", item.domain) if blank else item


def _topics(unit: Unit, field: str) -> Iterator[Document]:
  from pydoc_data.topics import topics  # 0.5 MB of literals: loaded only when asked for
  for name, text in sorted(topics.items()):
    yield Document(f"{unit.name}/{name}", text, unit.domain)


def _prepared(unit: Unit, field: str) -> Iterator[Document]:
  """Documents that a recipe has made, with the names and domains that they had."""
  with files.unpacked(unit.path) as lines:
    for record in map(json.loads, lines):
      yield Document(record["name"], record["text"], record["domain"])


def _text(unit: Unit, field: str) -> Iterator[Document | LeftOut]:
  text = files.text(unit.path)
  if "\0" in text and not unit.sole:
    yield LeftOut(unit.name, "no text", unit.domain)
  else:
    yield Document(unit.name, text, unit.domain)


def _jsonl(unit: Unit, field: str) -> Iterator[Document | LeftOut]:
  with files.unpacked(unit.path) as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield _document(unit, number, _field(line, field, f"{unit.path}:{number}"), field)


def _document(unit: Unit, number: int, text: str | None, field: str) -> Document | LeftOut:
  name = f"{unit.name}:{number}"
  if text is None:
    return LeftOut(name, f"null in field {field!r}", unit.domain)
  return Document(name, text, unit.domain)


def _field(line: bytes, field: str, where: str) -> str | None:
  """The text, or None for a null."""
  try:
    record = json.loads(files.decode(line))
  except (ValueError, RecursionError) as error:
    raise ValueError(
        f"{where}: not JSON ({error}); a jsonl source holds one JSON object a line") from None
  if isinstance(record, dict) and record.get(field, "") is None:
    return None
  if not isinstance(record, dict) or not isinstance(record.get(field), str):
    keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f"{where}: no text in field {field!r}; set the source's field to one of: "
                     f"{keys}")
  # JSON may escape half a surrogate pair, which UTF-8 cannot hold: keep the three bytes of it.
  return _LONE_SURROGATE.sub(lambda m: files.decode(m.group().encode("utf-8", "surrogatepass")),
                             record[field])


def _parquet(unit: Unit, field: str) -> Iterator[Document | LeftOut]:
  """Rows, from 1 on; so many are in memory as a batch has."""
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f"{unit.path}: parquet needs the library pyarrow: pip install "
                     "'hope_jax[data]'") from None
  try:
    with (files.open_url(unit.path) if files.is_url(unit.path) else open(unit.path, "rb")) as file:
      table = parquet.ParquetFile(file)
      schema = table.schema_arrow
      if field not in schema.names:
        raise ValueError(f"{unit.path}: no column {field!r}; set the source's field to one of: "
                         f"{', '.join(schema.names)}")
      if not pa.types.is_string(kind := schema.field(field).type) \
          and not pa.types.is_large_string(kind):
        raise ValueError(f"{unit.path}: column {field!r} is {kind}, no text; set the source's "
                         f"field to one of: {', '.join(schema.names)}")
      number = 0
      for batch in table.iter_batches(_ROWS, columns=[field]):
        for text in batch.column(0).to_pylist():
          yield _document(unit, number := number + 1, text, field)
  except (pa.ArrowInvalid, OSError) as error:
    if isinstance(error, OSError) and error.errno:  # the disk's own
      raise
    raise files.Damaged(f"{unit.path} is not a whole parquet file "
                        f"({str(error).splitlines()[0]}); fetch it again") from None
