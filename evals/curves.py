"""Curves of one or several runs, as a picture and a table, from their metrics.jsonl.

    python evals/curves.py --runs=runs/a,runs/b --key=validation/accuracy --output=docs/recall.png

The table (every --every-th point) goes to stdout. Needs matplotlib: pip install 'hope_jax[plots]'.
"""

import json
from pathlib import Path

from absl import flags
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.runtime import program

FLAGS = flags.FLAGS


def read(run: str, key: str) -> dict[int, float]:
  """step -> value. ValueError, listing what there is, for a run without that number."""
  path, rows = Path(program.path(run)) / "metrics.jsonl", []
  for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
    try:
      if line.endswith("\n"):  # not one that is being written, or was when the run was killed
        rows.append(json.loads(line))
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: {error}") from None
  found = {row["step"]: row[key] for row in rows if key in row}
  if not found:
    known = sorted({name for row in rows for name in row} - {"step", "time"})
    raise ValueError(f"{run} has no {key}; it has {', '.join(known)}")
  return found


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("runs", None, "Workdirs.", required=True, flag_values=values)
  flags.DEFINE_string("key", "validation/accuracy", "Which number.", flag_values=values)
  program.define_path("output", "Picture to write.", required=True, flag_values=values)
  flags.DEFINE_integer("every", 1, "Points between rows of the table.", lower_bound=1,
                       flag_values=values)


def main(_):
  with program.one_line(ValueError, OSError):
    output = program.ready(FLAGS.output)
    curves = {Path(run).name: read(run, FLAGS.key) for run in FLAGS.runs}
  figure, axes = plt.subplots(figsize=(6, 3.5))
  for name, curve in curves.items():
    axes.plot(list(curve), list(curve.values()), marker=".", label=name)
  axes.set(xlabel="step", ylabel=FLAGS.key)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.tight_layout()
  figure.savefig(output, dpi=120)

  steps = sorted(set().union(*curves.values()))
  shown = [s for i, s in enumerate(steps) if i % FLAGS.every == 0 or s == steps[-1]]
  print("| step | " + " | ".join(curves) + " |\n|---:|" + "---:|" * len(curves))
  for step in shown:
    print(f"| {step} | "
          + " | ".join(f"{c[step]:.4f}" if step in c else "" for c in curves.values()) + " |")


if __name__ == "__main__":
  program.start(main, define_flags)
