"""Tasks that need memory: every model at the length of its training and beyond, seed by seed.

    python evals/synthetic.py --tasks=mqar,parity --models=gru,hope_selfmod,hope_selfmod:reversed \\
        --seeds=5 --workdir=runs/synthetic --output=runs/synthetic/table.json

What is missing is trained (configs/synthetic.py; MODEL:CONTROL: one of configs/controls.py), then
asked --sequences validation sequences, drawn apart from those of training (strings of aa, abab,
anbn and anbncn are their length alone: at the training's length they are the same). Initialisation
explains most of the variance of such tasks, so every seed is shown. Labels that only teach (facts,
as they are stated) do not count. "solved" is the share of sequences without a mistake. A run that
fails is said and left out. Stopped or killed, the same command goes on.
"""

import functools
import json
from pathlib import Path
import statistics

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax import compare
from hope_jax.checkpoints import weights
from hope_jax.data import loader, synthetic
from hope_jax.model import checks, plan, sharding
from hope_jax.reading import opening, sequences
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import intervals, results, validation

FLAGS = flags.FLAGS
SCORES = "scores.json"  # in a run's folder


def longer(config, factor: int, sequences: int):
  """Of so many times the length, the gap, too."""
  c = config.copy_and_resolve_references().unlock()
  c.data.update(seq=factor * c.data.seq, recall_gap=factor * c.data.recall_gap,
                batch=min(c.data.batch, sequences))
  checks.validate(c, jax.device_count())
  return c


def asked(config, count: int) -> np.ndarray:
  """(count, T) bool: the labels of validation that are asked for, without those that only teach."""
  plain = config.copy_and_resolve_references()
  plain.data.recall_taught = False
  examples = synthetic.dataset(plain, "validation")
  return np.stack([examples[i]["labels"] for i in range(count)]) >= 0


