"""Documents and where they come from: text every Python carries, text files, JSON lines, parquet.

A source is data, `ConfigDict(name, kind, path, field, domains, weight)`, one entry of
`config.data.sources`:

    embedded  pydoc's reference topics, the standard library's sources and its tests: no download
    text      a text file, or every file of a folder: one document a file
    jsonl     a JSON lines file (.jsonl, .json, .ndjson, plain or packed), or every such file of a
              folder: one document a line, its text in `field`
    parquet   a parquet file, or every such file of a folder: one document a row, in column `field`
    mixed     every file of a folder, each by its name's ending: as jsonl, as parquet or as text
    prepared  the documents of a source that a recipe has made (pipeline/recipe.py)

A path may be an address that fsspec opens: hf://datasets/OWNER/NAME/FOLDER reads files of the
Hugging Face hub as they come, without a copy of them on disk.

Documents come in the same order on every read. What bytes mean: files.py; how a file is read:
units.py. What is left out (files that are no text, or of another kind; lines without a text) is
said.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
import re
import sysconfig

from ml_collections import ConfigDict

from hope_jax.data import files, units
from hope_jax.data.units import Document, LeftOut, Unit  # noqa: F401

SPLITS = ("train", "validation")
KINDS = ("embedded", "text", "jsonl", "parquet", "mixed", "prepared")
_EMBEDDED = ("reference", "library", "tests")
_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Third-party code, tables, and files written for one machine: not the language's own text.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings"}
# the topics are the reference domain already
_SKIPPED_FILES = re.compile(r"_sysconfigdata.*|topics\.py")
_LARGEST_SOURCE_FILE = 500_000  # bytes; what is larger was generated
_OTHER = {"jsonl": "no JSON lines (.jsonl, .json, .ndjson; .gz, .bz2, .xz, .zst)",
          "parquet": "no parquet (.parquet, .pq)"}


def read(source: ConfigDict) -> Iterator[Document]:
  """The source's documents that hold more than white space, of the domains it selects.

  Raises ValueError for an unknown kind or domain, for bad input (naming file and line), and when
  nothing is left.
  """
  found, left_out = 0, {}
  for item in items(source, select(source)):
    if isinstance(item, LeftOut):
      left_out.setdefault(item.why, []).append(item.name)
      continue
    found += 1
    yield item
  left_out.pop("blank", None)
  for why, names in left_out.items():
    files.tell(f"source {source.name}: {len(names)} left out, {why}: {', '.join(names[:5])}"
               f"{' ...' if len(names) > 5 else ''}")
  if not found:
    raise ValueError(f"source {source.name} (kind {source.kind}, path {source.path!r}, domains "
                     f"{source.domains!r}) has no documents; correct its path or domains, or "
                     "remove it from data.sources")


def items(source: ConfigDict, some: list[Unit]) -> Iterator[Document | LeftOut]:
  """What is in these of a source's files, in order."""
  wanted = _wanted(source) if source.kind == "prepared" else ()
  for unit in some:
    if wanted:  # a file has documents of many domains
      yield from (item for item in units.documents(unit, source.field) if item.domain in wanted)
    elif unit.kind == "other":
      yield LeftOut(unit.name, _OTHER[source.kind], unit.domain)
    else:
      yield from units.documents(unit, source.field)


def select(source: ConfigDict) -> list[Unit]:
  """The source's files, in order, of the domains that it selects; ValueError for an unknown one."""
  if source.kind not in KINDS:
    raise ValueError(f"source {source.name}: unknown kind {source.kind!r}; set it to one of "
                     f"{', '.join(KINDS)}")
  every = _embedded() if source.kind == "embedded" else _below(source)
  wanted = _wanted(source) if source.kind != "prepared" else set()
  known = {unit.domain for unit in every if unit.kind != "other"}
  if wanted - known:
    raise ValueError(f"source {source.name}: unknown domain {', '.join(sorted(wanted - known))}; "
                     f"it has {', '.join(sorted(known)) or 'none'}")
  return [unit for unit in every if not wanted or unit.domain in wanted or unit.kind == "other"]


def _wanted(source: ConfigDict) -> set[str]:
  return {d.strip() for d in source.domains.split(",") if d.strip()}


def is_jsonl(path: Path) -> bool:
  """Whether a file's name is one of JSON lines, packed or not."""
  return units.kind_of(path) == "jsonl"


def split_of(name: str, val_fraction: float) -> str:
  """'train' or 'validation', by a hash of the name: new documents move none to the other split."""
  if not 0 <= val_fraction < 1:
    raise ValueError(f"data.val_fraction {val_fraction} is not in [0, 1); 0.05 keeps one document "
                     "in twenty")
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return SPLITS[int.from_bytes(digest[:8], "big") < val_fraction * 2**64]


def _embedded() -> list[Unit]:
  import pydoc_data
  topics = Path(pydoc_data.__path__[0]) / "topics.py"
  found = [Unit(str(topics), "reference", "reference", "topics", topics.stat().st_size)]
  root = Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).parts
    if _SKIPPED_FOLDERS & set(parts) or _SKIPPED_FILES.fullmatch(path.name):
      continue
    domain = "tests" if _TEST_FOLDERS & set(parts[:-1]) else "library"
    if (size := path.stat().st_size) <= _LARGEST_SOURCE_FILE:
      found.append(Unit(str(path), f"library/{'/'.join(parts)}", domain, "text", size, sole=True))
  return found


def _below(source: ConfigDict) -> list[Unit]:
  """The domain of a text file is the folder below `path` that it lies in; without one, `path`'s
  last part. That of others is the file's name up to its ending.
  """
  root, every = _listed(source)
  found = []
  for path, address, size in every:
    relative = path.relative_to(root.parent if path == root else root)
    kind = units.kind_of(path)
    if source.kind == "prepared":
      kind = "prepared"
    elif source.kind != "mixed":
      kind = source.kind if path == root or source.kind in (kind, "text") else "other"
    domain = relative.parts[0] if len(relative.parts) > 1 else root.stem
    if kind != "text":
      domain = re.sub(r"\.(jsonl?|ndjson|parquet|pq)(\.\w+)?$", "", path.name, flags=re.IGNORECASE)
    found.append(Unit(address, relative.as_posix(), domain, kind, size, sole=path == root))
  return found


def _listed(source: ConfigDict) -> tuple[Path, list[tuple[Path, str, int]]]:
  """(root, [(path, what opens it, bytes)]) of all files below a source's path or address."""
  if files.is_url(source.path):
    root, found = files.listed(source.path)
    scheme = source.path.split("://")[0]
    return Path(root), [(Path(name), f"{scheme}://{name}", size) for name, size in found]
  root = _existing(source)
  return root, [(path, str(path), path.stat().st_size) for path in files.below(root)]


def _existing(source: ConfigDict) -> Path:
  path = Path(source.path).expanduser()
  if not source.path or not path.exists():
    raise ValueError(f"source {source.name}: path {source.path!r} does not exist; give a file or a "
                     "folder")
  return path
