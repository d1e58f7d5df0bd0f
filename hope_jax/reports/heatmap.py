"""What is found in contexts, by their length and the depth of what is asked for: tables, picture.

A panel for each score and way to read (scoring/retrieval.py) and for the paired difference; colours
that people with colour-blindness tell apart (cividis, and PuOr around 0). Needs matplotlib
(hope_jax[plots]).
"""

from collections.abc import Callable, Sequence
import itertools
from pathlib import Path

import numpy as np

from hope_jax.reports import tables
from hope_jax.runtime.startup import say

NAMES = {"baseline": "baseline", "memorized": "memorized", "control": "control: no needle",
         "difference": "memorized - baseline"}


def report(result: dict, output: str | Path, picture: Callable | None = None) -> None:
  """Prints the tables of a result of niah, passkey or babi; pictures lie next to its file."""
  print(show(result))
  try:
    (picture or draw)(result).savefig(Path(output).with_suffix(".png"), dpi=120)
    draw_seconds(result).savefig(Path(output).with_suffix(".seconds.png"), dpi=120)
  except ImportError:
    say("no picture without matplotlib: pip install hope_jax[plots]")


def show(result: dict) -> str:
  """Scores by length of all kinds, then of each; what was written; how fast."""
  ways = [*result["ways"], *(["difference"] if "memorized" in result["ways"] else [])]
  def row(name, part, score):
    return [name, f"{part['length']:,}", part["samples"],
            *(tables.score(part[score][way]) if way in part[score] else "" for way in ways)]
  texts = []
  for score, title in (("found", "answers written"),
                       ("choice", f"choices (chance {result['chance']:.3f})")):
    rows = [row("all", part, score) for part in result["lengths"]]
    if len({part["kind"] for part in result["kinds"]}) > 1:
      rows += [row(part["kind"], part, score) for part in result["kinds"]]
    texts.append(tables.markdown([title, "tokens", "contexts",
                                  *(f"{NAMES[way]} (95 %)" for way in ways)], rows))
  reached = {name: ", ".join(f"{way} {length or 'none'}" for way, length in own.items())
             for name, own in result["effective_length"].items()}
  texts.append(tables.markdown([f"effective length, {result['threshold']:.0%} found", "tokens"],
                               [[name, text] for name, text in reached.items()]))
  texts.append(tables.memories(result["memories"], "context"))
  texts.append(tables.markdown(
      ["speed", "tokens", "tokens/s read", "seconds a question"],
      [[NAMES[own["way"]], f"{own['length']:,}", f"{own['tokens_per_second']:,.0f}",
        f"{own['seconds_per_question']:.3g}"] for own in result["speed"]]))
  leak = "LEAKS THE ANSWER: it was memorized before the question was asked\n"
  return "\n".join([leak] * result["leaks_the_answer"] + [text for text in texts if text])


def draw(result: dict, by: str = "depth", scores: Sequence[str] = ("found", "choice")):
  """The figure: length by depth (means over the kinds that have one), or by kind; a row a score."""
  from matplotlib.figure import Figure  # an extra: plots
  panels = [*result["ways"], *(["difference"] if "memorized" in result["ways"] else [])]
  figure = Figure(figsize=(1.5 + 3.2 * len(panels), 3.1 * len(scores)), layout="constrained")
  axes = figure.subplots(len(scores), len(panels), squeeze=False)
  for axis, (score, way) in zip(axes.flat, itertools.product(scores, panels)):
    lengths, rows, grid = table(result["cells" if by == "depth" else "kinds"], score, way, by)
    colours, least = ("PuOr", -1) if way == "difference" else ("cividis", 0)
    image = axis.imshow(grid, aspect="auto", cmap=colours, vmin=least, vmax=1)
    axis.set(title=f"{score}: {NAMES[way]}", xlabel="tokens", ylabel=by, xticks=range(len(lengths)),
             yticks=range(len(rows)))
    axis.set_xticklabels([f"{n:,}" for n in lengths], rotation=45, ha="right")
    axis.set_yticklabels([f"{row:.0%}" if by == "depth" else row for row in rows])
    for (line, column), value in np.ndenumerate(grid):
      if np.isfinite(value):
        dark = abs(value) > 0.6 if way == "difference" else value < 0.5
        axis.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize="small",
                  color="white" if dark else "black")
    figure.colorbar(image, ax=axis)
  return figure


def draw_seconds(result: dict):
  """The figure: seconds and processor seconds to read a context by its length; dotted: linear."""
  from matplotlib.figure import Figure  # an extra: plots
  figure = Figure(figsize=(8, 3.4), layout="constrained")
  left, right = figure.subplots(1, 2)
  for way, colour in (("baseline", "tab:gray"), ("memorized", "tab:blue")):
    own = [entry for entry in result["speed"] if entry["way"] == way]
    lengths = np.array([entry["length"] for entry in own])
    seconds = lengths / [entry["tokens_per_second"] for entry in own]
    for axis, each in ((left, seconds), (right, [entry["processor_seconds"] for entry in own])):
      if own:
        axis.loglog(lengths, each, "o-", label=NAMES[way], color=colour)
        axis.loglog(lengths, each[-1] * lengths / lengths[-1], ":", color=colour)
  for axis, unit in ((left, "seconds"), (right, "processor seconds")):
    axis.set(xlabel="tokens of a context", ylabel=f"{unit} to read it")
    axis.grid(alpha=0.3)
  left.legend()
  return figure


def table(cells: list[dict], score: str, way: str,
          by: str = "depth") -> tuple[list[int], list, np.ndarray]:
  """(lengths, depths or kinds, (those, lengths): means; not-a-number where there is none)."""
  cells = [cell for cell in cells if cell[by] is not None and way in cell[score]]
  lengths, rows = (sorted({cell[key] for cell in cells}) for key in ("length", by))
  values = [[[cell[score][way]["value"] for cell in cells
              if (cell["length"], cell[by]) == (length, row)] for length in lengths]
            for row in rows]
  return lengths, rows, np.array([[np.mean(own) if own else np.nan for own in row]
                                  for row in values]).reshape(len(rows), len(lengths))
