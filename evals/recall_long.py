"""Recall of facts stated long ago: accuracy by gap, with the memories written and not.

    python -m hope_jax.launch --config=configs/recall_long.py --workdir=runs/recall_long
    python evals/recall_long.py --checkpoint=runs/recall_long --gaps=0,500,2000 --output=out.json

Facts open each sequence, filler tokens follow, then every key is asked once (data/recall.py).
Sequences come from the validation split, which no training saw. "Off" is the same model with
teach.paths=("none",). The intervals (Wilson, 95 %) count sequences, not queries, so they are wide
rather than narrow: queries of one sequence are not independent.
"""

import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.checkpoints import weights
from hope_jax.data import loader
from hope_jax.model import checks, plan, sharding
from hope_jax.reading import opening, sequences
from hope_jax.reports.tables import markdown
from hope_jax.runtime import program, startup
from hope_jax.scoring import intervals, results, validation

FLAGS = flags.FLAGS


def at_gap(config, gap: int, write: bool):
  """With another gap, and a sequence as much longer; write=False: no memory is written."""
  c = config.copy_and_resolve_references().unlock()
  places = c.data.seq - c.data.recall_gap
  c.data.update(recall_gap=gap, seq=-(-(places + gap) // c.data.align) * c.data.align,
                batch=FLAGS.batch)
  if not write:
    c.teach.paths = ("none",)
  checks.validate(c, jax.device_count())
  return c.lock()


def make_step(config):
  """(params, batch) -> (right (B,), asked (B,), statistics); the labels of facts only teach."""
  facts = 2 * config.data.recall_pairs

  def step(params, batch):
    out, stats = sequences.read(config, params, batch)
    correct = out["correct_BxC"]
    asked = batch["labels"][:, facts:] >= 0
    return jnp.sum(correct[:, facts:] & asked, 1), jnp.sum(asked, 1), stats

  return jax.jit(step)


def evaluate(config, params, bar: tqdm) -> tuple[dict, list[dict]]:
  """Accuracy over --sequences unseen ones; each memory's move, mean over layers and batches."""
  step, right, asked, moved = make_step(config), 0, 0, []
  rows, began = sharding.by_stream(sharding.mesh(configs.base())), time.perf_counter()
  for _, batch in loader.eval_batches(config, FLAGS.sequences // FLAGS.batch):
    correct_B, asked_B, stats = jax.device_get(step(params, jax.device_put(batch, rows)))
    right, asked = right + int(correct_B.sum()), asked + int(asked_B.sum())
    moved.append({name: float(np.mean(v)) for name, v in stats.items() if name.startswith("moved")})
    bar.update()
  accuracy = right / asked
  return {"accuracy": accuracy, "interval": intervals.wilson(accuracy, FLAGS.sequences),
          "queries": asked,
          "moved": {name: float(np.mean([m[name] for m in moved])) for name in moved[0]},
          "seconds": time.perf_counter() - began}, moved


def measure(config, params) -> list[dict]:
  """One entry a gap. RuntimeError when memories that should write do not, or the others do."""
  gaps, ways = [int(gap) for gap in FLAGS.gaps], ("on",
                                                  "off") if plan.of(config).paths else ("none",)
  out = []
  with tqdm(total=len(gaps) * len(ways) * (FLAGS.sequences // FLAGS.batch), unit="batch") as bar:
    for gap in gaps:
      out.append({"gap": gap, "sequences": FLAGS.sequences})
      for way in ways:
        bar.set_postfix_str(f"gap {gap}, memory {way}")
        out[-1][way], moved = evaluate(at_gap(config, gap, way == "on"), params, bar)
        if way == "on":
          validation.check_updates(moved)
        elif any(max(m.values(), default=0) > 0 for m in moved):
          raise RuntimeError(f"gap {gap}: a memory moved although nothing may be written")
  return out


def table(gaps: list[dict]) -> str:
  """Markdown."""
  ways = [way for way in ("on", "off", "none") if way in gaps[0]]
  named = {"on": "memory on", "off": "memory off", "none": "no memory"}
  def percent(r):
    low, high = r["interval"]
    return f"{100 * r['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
  return markdown(["gap", *(f"{named[way]} (95 %)" for way in ways), "sequences", "queries"],
                  [[f"{r['gap']:,}", *(percent(r[way]) for way in ways), r["sequences"],
                    r[ways[0]]["queries"]]
                   for r in gaps])


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Workdir of a run with data.task=recall.", required=True,
                      flag_values=values)
  flags.DEFINE_integer("step", None, "Which of its checkpoints; default: the last.",
                       flag_values=values)
  flags.DEFINE_list("gaps", ["0", "500", "1000", "2000", "4000"],
                    "Filler tokens between facts and questions.", flag_values=values)
  flags.DEFINE_integer("sequences", 256, "Sequences for each gap; a multiple of --batch.",
                       lower_bound=1, flag_values=values)
  flags.DEFINE_integer("batch", 16, "Sequences at once.", lower_bound=1, flag_values=values)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--gaps=0,2000")
  with program.one_line(ValueError, OSError, RuntimeError):
    startup.prepare(FLAGS.batch)
    if FLAGS.sequences % FLAGS.batch:
      raise ValueError(f"--sequences={FLAGS.sequences} is no multiple of --batch={FLAGS.batch}: "
                       f"set it to {-(-FLAGS.sequences // FLAGS.batch) * FLAGS.batch}")
    if FLAGS.output:
      results.ready(FLAGS.output)
    workdir, step = opening.find(FLAGS.checkpoint)
    params, config, meta = weights.load(workdir / "checkpoints",
                                        step=step if FLAGS.step is None else FLAGS.step)
    if config.data.task != "recall" or not config.data.recall_fillers:
      raise ValueError(f"{FLAGS.checkpoint} was not trained with data.task=recall and "
                       "data.recall_fillers: train configs/recall_long.py")
    config = opening.as_trained(config, meta["step"])
    place = sharding.replicated(sharding.mesh(configs.base()))
    gaps = measure(config, jax.device_put(params, place))
    chance = 1 / config.data.recall_keys
    print(f"{config.data.recall_pairs} facts of {config.data.recall_keys} keys and values, "
          f"{config.data.recall_fillers} fillers; chance {100 * chance:.1f} %\n\n"
          f"{table(gaps)}")
    if FLAGS.output:
      results.write(FLAGS.output, results.stamp("evals/recall_long.py"), results.machine(),
                    results.of_model(config, params, meta["tokenizer"]),
                    {"step": meta["step"], "chance": chance, "gaps": gaps})


if __name__ == "__main__":
  program.start(main, define_flags)
