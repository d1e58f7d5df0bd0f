"""Trains the ablations of configs/ablations.py that are missing, and says what each is worth.

    python -m hope_jax.ablate --set=teach,cms --size=small --seeds=3 --workdir=runs/ablations

Every set is a comparison (compare.py): the same batches, differences from its first row paired by
seed, with 95 % intervals. What two sets share is trained once. Stopped or killed, the same command
goes on. The workdir has reports/ablations.md and reports/ablations.json: every row with its
command, what each memory did, and what is missing.
"""

import json
from pathlib import Path
import statistics

from absl import flags

from hope_jax import compare
from hope_jax.model import checks
from hope_jax.reports import comparison, tables
from hope_jax.runtime import lock, program, startup
from hope_jax.scoring import results

CONFIG = "configs/ablations.py"


def sets(names: list[str], size: str, settings: list[str]) -> dict[str, dict]:
  """{set: {name: configuration}}. ValueError for a set or size that is none."""
  known = program.module(CONFIG).SETS
  if unknown := [name for name in names if name not in known]:
    raise ValueError(f"no set {unknown[0]}: choose from {', '.join(known)}")
  return {name: {ablation: compare.named([f"{CONFIG}:{ablation},{size}"], settings)[
      f"{ablation},{size}"] for ablation in known[name]} for name in names}


def moved(folder: Path) -> dict[str, float]:
  """What each memory did: the mean of its moves over layers and logged steps, {path: distance}."""
  found = {}
  for line in (folder / "metrics.jsonl").read_text().splitlines():
    for name, value in json.loads(line).items():
      kind, _, rest = name.partition("/")
      _, _, what = rest.partition("/")
      if kind == "memory" and what.startswith("moved/"):
        found.setdefault(what.removeprefix("moved/"), []).append(value)
  return {name: statistics.fmean(values) for name, values in found.items()}


def page(size: str, found: dict) -> str:
  """The report, in markdown: a table a set, and what each memory of it did."""
  text = [f"# Ablations, {size}\n"]
  for name, result in found.items():
    text += [f"## {name}\n", comparison.table(result)]
    command = f"python -m hope_jax.launch --workdir=... --config={CONFIG}"
    memories = [[row["name"], ", ".join(f"{path} {value:.3g}" for path, value
                                        in row["moved"].items()) or "none",
                 f"`{command}:{row['name']},{size}`"] for row in result["models"]]
    text += [tables.markdown(["ablation", "sum of a step's writes, a layer", "command"], memories)]
    if result["missing"]:
      text += [f"Missing: {', '.join(result['missing'])}.\n"]
  return "\n".join(text)


def report(size: str, done: dict[str, list[compare.Run]], wanted: dict, workdir: Path) -> dict:
  """{set: the result of the comparison}, with what memories did and what is missing."""
  found = {}
  for name, runs in done.items():
    result = comparison.result([(run.name, run.seed, run.folder) for run in runs], [*wanted[name]])
    for row in result["models"]:
      own = [moved(run.folder) for run in runs if run.name == row["name"]]
      row["moved"] = {path: statistics.fmean(each[path] for each in own) for path in own[0]}
    there = {row["name"] for row in result["models"]}
    found[name] = result | {"missing": [each for each in wanted[name] if each not in there]}
  return found


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("set", ["teach", "cms", "selfmod", "optimizer"], f"Of {CONFIG}.",
                    flag_values=values)
  flags.DEFINE_enum("size", "small", ["small", "pilot"], "Of the models.", flag_values=values)
  flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=values)
  flags.DEFINE_multi_string("override", [], "section.field=value, in all of them.",
                            flag_values=values)
  program.define_path("workdir", "Folder of the runs and of the report.", required=True,
                      flag_values=values)


def main(_, f: flags.FlagValues = flags.FLAGS):
  with program.one_line(ValueError, OSError, RuntimeError):
    wanted, workdir = sets(f.set, f.size, f.override), Path(f.workdir)
    every = {name: c for own in wanted.values() for name, c in own.items()}
    for c in every.values():
      checks.validate(c)
    one = next(iter(every.values()))
    startup.prepare(one.data.batch // one.optim.accumulate, **one.mesh)
    with lock.held(workdir / ".lock", "another --workdir"):
      steps = {name: c.train.steps for name, c in every.items()}
      todo = compare.runs(every, steps, f.seeds, workdir / f.size)
      compare.check_done(todo)
      for run in todo:
        compare.train_all([run], 1)
        done = [each for each in todo if (each.folder / comparison.COSTS).exists()]
        of_set = {name: [each for each in done if each.name in own]
                  for name, own in wanted.items()}
        found = report(f.size, {name: own for name, own in of_set.items() if own}, wanted, workdir)
        results.write(results.ready(workdir / "reports" / "ablations.json"),
                      results.stamp("-m", "hope_jax.ablate"), results.machine(),
                      {"size": f.size, "seeds": f.seeds, "sets": found})
        program.replace(workdir / "reports" / "ablations.md", page(f.size, found))
    print(page(f.size, found))


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
