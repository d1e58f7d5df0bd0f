"""Classes that arrive in groups, read once: are those of earlier groups still found?

    python evals/class_incremental.py --checkpoint=runs/smollm_levels --set=clinc150 --memorize \\
        --data_dir=data --output=clinc.json

CLINC150 comes in 10 groups of 15 classes, Banking77 in 7 of 11, DBpedia14 in 7 of 2, in --orders
orders. After each group, test texts of all classes seen so far are given the best of all names seen
so far. `hope_jax/scoring/incremental.py` says in which ways, memorizing being one of them (with
--memorize); beside them, joint: all examples memorized in one mixture. The file holds accuracy
after every group, at the end, on average, and what was forgotten, each with a 95 % interval, and
the paired difference to what the model does without any example; a picture lies next to it where
matplotlib is there. An interrupted run goes on (OUTPUT.partial). Needs hope_jax[evals].
"""

import importlib.util

from absl import app, flags
import numpy as np
from tqdm import tqdm

from hope_jax.reports import learned, tables
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import intervals, labelled, memorization, results
from hope_jax.scoring.incremental import Ways


def one_order(model, how, own: list[labelled.Group], order: int, kept: results.Partial,
              f: flags.FlagValues) -> None:
  """Adds a row for each group of an order, but for those that are there."""
  done = [batch[0] for batch in kept.batches if batch[0]["order"] == order]
  ways, tests, where = Ways(*model, how, f.batch), [], []
  for number, group in enumerate(tqdm(own, desc=f"order {order}", unit="group")):
    if len(done) == len(own):
      return
    ways.read(group)
    tests += group.test
    where += [number] * len(group.test)
    if number < len(done):
      continue  # an interrupted run's memories are written again
    right = ways.right(tests)
    if how.on and number == len(own) - 1:
      mixed = np.random.default_rng(f.seed + order).permutation(len(ways.examples))
      right["joint"] = ways.joint([ways.examples[i] for i in mixed], tests)
    kept.add([{"order": order, "group": number, "classes": len(ways.labels), "of_group": where,
               "right": right, "memories": {way: results.memories(did)
                                            for way, did in ways.did.items()}}])


def summary(rows: list[dict], groups: int, seed: int) -> dict:
  """Of all orders together, {way: scores}; a test text of an order is a sample."""
  last = [row for row in rows if row["group"] == groups - 1]
  def column(way, some):
    return np.concatenate([row["right"][way] for row in some]).astype(float)
  out = {}
  for way in last[0]["right"]:
    final = column(way, last)
    out[way] = {"final": intervals.with_and_without(final, None, seed)["baseline"]}
    if way != "nothing":
      out[way]["over_nothing"] = intervals.with_and_without(column("nothing", last), final,
                                                            seed)["difference"]
    if way == "joint":
      continue
    after = [[row for row in rows if row["group"] == number] for number in range(groups)]
    out[way] |= {
        "average": intervals.average([column(way, some) for some in after], seed),
        "after_each": [intervals.with_and_without(column(way, some), None, seed)["baseline"]
                       for some in after],
        "forgetting": forgotten(rows, way, groups, seed)}
  return out


def forgotten(rows: list[dict], way: str, groups: int, seed: int) -> dict:
  """A group's accuracy when it was new, among the classes then seen, less that at the end."""
  tops = []
  for row in rows:
    if row["group"] == groups - 1:
      first = {own["group"]: own for own in rows if own["order"] == row["order"]}
      for place, number in enumerate(row["of_group"]):
        if number < groups - 1:
          tops.append(float(first[number]["right"][way][place]) - float(row["right"][way][place]))
  return intervals.interval(tops, np.ones(len(tops)), seed)


def evaluate(f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """(all that the file holds but its date and command, what goes when it is written)."""
  *model, how = memorization.begin(f)
  if how.leak:
    raise ValueError("--memorize_use_correct_answer: the examples are all that may be memorized")
  config, params, tokenizer = model
  data, count = labelled.read(f.set, f.data_dir), labelled.SETS[f.set].groups
  settings = results.of_model(config, params, tokenizer.digest) | how.facts() | {
      "checkpoint": f.checkpoint, "seed": f.seed, "set": f.set, "shots": f.shots,
      "tests": f.tests, "orders": f.orders, "groups": count}
  kept = results.Partial(f.output + ".partial", settings)
  for order in range(f.orders):
    own = labelled.groups(data, count, f.seed + order, f.shots, f.tests)
    one_order(model, how, own, order, kept, f)
  rows = [row for batch in kept.batches for row in batch]
  memories = rows[-1]["memories"]
  return settings | {"ways": summary(rows, count, f.seed), "memories": memories,
                     "rows": rows}, kept


def show(result: dict) -> str:
  """A row for each way."""
  names = ("final", "average", "forgetting", "over_nothing")
  lines = [[way, *(tables.score(own[name]) if name in own else "" for name in names)]
           for way, own in result["ways"].items()]
  return "\n".join([tables.markdown(["accuracy (95 %)", *names], lines),
                    *(f"{way}\n\n{tables.memories(did, 'example')}"
                      for way, did in result["memories"].items())])


def define_flags(values: flags.FlagValues) -> None:
  for name, about in (("checkpoint", "Folder of a run."), ("output", "All numbers, as JSON.")):
    program.define_path(name, about, flag_values=values, required=True)
  program.define_path("data_dir", "Folder with continual/...; without it, the hub.",
                      flag_values=values)
  flags.DEFINE_enum("set", "clinc150", list(labelled.SETS), "Texts with labels.",
                    flag_values=values)
  for name, default, about, least in (
      ("orders", 3, "Orders in which the classes come.", 1),
      ("shots", 5, "Examples of each class, each read once.", 2),
      ("tests", 2, "Test texts of each class.", 1),
      ("seed", 0, "Of the orders and of the intervals.", 0)):
    flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)
  flags.DEFINE_integer("batch", None, "Texts at a time. Default: as many as fit.", lower_bound=1,
                       flag_values=values)
  memorization.define_options(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    if importlib.util.find_spec("sklearn") is None:
      raise ValueError("the classifiers of features need scikit-learn: pip install "
                       "'hope_jax[evals]'")
    result, partial = evaluate(f)
    print(show(result))
    results.write(output, results.stamp("evals/class_incremental.py"), result)
    partial.close()
  try:
    learned.curves(result).savefig(output.with_suffix(".png"), dpi=120)
  except ImportError:
    say("no picture without matplotlib: pip install hope_jax[plots]")


if __name__ == "__main__":
  program.start(main, define_flags)
