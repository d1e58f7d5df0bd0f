"""Trains several configurations on the same batches, and says which is better, and by how much.

    python -m hope_jax.compare --budget=tokens:2e6 --seeds=3 --workdir=runs/compare \\
        --configs=configs/baselines.py:transformer,small,configs/baselines.py:hope_attention

The first is what the others are held against. A budget is of tokens, flops (of matrix products, as
a step runs) or seconds (of steps). Seed k of every model starts at its own parameters and reads the
same batches, so differences are paired; their 95 % intervals are over the seeds. Stopped or killed,
the same command goes on. --workers=N trains so many at once, each in a process that sees one of
the GPUs (CUDA_VISIBLE_DEVICES).

The workdir has a run's folder for every model and seed, results.json, results.md, and a picture
each against tokens, FLOPs and seconds (hope_jax[plots]).
"""

import ast
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import json
import os
from pathlib import Path
import queue
import subprocess
import sys
from typing import NamedTuple

from absl import app, flags
from ml_collections import ConfigDict
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.model import checks
from hope_jax.reports import comparison
from hope_jax.runtime import lock, program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import results
from hope_jax.training import budget, costs, loop

POINTS = 10  # evaluations of each run


class Run(NamedTuple):
  """One model at one seed."""
  name: str
  seed: int
  config: ConfigDict
  folder: Path


