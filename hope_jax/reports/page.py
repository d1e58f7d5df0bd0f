"""Results of evaluations as one page that needs neither server nor network.

    page.write("report/")        # reads report/suite.json and the files that it names

Every table shows a part of a result's JSON: lists of entries and entries by name, their scores with
intervals. A cell says where its value stands (data-at), so that the page can be read back. Pictures
are inside the page. Needs jinja2 (hope_jax[evals]).
"""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import NamedTuple

from hope_jax.reports import document
from hope_jax.runtime import program
from hope_jax.scoring import programs

FILE = "suite.json"
APART = ("rows", "config", "machine", "versions", "device", "date", "command", "fingerprint",
         "tokenizer", "leaks_the_answer")


class Cell(NamedTuple):
  """at: keys from the top of the result, as JSON."""
  at: str
  text: str


class Table(NamedTuple):
  """A row begins with its name or number."""
  title: str
  head: list[str]
  rows: list[list[Cell]]


def is_score(value) -> bool:
  """A value with its interval (scoring/intervals.py)."""
  return isinstance(value, dict) and value.keys() == {"value", "low", "high"}


def shown(value) -> str:
  """A number, a score with its interval, or a text, as the page has it."""
  if is_score(value):
    between = "" if value["low"] is None else f" ({shown(value['low'])} to {shown(value['high'])})"
    return f"{shown(value['value'])}{between}"
  if value is None:
    return "none"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value)


def _leaves(value, at: tuple = ()) -> Iterator[tuple[tuple, object]]:
  """(keys, value) of what one cell shows: scores, numbers, texts, and lists of those as one."""
  if isinstance(value, dict) and not is_score(value):
    for key, own in value.items():
      yield from _leaves(own, (*at, key))
  elif isinstance(value, list) and any(isinstance(own, (dict, list)) for own in value):
    for i, own in enumerate(value):  # scores in a row, or a matrix of them
      if is_score(own) or isinstance(own, list):
        yield from _leaves(own, (*at, i))
  elif isinstance(value, list):
    yield at, ", ".join(map(shown, value))
  else:
    yield at, value


def _entries(value) -> list[tuple[str | int, dict]] | None:
  """(key, entry) of a list of entries or of entries by name; None for anything else."""
  items = (list(enumerate(value)) if isinstance(value, list) else list(value.items())
           if isinstance(value, dict) and not is_score(value) else [])
  if items and all(isinstance(own, dict) and not is_score(own) for _, own in items):
    return items
  return None


def _cell(value, *at) -> Cell:
  return Cell(json.dumps(at), shown(value))


def tables(result: dict) -> Iterator[Table]:
  """All but the rows of a result: settings in the first table, then one of each part."""
  alone = {name: value for name, value in result.items()
           if name not in APART and _entries(value) is None}
  yield Table("settings and scores", ["", ""], [
      [Cell("", " / ".join(map(str, at))), _cell(value, *at)]
      for at, value in _leaves(alone)])
  for name, value in result.items():
    if name in APART or (entries := _entries(value)) is None:
      continue
    leaves = {key: dict(_leaves(entry)) for key, entry in entries}
    columns = list(dict.fromkeys(at for own in leaves.values() for at in own))
    named = isinstance(value, dict)
    yield Table(name.replace("_", " "),
                [""] * named + [" / ".join(map(str, at)) for at in columns],
                [[Cell("", key)] * named
                 + [_cell(own[at], name, key, *at) if at in own else Cell("", "")
                    for at in columns] for key, own in leaves.items()])


def _summary(result: dict, path: str) -> str:
  """The scores at a path, each with its name."""
  return "; ".join(f"{name} {shown(own)}" for name, own in programs.headline(path, result).items())


def _pictures(file: Path) -> list[str]:
  """Those that lie next to a result's file: x.png and x.curve.png of x.json."""
  return [document.picture(path) for form in (".png", ".*.png")
          for path in sorted(file.parent.glob(file.stem + form))]


def render(folder: str | Path) -> str:
  """The page of what a suite has run so far. ImportError, saying what to install."""
  folder, parts = Path(folder), []
  suite = json.loads((folder / FILE).read_text())
  for run in suite["runs"]:
    part = dict(run, tables=[], pictures=[], result={}, summary=run["error"] or "")
    if not run["error"]:
      result = json.loads((folder / run["file"]).read_text())
      part |= {"tables": list(tables(result)), "result": result,
               "pictures": _pictures(folder / run["file"]),
               "summary": _summary(result, run["headline"]),
               "config": json.dumps(result.get("config", {}), indent=1)}
    parts.append(part)
  return document.template("page.html").render(suite=suite, parts=parts, shown=shown)


def write(folder: str | Path) -> Path:
  """index.html in the folder, whole or as it was."""
  path = Path(folder) / "index.html"
  program.replace(path, render(folder))
  return path
