"""Published data sets: from a folder of files, or from the Hugging Face hub by `datasets`.

    rows(Source("zeroshot/boolq_validation.jsonl", "google/boolq"), data_dir="data")
    rows(Source("zeroshot/boolq_validation.jsonl", "google/boolq"), data_dir=None)     # the hub's

A file may be packed (.gz, .bz2, .xz) and then has that ending, too. A row knows where it stands, so
that whoever cannot read it can say so: `Row.wrong`.
"""

from collections.abc import Iterator
import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.data import files


class Source(NamedTuple):
  """Where a data set is found.

  file: below --data_dir, JSON lines or .csv with a line of names; hub, name, split: as
  datasets.load_dataset takes them.
  """
  file: str
  hub: str
  name: str | None = None
  split: str = "validation"


class Row(NamedTuple):
  """One object of a data set, and where it stands: "piqa_valid.jsonl, line 3"."""
  where: str
  fields: dict[str, Any]

  def wrong(self, why: object) -> ValueError:
    """The error to raise for a row that is not as it should be."""
    return ValueError(f"{self.where}: {why}; its fields are {', '.join(self.fields)}")


def rows(source: Source, data_dir: str | None, named: bool = False) -> list[Row]:
  """All rows, in order. named: the hub's numbers of classes become their names.

  Raises FileNotFoundError that names the file to put where, ValueError that names the line of a
  file that is empty or malformed.
  """
  if data_dir is None:
    return _of_hub(source, named)
  path = find(source, data_dir)
  reader = _csv_rows if files.stem(path).endswith(".csv") else _json_rows
  found = list(reader(path, files.text(path)))
  if not found:
    raise ValueError(f"{path}, line 1: the file is empty; fetch it again")
  return found


def lines(source: Source, data_dir: str) -> list[str]:
  """Of a file that is no table: its lines, without what stands around them."""
  return [line.strip() for line in files.text(find(source, data_dir)).strip().split("\n")]


def document(source: Source, data_dir: str):
  """What a file of JSON holds. ValueError for a malformed one names the line."""
  path = find(source, data_dir)
  try:
    return json.loads(files.text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}, line {error.lineno}: {error.msg}; fetch it again") from None


def find(source: Source, data_dir: str) -> Path:
  """The file, packed or not. FileNotFoundError says which file is missing."""
  path = Path(data_dir) / source.file
  for ending in ("", *files.PACKED):
    if (own := path.with_name(path.name + ending)).is_file():
      return own
  raise FileNotFoundError(f"no {path}: put the {source.split} split of {_hub_name(source)} there, "
                          "or leave --data_dir out to fetch it from the hub")


def _hub_name(source: Source) -> str:
  return f"{source.hub} ({source.name})" if source.name else source.hub


def _json_rows(path: Path, text: str) -> Iterator[Row]:
  # not splitlines, which ends lines within JSON's texts
  for number, line in enumerate(text.split("\n"), 1):
    where = f"{path}, line {number}"
    if not line.strip():
      continue
    try:
      fields = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{where}: {error}; each line is one JSON object") from None
    if not isinstance(fields, dict):
      raise ValueError(f"{where}: {line[:40]!r} is no JSON object with names and values")
    yield Row(where, fields)


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
  try:
    for fields in reader:
      row = Row(f"{path}, line {reader.line_num}", fields)
      if None in fields or None in fields.values():
        raise ValueError(f"{row.where}: it has not as many values as line 1 has names")
      yield row
  except csv.Error as error:
    raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from None


def _of_hub(source: Source, named: bool) -> list[Row]:
  missing = (f"put the {source.split} split of {_hub_name(source)} into {source.file} below a "
             "folder and name the folder with --data_dir")
  try:
    import datasets
  except ImportError:
    raise FileNotFoundError(f"no --data_dir, and the hub needs pip install 'hope_jax[evals]': "
                            f"install it, or {missing}") from None
  try:
    found = datasets.load_dataset(source.hub, source.name, split=source.split)
  except (OSError, ValueError, RuntimeError) as error:
    raise FileNotFoundError(f"{_hub_name(source)} could not be had from the hub "
                            f"({' '.join(str(error).split())[:200]}): {missing}") from None
  classes = {name: own.int2str for name, own in found.features.items()
             if named and isinstance(own, datasets.ClassLabel)}
  return [Row(f"{_hub_name(source)}, {source.split} row {number}",
              fields | {name: called(fields[name]) for name, called in classes.items()})
          for number, fields in enumerate(found)]