def named(texts: Sequence[str], settings: Sequence[str] = ()) -> dict[str, ConfigDict]:
  """{name: configuration} of FILE.py[:ARGUMENT]; ARGUMENT may hold commas, which split `texts`.

  Args:
    settings: section.field=value, for all of them.

  ValueError for two of one name, a field that is none, or data that are not the same.
  """
  whole = []
  for text in texts:
    if ".py" in text or not whole:
      whole.append(text)
    else:
      whole[-1] += f",{text}"
  found = {}
  for text in whole:
    file, _, argument = text.partition(":")
    name = argument or Path(file).stem
    if name in found:
      raise ValueError(f"two configurations are called {name}: name each once")
    try:
      found[name] = program.configuration(text).copy_and_resolve_references()
      found[name].update_from_flattened_dict(dict(map(_setting, settings)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{text}: {' '.join(str(error).split())}") from None
  _check_data(found)
  return found


def _setting(text: str) -> tuple[str, object]:
  field, _, value = text.partition("=")
  try:
    return field, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return field, value


def _check_data(found: dict[str, ConfigDict]) -> None:
  (first, one), *others = found.items()
  for name, other in others:
    for section, field in (*(("data", field) for field in one.data), ("model", "vocab"),
                           ("train", "eval_batches")):
      if one[section][field] != other[section][field]:
        raise ValueError(f"{first} and {name} are not trained on the same batches: {section}."
                         f"{field} is {one[section][field]} and {other[section][field]}; give "
                         f"both the same, e.g. with --override={section}.{field}=...")


def runs(found: dict[str, ConfigDict], steps: dict[str, int], seeds: int, workdir: Path
         ) -> list[Run]:
  """Seed after seed, of all models, so that what is there at any time can be compared."""
  out = []
  for seed in range(seeds):
    for name, config in found.items():
      c = config.copy_and_resolve_references()
      c.seed = c.data.seed = seed
      c.train.steps = steps[name]
      c.train.eval_every = c.train.save_every = max(1, steps[name] // POINTS)
      c.train.log_every = max(1, steps[name] // (10 * POINTS))
      out.append(Run(name, seed, c, workdir / name.replace(",", "-").replace("/", "-")
                     / f"seed{seed}"))
  return out


def planned(found: dict[str, ConfigDict], text: str, workdir: Path) -> dict[str, int]:
  """{name: steps}, as first planned in this workdir: seconds are measured once.

  ValueError where the workdir is of another comparison.
  """
  path, plan = workdir / "plan.json", {"budget": text, "configs": {
      name: json.loads(configs.to_json(config)) for name, config in found.items()}}
  kept = json.loads(path.read_text()) if path.exists() else {"steps": {}, **plan}
  before = json.dumps(kept) if path.exists() else ""
  known = [name for name in plan["configs"] if name in kept["configs"]]
  if kept["budget"] != text or any(kept["configs"][name] != plan["configs"][name]
                                   for name in known):
    raise ValueError(f"{workdir} is of another budget or of other configurations of these names: "
                     "choose another --workdir")
  for name, config in found.items():
    if name not in kept["steps"]:
      kept["steps"][name] = budget.steps(budget.parse(text), config)
  kept["configs"] |= plan["configs"]
  if json.dumps(kept) != before:  # workers write nothing
    program.replace(path, json.dumps(kept, indent=1))
  return kept["steps"]


def check_done(todo: Sequence[Run]) -> None:
  """ValueError for a run that is there and was trained with other settings."""
  for run in todo:
    path = run.folder / "config.json"
    if (run.folder / comparison.COSTS).exists() and (
        configs.from_json(path.read_text()).to_dict() != run.config.to_dict()):
      raise ValueError(f"{run.folder} was trained with other settings: choose another --workdir, "
                       "or delete it")


def train(run: Run) -> None:
  """One run to its end, and what it cost beside it, once."""
  if (run.folder / comparison.COSTS).exists():
    return
  if "loss" not in loop.train(run.config, run.folder):
    raise ValueError(f"{run.folder}: its last evaluation failed, see above")
  total, rest = costs.parameters(run.config)
  compiled, _ = costs.compile_program(*costs.train_program(run.config))
  program.replace(run.folder / comparison.COSTS, json.dumps(
      {"parameters": total, "without_embedding": rest, "tokens": budget.tokens(run.config),
       "flops": costs.training_flops(run.config) * budget.tokens(run.config),
       "bytes": costs.memory(compiled)["peak"]}))


def train_all(todo: list[Run], workers: int) -> None:
  """All runs, one after the other or so many at once; one that fails is said, and left out."""
  if workers == 1:
    for number, run in enumerate(todo, 1):
      say(f"run {number} of {len(todo)}: {run.name}, seed {run.seed}")
      try:
        train(run)
      except (FloatingPointError, ValueError, RuntimeError) as error:
        say(f"{run.name}, seed {run.seed}, failed: {error}")
    return
  places, given = queue.SimpleQueue(), os.environ.get("CUDA_VISIBLE_DEVICES")
  for place in (given.split(",") if given else map(str, range(workers))):
    places.put(place)

  def apart(run: Run) -> None:
    place = places.get()
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "log.txt", "a") as log:
      end = subprocess.run([sys.executable, "-m", "hope_jax.compare", *sys.argv[1:],
                            f"--only={run.name}:{run.seed}"], stdout=log, stderr=log,
                           env=os.environ | {"CUDA_VISIBLE_DEVICES": place})
    places.put(place)
    if end.returncode:
      tqdm.write(f"{run.name}, seed {run.seed}, failed: see {run.folder / 'log.txt'}",
                 file=sys.stderr)
    bar.update()

  with tqdm(total=len(todo), unit="run") as bar, ThreadPoolExecutor(workers) as pool:
    list(pool.map(apart, todo))


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("configs", None, "Configurations, FILE.py[:ARGUMENT]; the first is what the "
                    "others are held against.", required=True, flag_values=values)
  flags.DEFINE_string("budget", None, "tokens:N, flops:N or seconds:N, of each run.",
                      required=True, flag_values=values)
  flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=values)
  flags.DEFINE_multi_string("override", [], "section.field=value, in all of them.",
                            flag_values=values)
  flags.DEFINE_integer("workers", 1, "Runs at once, each in a process that sees one GPU.",
                       lower_bound=1, flag_values=values)
  flags.DEFINE_string("only", None, "NAME:SEED: this run alone, as --workers has it done.",
                      flag_values=values)
  program.define_path("workdir", "Folder of the comparison.", required=True, flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, RuntimeError):
    budget.parse(f.budget)
    found, workdir = named(f.configs, f.override), Path(f.workdir)
    one = next(iter(found.values()))
    startup.prepare(one.data.batch // one.optim.accumulate, **one.mesh)
    for name, config in found.items():
      checks.validate(config)
    if f.only is not None:
      todo = runs(found, planned(found, f.budget, workdir), f.seeds, workdir)
      return train(next(run for run in todo if f"{run.name}:{run.seed}" == f.only))
    with lock.held(workdir / ".lock", "another --workdir"):
      todo = runs(found, planned(found, f.budget, workdir), f.seeds, workdir)
      train_all(todo, f.workers)
      done = [run for run in todo if (run.folder / comparison.COSTS).exists()]
      result = comparison.result([(run.name, run.seed, run.folder) for run in done], [*found])
      results.write(workdir / "results.json", results.stamp("-m", "hope_jax.compare"),
                    results.machine(), {"budget": f.budget, "seeds": f.seeds}, result)
      program.replace(workdir / "results.md", comparison.table(result))
      print(comparison.table(result))
      comparison.draw(result, workdir)
    if missing := [f"{run.name} seed {run.seed}" for run in todo if run not in done]:
      raise RuntimeError(f"without {', '.join(missing)}: see above; the same command tries again")


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
