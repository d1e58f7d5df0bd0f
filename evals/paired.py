"""Is this checkout as fast as another one? Both train and memorize in turns, in a process each.

    git worktree add /tmp/before v0.1.0
    python evals/paired.py --before=/tmp/before --train=transformer,hybrid_1 --memorize=hybrid_1

Models are those of speed.py in each checkout. What slows the machine down slows both; the ratio is
that of the summed times, its 95 % interval over the rounds. The first turn of each is left out. The
same is said of processor seconds, which hardly depend on who else uses the machine; what
waits for memory or for another core is not in them.
"""

from collections.abc import Callable
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile

from absl import flags
from tqdm import tqdm

from hope_jax.reports import tables
from hope_jax.runtime import program
from hope_jax.scoring import intervals, results

FLAGS = flags.FLAGS
HERE = Path(__file__).resolve().parents[1]

WORKER = """
import json, sys, time
import jax, numpy as np
from absl import flags
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from evals import speed
if hasattr(speed, "define_flags"):  # 0.1.0 defines them where it is imported
  speed.define_flags(flags.FLAGS)
flags.FLAGS(["speed"])
try:
  from hope_jax.model import lm
  from hope_jax.reading import study
except ImportError:  # 0.1.0
  from hope_jax import memorize as study, model as lm

def memorizing(name):
  c = speed.configuration(name)
  params = lm.init_params(c, jax.random.key(0))
  texts = np.random.default_rng(0).integers(0, c.model.vocab, (4, 1024)).tolist()
  def turn(_):
    fast = jax.block_until_ready(lm.init_fast(c, 4))
    began = time.perf_counter()
    study.memorize(c, params, fast, texts)
    return time.perf_counter() - began
  return turn

turns = {}
for line in sys.stdin:
  what, name = line.split()
  if (what, name) not in turns:
    turns[what, name] = speed.Runner(name).turn if what == "train" else memorizing(name)
  began = time.process_time()
  print("seconds", turns[what, name](1), time.process_time() - began, flush=True)
"""


def start(checkout: str | Path, cache: str) -> Callable[[str, str], tuple[float, float]]:
  """A process of a checkout: (train or memorize, model) -> seconds of a turn, and processor's."""
  process = subprocess.Popen(
      [sys.executable, "-c", WORKER, cache], cwd=checkout, text=True, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(checkout)})

  def ask(what: str, name: str) -> tuple[float, float]:
    process.stdin.write(f"{what} {name}\n")
    process.stdin.flush()
    for line in process.stdout:
      if line.startswith("seconds "):
        _, seconds, processor = line.split()
        return float(seconds), float(processor)
    raise RuntimeError(f"the process of {checkout} ended while it was asked to {what} {name}")

  return ask


def compare(before: Callable, after: Callable, what: str, name: str, rounds: int) -> dict:
  """Seconds of each turn, who begins changing with every round, and the ratios of speeds."""
  taken = {"before": [], "after": []}
  for i in tqdm(range(rounds + 1), desc=f"{what} {name}", unit="round"):
    order = (("before", before), ("after", after))
    for which, ask in order[::-1] if i % 2 else order:
      own = ask(what, name)
      taken[which] += [own] if i else []
  row = {"what": what, "model": name}
  for i, (kind, ratio) in enumerate((("seconds", "ratio"),
                                     ("processor_seconds", "processor_ratio"))):
    row[kind] = {which: [own[i] for own in turns] for which, turns in taken.items()}
    row[ratio] = intervals.interval(row[kind]["before"], row[kind]["after"], 0)
  return row


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("before", "The other checkout.", required=True, flag_values=values)
  flags.DEFINE_list("train", ["transformer", "selfmod_linear"], "Models of speed.py.",
                    flag_values=values)
  flags.DEFINE_list("memorize", [], "Models of speed.py that write in context.", flag_values=values)
  flags.DEFINE_integer("rounds", 12, "Turns of each.", lower_bound=2, flag_values=values)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)


def main(_):
  with tempfile.TemporaryDirectory() as cache, program.one_line(OSError, RuntimeError):
    if FLAGS.output:
      results.ready(FLAGS.output)
    before, after = (start(folder, f"{cache}/{i}")
                     for i, folder in enumerate((FLAGS.before, HERE)))
    rows = [compare(before, after, what, name, FLAGS.rounds)
            for what, names in (("train", FLAGS.train), ("memorize", FLAGS.memorize))
            for name in names]
  print(tables.markdown(
      ["", "before, median s", "after, median s", "speed, after / before (95 %)",
       "by processor seconds"],
      [[f"{row['what']} {row['model']}",
        *(f"{statistics.median(row['seconds'][which]):.3f}" for which in ("before", "after")),
        tables.score(row["ratio"]), tables.score(row["processor_ratio"])] for row in rows]))
  if FLAGS.output:
    results.write(FLAGS.output, results.stamp("evals/paired.py"), results.machine(),
                  {"rows": rows})


if __name__ == "__main__":
  program.start(main, define_flags)