def score(config, params, count: int) -> dict:
  """{"accuracy", "solved", "moved"} over the first `count` validation sequences.

  RuntimeError where a memory that is enabled was never written.
  """
  read = jax.jit(functools.partial(_right, config))
  place = sharding.by_stream(sharding.mesh(config))
  size, right, moved = config.data.batch, [], []
  for _, batch in loader.eval_batches(config, count // size):
    correct_BxT, stats = jax.device_get(read(params, jax.device_put(batch, place)))
    right.append(correct_BxT)
    moved.append({name: float(np.nanmean(value)) for name, value in stats.items()
                  if name.startswith("moved")
                  and (name.partition("/")[2] in plan.of(config).enabled
                       or "selfmod" in plan.of(config).enabled)})
  validation.check_updates(moved)
  right_NxT = np.concatenate(right)
  asked_NxT = asked(config, len(right_NxT))
  return {"accuracy": float(right_NxT[asked_NxT].mean()),
          "solved": float((right_NxT | ~asked_NxT).all(1).mean()), "sequences": len(right_NxT),
          "moved": {name: statistics.fmean(each[name] for each in moved) for name in moved[0]}}


def _right(config, params, batch):
  out, stats = sequences.read(config, params, batch)
  return jnp.asarray(out["correct_BxC"]), stats


def scored(run: compare.Run, factors: list[int], count: int) -> dict:
  """{factor: score} of a trained run, each measured once."""
  path = run.folder / SCORES
  kept = json.loads(path.read_text()) if path.exists() else {}
  missing = [factor for factor in factors if f"{factor}x{count}" not in kept]
  if missing:
    _, step = opening.find(str(run.folder))
    params, config, meta = weights.load(run.folder / "checkpoints", step=step)
    config = opening.as_trained(config, meta["step"])
    params = jax.device_put(params, sharding.replicated(sharding.mesh(config)))
    for factor in missing:
      kept[f"{factor}x{count}"] = score(longer(config, factor, count), params, count)
      program.replace(path, json.dumps(kept, indent=1))
  return {factor: kept[f"{factor}x{count}"] for factor in factors}


def runs(task: str, models: list[str], f: flags.FlagValues) -> list[compare.Run]:
  """Of all models and seeds. ValueError for a name that is none."""
  found = {}
  for model in models:
    spec = f"{task},{model.replace(':', ',')}"
    found[model] = program.configuration(f"configs/synthetic.py:{spec}")
  return compare.runs(found, dict.fromkeys(found, f.steps), f.seeds, Path(f.workdir) / task)


def row(task: str, model: str, own: list[dict], factors: list[int]) -> dict:
  """What all seeds of a model came to at each length."""
  return {"task": task, "model": model, "seeds": len(own), "lengths": {
      str(factor): {"accuracy": intervals.student([each[factor]["accuracy"] for each in own]),
                    "each": [each[factor]["accuracy"] for each in own],
                    "solved": [each[factor]["solved"] for each in own]} for factor in factors}}


def table(rows: list[dict], factors: list[int]) -> str:
  """Accuracies in percent: the mean, and each seed."""
  def cell(entry):
    return (f"{100 * entry['accuracy']['value']:.1f} ("
            + " ".join(f"{100 * each:.0f}" for each in entry["each"]) + ")")
  return tables.markdown(
      ["task, model", *(f"accuracy at {factor} x length, % (each seed)" for factor in factors),
       *(f"solved at {factor} x, %" for factor in factors)],
      [[f"{each['task']}, {each['model']}", *(cell(each["lengths"][str(f)]) for f in factors),
        *(f"{100 * statistics.fmean(each['lengths'][str(f)]['solved']):.1f}" for f in factors)]
       for each in rows])


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("tasks", ["mqar", "gap", *synthetic.DRAW], "Of configs/synthetic.py.",
                    flag_values=values)
  flags.DEFINE_list("models", ["transformer", "gru", "gated_deltanet", "hope_selfmod"],
                    "Of configs/baselines.py; MODEL:CONTROL of configs/controls.py.",
                    flag_values=values)
  flags.DEFINE_integer("seeds", 5, "Runs of each.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("steps", 300, "Of training.", lower_bound=1, flag_values=values)
  flags.DEFINE_list("factors", ["1", "4"], "Lengths asked for, of that of the training.",
                    flag_values=values)
  flags.DEFINE_integer("sequences", 256, "Of validation; a multiple of the batch, 64, counts.",
                       lower_bound=16, flag_values=values)
  program.define_path("workdir", "Folder of the runs.", required=True, flag_values=values)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)


def main(_):
  with program.one_line(ValueError, OSError, RuntimeError):
    if not all(factor.isdecimal() and int(factor) for factor in FLAGS.factors):
      raise ValueError(f"--factors={','.join(FLAGS.factors)}: give whole numbers from 1")
    if FLAGS.output:
      results.ready(FLAGS.output)
    factors, rows = [*map(int, FLAGS.factors)], []
    startup.prepare(16)
    todo, failed = {task: runs(task, FLAGS.models, FLAGS) for task in FLAGS.tasks}, []
    for own in todo.values():
      compare.check_done(own)
    with tqdm(total=sum(map(len, todo.values())), unit="run") as bar:
      for task, own in todo.items():
        done = {model: [] for model in FLAGS.models}
        for run in own:
          bar.set_postfix_str(f"{task}, {run.name}, seed {run.seed}")
          try:
            compare.train(run)
            done[run.name].append(scored(run, factors, FLAGS.sequences))
          except (FloatingPointError, ValueError, RuntimeError) as error:
            failed.append(f"{task}, {run.name}, seed {run.seed}")
            startup.say(f"{failed[-1]}, failed: {error}")
          bar.update()
        rows += [row(task, model, each, factors) for model, each in done.items() if each]
        print(table(rows, factors), flush=True)
        if FLAGS.output:
          results.write(FLAGS.output, results.stamp("evals/synthetic.py"), results.machine(),
                        {"steps": FLAGS.steps, "sequences": FLAGS.sequences, "rows": rows,
                         "failed": failed})
    if failed:
      raise RuntimeError(f"without {'; '.join(failed)}: see above; the same command tries again")


if __name__ == "__main__":
  program.start(main, define_flags)
