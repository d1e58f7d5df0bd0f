"""Kills a small run again and again with SIGKILL; compares it with one never killed, bit for bit.

    python evals/kills.py --kills=20

A run has 60 steps, a level written in context, one stepped every fourth step, dropout, three
evaluations and a checkpoint every 7 steps. A process is killed at a chosen moment, or at any time,
and started again, until the run is complete; then the next run begins. Compared: every line of
metrics.jsonl (without times and rates), and all that the last checkpoint holds: parameters,
optimizer, random key, counters, the data's position. Training carries no fast state from step to
step: every sequence of a batch starts fresh. Exit status 1 if anything differs. The table: where it
was killed, how far it had come, where it went on.
"""

import functools
import itertools
import json
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl import flags
import jax
import numpy as np
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.checkpoints import checkpoint, sidecar
from hope_jax.model import sharding
from hope_jax.reports import tables
from hope_jax.runtime import metrics, program, startup
from hope_jax.scoring import validation
from hope_jax.training import loop, steps

FLAGS = flags.FLAGS
ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVE_EVERY = 60, 7
MOMENTS = {  # what is called then, and the most seconds from there to the kill
    "before the first save": (loop._Run, "log", 0.0),
    "compiling": (loop._Run, "compile", 0.5),
    "saving": (checkpoint.Checkpoints, "save", 0.06),
    "writing metrics": (metrics.Metrics, "write", 0.001),
    "evaluating": (validation, "evaluate", 0.03),
    "between data and step": (sharding, "place_batch", 0.0),
    "restoring": (checkpoint.Checkpoints, "restore", 0.04),
    "any time": (loop._Run, "train", 3.0),
}


def config():
  """The run. Tiny: most of its time is the start."""
  c = configs.base()
  c.model.update(dict(configs.PRESETS["hope_attention"], dim=16, layers=2, heads=2, vocab=33,
                      dropout=0.1))
  c.attention.window = 16
  c.channel.levels = (configs.Level("fast", 8, lr=0.05), configs.Level("slow", 128))
  c.channel.in_context, c.teach.chunk = True, 8
  c.data.update(dict(task="recall", recall_pairs=4, recall_keys=16, recall_taught=True, seq=32,
                     align=8, batch=4))
  c.optim.warmup = 5
  c.train.update(dict(steps=STEPS, log_every=1, eval_every=20, eval_batches=2,
                      save_every=SAVE_EVERY))
  return c


def child(workdir: str, moment: str = "", count: int = 1, delay: float = 0.0) -> None:
  """A process of the run; kills itself `delay` seconds after the count-th call of the moment."""
  c = config()
  startup.prepare(c.data.batch)
  if moment:
    owner, name, _ = MOMENTS[moment]
    call, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(call)
    def struck(*args, **kwargs):
      if next(calls) == count:
        startup.say(f"struck {moment}")
        threading.Timer(delay, os.kill,
                        (os.getpid(),
                         signal.SIGKILL)).start() if delay else os.kill(os.getpid(), signal.SIGKILL)
      return call(*args, **kwargs)

    setattr(owner, name, struck)
  loop.train(c, workdir)


def start(workdir: Path, *moment) -> tuple[int, str, float]:
  """(exit status, what it said, seconds) of one process."""
  code = f"import sys; from evals import kills; kills.child({str(workdir)!r}, *{moment!r})"
  began = time.perf_counter()
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})
  return done.returncode, done.stderr, time.perf_counter() - began


def plan(moment: str, rng: random.Random) -> tuple[str, int, float]:
  """(moment, which call, seconds after it)."""
  most = {"saving": 3, "writing metrics": 15, "between data and step": 15,
          "before the first save": SAVE_EVERY - 1}
  return moment, rng.randint(1, most.get(moment, 1)), rng.uniform(0, MOMENTS[moment][2])


