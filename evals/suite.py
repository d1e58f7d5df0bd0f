"""Evaluations of one checkpoint or several, all that fit or those named: one folder with one page.

    python evals/suite.py --checkpoints=runs/smoke --output=report/ --quick
    python evals/suite.py --checkpoints=runs/a,runs/b --output=report/ --data_dir=data
    python evals/suite.py --checkpoints=runs/a --output=report/ --evaluations=niah,passkey

The folder gets the JSON and the picture of each evaluation, suite.json, which lists them, and
index.html, which opens without server or network (hope_jax[evals]). Models that write while they
read are scored with --memorize, too (--nomemorize: they are not).

Not among them: continual.py, which wants its segments named, synthetic.py, which trains models of
its own, and harness.py, which has options of its own.

The page is written after each evaluation. The same command goes on where it was cut: what is there
is not scored again, unless its settings or the checkpoint's step have changed. An evaluation that
fails is said, stands in the page, and the others go on; the exit status is then 1.
"""

import functools
import json
from pathlib import Path
import sys
import time

from absl import app, flags
import jax

from hope_jax import config as configs
from hope_jax.checkpoints import stored
from hope_jax.model import plan as plans
from hope_jax.reading import opening
from hope_jax.reports import document, page
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import programs, results


def define_flags(values: flags.FlagValues) -> None:
  string, several, yes = (functools.partial(define, flag_values=values) for define in (
      flags.DEFINE_string, flags.DEFINE_list, flags.DEFINE_bool))
  several("checkpoints", None, "Folders of runs.", required=True)
  program.define_path("output", "Folder of the results and the page.", flag_values=values,
                      required=True)
  several("evaluations", None, f"Of {', '.join(programs.PROGRAMS)}. Default: all that fit.")
  program.define_path("data_dir", "Folder of data that some evaluations need.", flag_values=values)
  yes("quick", False, "Few and short samples: does everything run?")
  yes("memorize", True, "Models that write while they read are scored with what they memorized, "
                        "too.")
  string("seed", "0", "Of all evaluations.")


def chosen(f: flags.FlagValues) -> list[str]:
  """Names of evaluations. ValueError for one that is not known."""
  names = f.evaluations or list(programs.PROGRAMS)
  if unknown := [name for name in names if name not in programs.PROGRAMS]:
    raise ValueError(f"--evaluations={unknown[0]}: choose of {', '.join(programs.PROGRAMS)}")
  return names


def arguments(name: str, f: flags.FlagValues, writes: bool) -> list[str] | None:
  """Of one evaluation, beside checkpoint and output; None, and why is said, if it does not fit."""
  own = programs.PROGRAMS[name]
  why = ("the model writes nothing while it reads" if own.writes and not writes else
         "it needs --data_dir" if own.data and f.data_dir is None else "")
  if why and not f.evaluations:
    say(f"{name} is left out: {why}")
    return None
  return [f"--seed={f.seed}", *(own.quick if f.quick else own.full),
          *([f"--data_dir={f.data_dir}"] if own.data and f.data_dir else []),
          *(["--memorize"] if own.memorize and writes and f.memorize else [])]


def names_of(checkpoints: list[str]) -> list[str]:
  """A folder for each: the last part of its path, numbered where two are the same."""
  lasts = [Path(checkpoint).absolute().name for checkpoint in checkpoints]
  return [last if lasts.count(last) == 1 else f"{i + 1}_{last}" for i, last in enumerate(lasts)]


def planned(f: flags.FlagValues) -> list[dict]:
  """What is to be run: rows of suite.json."""
  rows = []
  for checkpoint, name in zip(f.checkpoints, names_of(f.checkpoints)):
    workdir, step = opening.find(program.path(checkpoint))
    path = stored.good(workdir / "checkpoints", step, ("params", "meta"))
    config = configs.from_json(stored.read_meta(path.parent, int(path.name))["config"])
    for evaluation in chosen(f):
      argv = arguments(evaluation, f, bool(plans.of(config).enabled))
      if argv is not None:
        own = programs.PROGRAMS[evaluation]
        rows.append({"checkpoint": checkpoint, "name": name, "evaluation": evaluation,
                     "about": own.about, "step": int(path.name), "headline": own.headline,
                     "argv": [f"--checkpoint={path}", *argv], "file": f"{name}/{evaluation}.json"})
  return rows


def known(folder: Path) -> dict[str, dict]:
  """{file: row} of what earlier calls have run."""
  path = folder / page.FILE
  rows = json.loads(path.read_text())["runs"] if path.exists() else []
  return {row["file"]: row for row in rows}


def is_done(row: dict, before: dict | None, folder: Path) -> bool:
  """Whether it was run with these settings and ended well."""
  same = before is not None and all(before[name] == row[name] for name in row)
  return same and not before["error"] and (folder / row["file"]).exists()


def run(row: dict, folder: Path) -> dict:
  """The row with its seconds, and what went wrong."""
  output, began = folder / row["file"], time.perf_counter()
  try:
    programs.call(row["evaluation"], [*row["argv"], f"--output={output}"])
    error = None
  except RuntimeError as problem:  # jax's own, too: out of memory
    error = str(problem)
    say(f"{row['evaluation']} of {row['checkpoint']} failed: {error}")
  jax.clear_caches()
  return row | {"seconds": round(time.perf_counter() - began, 1), "error": error}


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--checkpoints=runs/a,runs/b")
  with program.one_line(ValueError, OSError, ImportError):
    document.check()
    startup.prepare()
    folder = Path(f.output)
    results.ready(folder / page.FILE)
    rows, plan = known(folder), planned(f)
    head = results.stamp("evals/suite.py") | {"quick": f.quick}
    for row in plan:
      done = is_done(row, rows.get(row["file"]), folder)
      say(f"{row['evaluation']} of {row['checkpoint']}{': is there' if done else ''}")
      if not done:
        rows[row["file"]] = run(row, folder)
      results.write(folder / page.FILE, head, {"runs": list(rows.values())})
      page.write(folder)
  print(folder / "index.html")
  if failed := [row["evaluation"] for row in plan if rows[row["file"]]["error"]]:
    sys.exit(f"{len(failed)} of {len(plan)} evaluations failed: {', '.join(failed)}")


if __name__ == "__main__":
  program.start(main, define_flags)
