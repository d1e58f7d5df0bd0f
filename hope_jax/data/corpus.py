"""Documents and where they come from: text every Python carries, text files, JSON lines.

A source is data, `ConfigDict(name, kind, path, field, domains, weight)`, one entry of
`config.data.sources`:

    embedded  pydoc's reference topics, the standard library's sources and its tests: no download
    text      a text file, or every file of a folder: one document a file
    jsonl     a JSON lines file (.jsonl, .json, .ndjson, plain or packed), or every such file of a
              folder: one document a line, its text in `field`

Documents come in the same order on every read. What bytes mean: files.py. What is left out of a
folder (files that are no text, or no JSON lines; lines without a text) is said.
"""

import dataclasses
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.data import files

SPLITS = ("train", "validation")
_EMBEDDED = ("reference", "library", "tests")
_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Third-party code, tables, and files written for one machine: not the language's own text.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings"}
# the topics are the reference domain already
_SKIPPED_FILES = re.compile(r"_sysconfigdata.*|topics\.py")
_JSONL = re.compile(r"\.(jsonl?|ndjson)$")
_LARGEST_SOURCE_FILE = 500_000  # bytes; what is larger was generated
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that do not escape a byte


@dataclasses.dataclass(frozen=True)
class Document:
  """`name`: unique in its source; `text` may hold surrogate escapes; `domain`: for evaluation."""

  name: str
  text: str
  domain: str


def read(source: ConfigDict) -> Iterator[Document]:
  """The source's documents that hold more than white space, of the domains it selects.

  Raises ValueError for an unknown kind or domain, for bad input (naming file and line), and when
  nothing is left.
  """
  kinds = {"embedded": _read_embedded, "text": _read_text, "jsonl": _read_jsonl}
  if source.kind not in kinds:
    raise ValueError(f"source {source.name}: unknown kind {source.kind!r}; set it to one of "
                     f"{', '.join(kinds)}")
  wanted = {d.strip() for d in source.domains.split(",") if d.strip()}
  seen, found = set(), 0
  for document in kinds[source.kind](source, wanted):
    seen.add(document.domain)
    if document.text.strip() and (not wanted or document.domain in wanted):
      found += 1
      yield document
  known = seen | set(_EMBEDDED) if source.kind == "embedded" else seen
  if wanted - known:
    raise ValueError(f"source {source.name}: unknown domain {', '.join(sorted(wanted - known))}; "
                     f"it has {', '.join(sorted(known)) or 'none'}")
  if not found:
    raise ValueError(f"source {source.name} (kind {source.kind}, path {source.path!r}, domains "
                     f"{source.domains!r}) has no documents; correct its path or domains, or "
                     "remove it from data.sources")


def is_jsonl(path: Path) -> bool:
  """Whether a file's name is one of JSON lines, packed or not."""
  return _JSONL.search(files.stem(path)) is not None


def split_of(name: str, val_fraction: float) -> str:
  """'train' or 'validation', by a hash of the name: new documents move none to the other split."""
  if not 0 <= val_fraction < 1:
    raise ValueError(f"data.val_fraction {val_fraction} is not in [0, 1); 0.05 keeps one document "
                     "in twenty")
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return SPLITS[int.from_bytes(digest[:8], "big") < val_fraction * 2**64]


def _read_embedded(source: ConfigDict, wanted: set[str]) -> Iterator[Document]:
  # Reading the tests takes longer than all the rest: domains nobody wants are not read at all.
  if not wanted or "reference" in wanted:
    from pydoc_data.topics import topics  # 0.5 MB of literals: loaded only when asked for
    for name, text in sorted(topics.items()):
      yield Document(f"reference/{name}", text, "reference")
  if wanted == {"reference"}:
    return
  root = Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).parts
    if _SKIPPED_FOLDERS & set(parts) or _SKIPPED_FILES.fullmatch(path.name):
      continue
    domain = "tests" if _TEST_FOLDERS & set(parts[:-1]) else "library"
    if (not wanted or domain in wanted) and path.stat().st_size <= _LARGEST_SOURCE_FILE:
      yield Document(f"library/{'/'.join(parts)}", files.decode(path.read_bytes()), domain)


def _read_text(source: ConfigDict, wanted: set[str]) -> Iterator[Document]:
  """The domain is the folder below `path` that a file lies in; without one, `path`'s last part."""
  root, no_text = _existing(source), []
  for path in files.below(root):
    relative = path.relative_to(root.parent if root.is_file() else root)
    domain = relative.parts[0] if len(relative.parts) > 1 else root.stem
    text = files.text(path) if not wanted or domain in wanted else ""
    if "\0" in text and path != root:
      no_text.append(relative.as_posix())
      continue
    yield Document(relative.as_posix(), text, domain)
  _tell(source, no_text, "no text")


def _read_jsonl(source: ConfigDict, wanted: set[str]) -> Iterator[Document]:
  """The domain is the file's name up to its ending; the name is the relative path and the line."""
  root, others, empty = _existing(source), [], []
  for path in files.below(root):
    relative = path.relative_to(root.parent if root.is_file() else root).as_posix()
    if not is_jsonl(path) and path != root:
      others.append(relative)
      continue
    domain = re.sub(r"\.(jsonl?|ndjson)(\.\w+)?$", "", path.name, flags=re.IGNORECASE)
    if wanted and domain not in wanted:
      yield Document("", "", domain)  # so that an unknown domain's error can list it
      continue
    with files.unpacked(path) as lines:
      for number, line in enumerate(lines, 1):
        text = _field(line, source.field, f"{path}:{number}") if line.strip() else ""
        if text is None:
          empty.append(f"{relative}:{number}")
        elif line.strip():
          yield Document(f"{relative}:{number}", text, domain)
  _tell(source, others, "no JSON lines (.jsonl, .json, .ndjson; .gz, .bz2, .xz)")
  _tell(source, empty, f"null in field {source.field!r}")


def _tell(source: ConfigDict, names: list[str], why: str) -> None:
  if names:
    files.tell(f"source {source.name}: {len(names)} left out, {why}: {', '.join(names[:5])}"
               f"{' ...' if len(names) > 5 else ''}")


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


def _existing(source: ConfigDict) -> Path:
  path = Path(source.path).expanduser()
  if not source.path or not path.exists():
    raise ValueError(f"source {source.name}: path {source.path!r} does not exist; give a file or a "
                     "folder")
  return path
