"""Pages of runs: one, several beside each other, or a checkpoint. Runs may still be training.

Everything is read from a run's metrics.jsonl, goodput.json, config.json and sidecars.
"""

from collections.abc import Sequence
import datetime
import json
from pathlib import Path

from hope_jax.checkpoints import sidecar
from hope_jax.reports import document
from hope_jax.reports.document import COLOURS, Section
from hope_jax.runtime.goodput import KINDS

CURVES = (  # title, names of numbers; those that a run has are drawn
    ("loss, nats per token", ("train/loss", "validation/loss")),
    ("bits per byte", ("train/bpb", "validation/bpb")),
    ("accuracy", ("validation/accuracy",)), ("gradient norm", ("train/grad_norm",)),
    ("learning rate", ("train/lr",)), ("tokens per second", ("train/tokens_per_s",)))


def read(folder: Path) -> list[dict]:
  """The whole lines of a run's metrics. FileNotFoundError for a folder that is none."""
  path = folder / "metrics.jsonl"
  if not path.exists():
    raise FileNotFoundError(f"no {path}: name the folder of a run")
  rows = []
  for line in path.read_text(errors="replace").splitlines(keepends=True):
    try:
      rows += [json.loads(line)] if line.endswith("\n") else []
    except ValueError:  # training says so when it goes on
      continue
  return rows


def series(rows: list[dict], name: str) -> tuple[list, list]:
  """(steps, values) of a number."""
  found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
  return tuple(map(list, zip(*found))) if found else ([], [])


def by_memory(rows: list[dict], what: str) -> dict[str, tuple[list, list]]:
  """{memory or level: (steps, mean over layers)} of a statistic, moved or open."""
  found = {}
  for row in rows:
    own = {}
    for name, value in row.items():
      kind, *rest = name.split("/")
      if kind == "memory" and rest[1] == what:
        own.setdefault("/".join(rest[2:]), []).append(value)
    for name, values in own.items():
      steps, means = found.setdefault(name, ([], []))
      steps.append(row["step"])
      means.append(sum(values) / len(values))
  return found


def _figure(title: str, lines: dict[str, tuple[list, list]], log: bool = False) -> str:
  from matplotlib.figure import Figure  # an extra: plots
  figure = Figure(figsize=(7.5, 3.2), layout="constrained")
  axes = figure.subplots()
  for (name, (steps, values)), colour in zip(lines.items(), COLOURS * 9):
    axes.plot(steps, values, label=name, color=colour, marker="." if len(steps) < 20 else "")
  axes.set(xlabel="step", ylabel=title, yscale="log" if log and all(
      value > 0 for _, values in lines.values() for value in values) else "linear")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  return document.drawn(figure)


def curves(runs: dict[str, list[dict]]) -> list[Section]:
  """A picture of each number that any of the runs has."""
  out = []
  for title, names in CURVES:
    lines = {}
    for run, rows in runs.items():
      for name in names:
        own = series(rows, name)
        if own[0]:
          lines[f"{run} {name}" if len(runs) > 1 else name] = own
    if lines:
      out.append(Section(title, pictures=[_figure(title, lines)]))
  return out


def memories(rows: list[dict]) -> list[Section]:
  """How far each memory and level moved, and which gates were open, over time."""
  out = []
  for title, lines in (
      ("||dW|| of a step's writes, mean over layers", by_memory(rows, "moved")),
      ("chunks let through", by_memory(rows, "open")),
      ("||step|| of the outer optimizer", {
          name.partition("/")[2]: series(rows, name)
          for name in dict.fromkeys(name for row in rows for name in row
                                    if name.startswith("update/"))})):
    if lines:
      out.append(Section(title, pictures=[_figure(title, lines, log=True)]))
  return out


def where_time_went(folder: Path) -> list[Section]:
  """Of goodput.json."""
  path = folder / "goodput.json"
  if not path.exists():
    return []
  seconds = json.loads(path.read_text())["seconds"]
  total = max(sum(seconds.values()), 1e-9)
  return [Section("where the time went", head=["", "share", "time"], rows=[
      [kind, f"{100 * seconds.get(kind, 0) / total:.1f} %",
       datetime.timedelta(seconds=round(seconds.get(kind, 0)))] for kind in KINDS])]


def last(rows: list[dict]) -> dict[str, float]:
  """The newest value of every number of training and validation."""
  return {name: value for row in rows for name, value in row.items()
          if name.split("/")[0] in ("train", "validation") and value is not None}


def of_run(folder: Path) -> list[Section]:
  """The page of a run."""
  rows = read(folder)
  numbers = last(rows)
  config = folder / "config.json"
  return [Section(f"step {rows[-1]['step']:,}" if rows else "nothing yet",
                  head=["number", "newest value"],
                  rows=[[name, f"{value:.6g}"] for name, value in sorted(numbers.items())]),
          *curves({folder.name: rows}), *memories(rows), *where_time_went(folder),
          Section("configuration", code=json.dumps(json.loads(config.read_text()), indent=1)
                  if config.exists() else "")]


def of_runs(folders: Sequence[Path]) -> list[Section]:
  """Several runs beside each other."""
  names = [folder.name for folder in folders]
  if len({*names}) < len(names):
    names = [str(folder) for folder in folders]
  runs = {name: read(folder) for name, folder in zip(names, folders)}
  newest = {name: last(rows) for name, rows in runs.items()}
  known = sorted({number for own in newest.values() for number in own})
  return [Section("newest values", head=["number", *runs], rows=[
      [number, *(f"{own[number]:.6g}" if number in own else "" for own in newest.values())]
      for number in known]), *curves(runs)]


def of_checkpoint(folder: Path) -> list[Section]:
  """What the steps of a run are, where they come from, and whether they are what was written."""
  steps = sidecar.steps(folder / "checkpoints")
  if not steps:
    raise FileNotFoundError(f"no checkpoint in {folder}: name the folder of a run")
  rows, facts = [], {}
  for step in steps:
    path = folder / "checkpoints" / str(step)
    faults = sidecar.check(path)
    facts = facts if faults else sidecar.read(path)
    metric = sidecar.metric(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    rows.append([step, f"{size / 1e6:,.1f}", "" if metric is None else f"{metric:.4f}",
                 sidecar.brief(faults) if faults else "as written"])
  about = [[name, value] for name, value in facts.items()
           if name != "files" and isinstance(value, (str, int, float))]
  config = folder / "config.json"
  return [Section("steps", head=["step", "MB", "validation loss", "files"], rows=rows),
          Section("the newest good one", head=["", ""], rows=about),
          Section("configuration", code=json.dumps(json.loads(config.read_text()), indent=1)
                  if config.exists() else "")]
