"""Is a saved step what was written? The sidecar that each step carries.

The sidecar, integrity.json, lies in the step's folder:

    files     {name: {"bytes", "sha256"}} of every other file in the folder
    sha256    of all else in the sidecar
    and the facts that checkpoint.py adds: step, metric; digests of the code, configuration,
      tokenizer and random key

It is written last, before the folder gets its name: a step without it is not whole.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
import hashlib
import itertools
import json
import os
from pathlib import Path
import shutil

SIDECAR = "integrity.json"
MANIFEST = "MANIFEST.json"  # of a release, which is sealed as a step is
PACKAGE = Path(__file__).resolve().parents[1]
THREADS = 8  # files hashed at once; hashing and reading run without the interpreter's lock


def steps(directory: str | Path) -> list[int]:
  """The steps in a directory, ascending; empty when there is no such directory."""
  directory = Path(directory)
  names = os.listdir(directory) if directory.is_dir() else []
  return sorted(int(n) for n in names if n.isdecimal() and (directory / n).is_dir())


def seal(folder: str | Path, facts: dict, name: str = SIDECAR) -> None:
  """Hashes a step's files, sees that the disk has them, writes the sidecar and sees it on disk."""
  folder = Path(folder)
  files = _names(folder)
  with ThreadPoolExecutor(THREADS) as pool:
    records = pool.map(lambda file: _written(folder / file), files)
    record = facts | {"files": dict(zip(files, records))}
  (folder / name).write_text(_text(record))
  sync(folder / name)
  for inner in {(folder / file).parent for file in files} | {folder}:
    sync(inner)


def sync(path: str | Path) -> None:
  """Returns when the disk has a file's bytes, or a folder's names."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def copy(source: str | Path, target: str | Path) -> None:
  """Copies a file; the target is whole or as it was."""
  partial = f"{target}.partial"
  shutil.copy(source, partial)
  os.replace(partial, target)


def read(folder: str | Path, name: str = SIDECAR) -> dict:
  """The sidecar of a step. Raises ValueError when it is missing or damaged."""
  try:
    data = (Path(folder) / name).read_bytes()
  except FileNotFoundError:
    raise ValueError(f"{name}: is missing: the step was copied in part, or saved by a version "
                     "without it") from None
  except OSError as error:
    raise ValueError(f"{name}: cannot be read: {error.strerror}") from None
  try:
    record = json.loads(data)
    del record["sha256"]
    intact = _text(record).encode() == data
  except (ValueError, KeyError, TypeError):
    intact = False
  if not intact:
    raise ValueError(f"{name}: differs from what was written")
  return record


def check(folder: str | Path, parts: Collection[str] | None = None,
          name: str = SIDECAR) -> list[str]:
  """What is wrong with a step, as "file: what", relative to its folder; nothing: it is as written.

  parts: look only into these subfolders, and at the files beside them; None: all. Reads every byte
  of what it looks at. Files that were not written with the step are no fault: `strays`.
  """
  folder = Path(folder)
  try:
    files = read(folder, name)["files"]
  except ValueError as error:
    return [str(error)]
  own = sorted(file for file in files
               if parts is None or "/" not in file or file.split("/")[0] in parts)
  with ThreadPoolExecutor(THREADS) as pool:
    found = pool.map(lambda file: _fault(folder / file, files[file]), own)
    return [f"{file}: {fault}" for file, fault in zip(own, found) if fault]


def strays(folder: str | Path) -> list[str]:
  """Files in a good step that others have put there (.DS_Store, Thumbs.db): nothing reads them."""
  return sorted(set(_names(Path(folder))) - read(folder)["files"].keys() - {SIDECAR})


def rate(folder: str | Path, metric: float) -> None:
  """Writes a step's validation loss into its sidecar, which is whole at any moment."""
  new = Path(f"{folder}.partial-rated")  # swept away with other leftovers
  new.write_text(_text(read(folder) | {"metric": metric}))
  sync(new)
  os.replace(new, Path(folder) / SIDECAR)


def newest_good(directory: Path,
                parts: Collection[str] | None = None) -> tuple[int, dict[int, list[str]]]:
  """(the newest good step, {later step: its faults}). ValueError when none is good."""
  damaged = {}
  for step in reversed(steps(directory)):
    faults = check(directory / str(step), parts)
    if not faults:
      return step, damaged
    damaged[step] = faults
  raise ValueError(f"no step in {directory} is good: "
                   + "; ".join(f"step {n}: {brief(f)}" for n, f in damaged.items())
                   + "; bring one back from a copy or choose another folder")


def brief(faults: list[str]) -> str:
  """What `check` found, in part of a line."""
  return faults[0] + (f", and {len(faults) - 1} more" if len(faults) > 1 else "")


def set_aside(path: Path) -> Path:
  """Renames a damaged step to <step>.damaged (or -1, -2 and so on); returns where it is now."""
  names = (path.with_name(f"{path.name}.damaged{'-' + str(n) if n else ''}")
           for n in itertools.count())
  free = next(name for name in names if not name.exists())
  os.rename(path, free)
  return free


def metric(path: Path) -> float | None:
  """Validation loss of a step; None where it is not known."""
  try:
    return read(path).get("metric")
  except ValueError:
    return None


def sha256(path: str | Path) -> str:
  """Of a file, in hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def code_version() -> str:
  """SHA-256 over the names and texts of this package's sources, configs/ and evals/ left out."""
  digest = hashlib.sha256()
  for path in sorted(PACKAGE.rglob("*.py")):
    name = path.relative_to(PACKAGE).as_posix()
    if not name.startswith(("configs/", "evals/")):  # links in the repository, folders in a wheel
      digest.update(f"{name} {sha256(path)}\n".encode())
  return digest.hexdigest()


def _names(folder: Path) -> list[str]:
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                if not path.is_dir())


def _written(path: Path) -> dict:
  sync(path)
  return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _text(record: dict) -> str:
  def dump(value):
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
  return dump(record | {"sha256": hashlib.sha256(dump(record).encode()).hexdigest()})


def _fault(path: Path, record: dict) -> str:
  try:
    size = path.stat().st_size
    if size != record["bytes"]:
      how = "is truncated" if size < record["bytes"] else "has grown"
      return f"{how}: {size:,} of {record['bytes']:,} bytes"
    return "" if sha256(path) == record["sha256"] else "differs from what was written"
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"cannot be read: {error.strerror}"