def kill(workdir: Path, moment: str, count: int, delay: float) -> dict | None:
  """Starts a process that is killed; None: the run ended before. RuntimeError if it failed."""
  began, before = last(workdir), rows(workdir)
  status, said, seconds = start(workdir, moment, count, delay)
  if status == 0:
    return None
  if status != -signal.SIGKILL or f"struck {moment}" not in said:
    raise RuntimeError(f"status {status} instead of a kill while {moment}:\n{said}")
  after = rows(workdir)
  reached = began if after == before else max([row["step"] for row in after], default=0)
  return {"moment": moment, "began": began, "reached": reached, "resumes": last(workdir),
          "seconds": seconds,
          "half": any((workdir / "checkpoints").glob(f"*{checkpoint.PARTIAL}*"))}


def last(workdir: Path) -> int:
  """The step that the next process restores; 0: none."""
  return max(sidecar.steps(workdir / "checkpoints"), default=0)


def rows(workdir: Path) -> list[dict]:
  """The whole lines of metrics.jsonl, without what depends on the clock."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  clock = ("time", "train/tokens_per_s", "train/mfu", "train/eta_s")
  return [{name: x for name, x in json.loads(line).items() if name not in clock
           and not name.startswith("goodput/")}
          for line in lines if line.endswith("\n")]


def differences(whole: Path, other: Path) -> list[str]:
  """What is not the same in two complete runs; each in words."""
  found, (a, b) = [], (rows(whole), rows(other))
  found += [f"metrics of step {x['step']}: {x} and {y}" for x, y in zip(a, b) if x != y]
  if len(a) != len(b):
    found.append(f"{len(a)} and {len(b)} lines of metrics")
  like = jax.eval_shape(lambda: steps.init_state(config(), jax.random.key(0)))
  states = []
  for workdir in (whole, other):
    with checkpoint.Checkpoints(workdir / "checkpoints", 2) as saved:
      state, position, _ = saved.restore(STEPS, like)
      leaves = jax.tree_util.tree_flatten_with_path(
          state.replace(rng=jax.random.key_data(state.rng)))[0]
      states.append(({jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves},
                     position))
  (x, x_position), (y, y_position) = states
  found += [f"{name} of the last checkpoint" for name in x | y if x.get(name) != y.get(name)]
  return found + (["the position of the data"] if x_position != y_position else [])


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("kills", 20, "How many.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the moments.", flag_values=values)


def main(_):
  startup.prepare()
  rng, table, wrong, number = random.Random(FLAGS.seed), [], [], 0
  order = itertools.cycle(MOMENTS)
  folder = Path(tempfile.mkdtemp(prefix="kills."))
  try:
    with tqdm(total=FLAGS.kills, desc="kill", file=sys.stderr) as bar:
      status, said, _ = start(folder / "whole")
      if status:
        raise RuntimeError(f"the run that is not killed failed:\n{said}")
      while len(table) < FLAGS.kills:
        number += 1
        workdir = folder / str(number)
        while True:
          killed = len(table) < FLAGS.kills and kill(workdir, *plan(_next(order, workdir), rng))
          if not killed:
            break
          table.append({"run": number} | killed)
          bar.update()
        if last(workdir) < STEPS:
          start(workdir)
        wrong += [f"run {number}: {text}" for text in differences(folder / "whole", workdir)]
  finally:
    shutil.rmtree(folder)
  head = ["killed while", "run", "from step", "came to", "goes on from", "steps lost",
          "half a checkpoint left"]
  lost = [max(k["reached"] - k["resumes"], 0) for k in table]
  print(tables.markdown(head,
                        [[k["moment"], k["run"], k["began"], k["reached"], k["resumes"], steps,
                          "yes" if k["half"] else ""]
                                for k, steps in zip(table, lost)]))
  print(f"{len(table)} kills of runs of {STEPS} steps ({number} in all), a checkpoint every "
        f"{SAVE_EVERY}: {sum(lost) / len(lost):.1f} steps lost on average, {max(lost)} at most; a "
        f"process lived {sum(k['seconds'] for k in table) / len(table):.1f} s, its start included")
  print("\n".join(wrong) or "every run equals the one that was never killed, bit for bit")
  sys.exit(bool(wrong))


def _next(order, workdir: Path) -> str:
  """The next moment that this workdir can come to."""
  saved = last(workdir) > 0
  return next(m for m in order if (saved or m != "restoring")
              and not (saved and m == "before the first save"))


if __name__ == "__main__":
  program.start(main, define_flags)
