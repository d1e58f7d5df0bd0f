"""Kills at any moment, by SIGKILL, what a person runs beside training; starts a run twice at once.

    python evals/interrupted.py --moments=20

    build      a data folder
    memorize   a text, into a state that is there
    export     parameters, over a file that is there
    race       two processes start the same run in one workdir

After each kill what was there is whole, or the new is, and the next process is killed where that
one left off; the last one may end, and leaves nothing of those before it. Of two that race one
trains, as if it had been alone, and the other says who is there. Exit status 1 if anything is
otherwise.
"""

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
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from hope_jax import config as configs, export, memorize
from hope_jax.checkpoints import sidecar, stored
from hope_jax.data import tokenized
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.training import loop

FLAGS = flags.FLAGS
ROOT = Path(__file__).resolve().parents[1]
TEXT = "Memories are written while they read.\n" * 40


def config(folder: Path) -> ConfigDict:
  """A tiny model that writes in context, on the reference topics that Python carries."""
  c = configs.base()
  c.model.update(dict(configs.PRESETS["hope_attention"], dim=16, layers=1, heads=1, vocab=500))
  c.attention.window, c.teach.chunk = 16, 16
  c.channel.levels, c.channel.in_context = (configs.Level("fast", 16, lr=0.01),), True
  c.data.update(dict(dir=str(folder / "data"), tokenizer_chars=300_000, seq=64, align=16, batch=2))
  c.data.sources = (ConfigDict(dict(name="topics", kind="embedded", path="", field="",
                                    domains="reference", weight=1.0)),)
  c.train.update(dict(steps=4, log_every=1, eval_every=4, eval_batches=1, save_every=2))
  return c


def build(folder: Path) -> None:
  tokenized.build(config(folder))


def learn(folder: Path) -> None:
  values = flags.FlagValues()
  memorize.define_flags(values)
  (folder / "text.txt").write_text(TEXT)
  values(["memorize", f"--checkpoint={folder / 'run'}", f"--text={folder / 'text.txt'}",
          f"--state={folder / 'state'}"])
  memorize.main(["memorize"], values)


def write(folder: Path) -> None:
  export.write(folder / "run", folder / "out" / "model.safetensors")


def built(folder: Path) -> object:
  """Digests of the data folder; None: there is none."""
  data = folder / "data"
  if not data.exists():
    return None
  tokenized.build(config(folder), verify=True)
  return tokenized.manifest(data)["files"]


def learned(folder: Path) -> object:
  """What the state holds, bit for bit."""
  path = stored.good(folder / "state")
  fast = stored.read(path, {"fast": stored.shapes(path, "fast")})["fast"]
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(fast)]


def written(folder: Path) -> object:
  """What is in the file (its header has no order), whole, and the digest of its tokenizer."""
  _, _, facts = export.read(folder / "out" / "model.safetensors")
  return facts, sidecar.sha256(folder / "out" / "tokenizer.model")


WORK = {"build": (build, built), "memorize": (learn, learned), "export": (write, written)}
PLACE = {"build": "data", "memorize": "state", "export": "out"}


def child(what: str, folder: str, delay: float = 0.0) -> None:
  """Does it, and says how long that took; kills itself after `delay` seconds of it."""
  startup.prepare()
  began = time.perf_counter()
  if delay:
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
  WORK[what][0](Path(folder))
  print(f"\n{time.perf_counter() - began}")
  sys.stdout.flush()
  os._exit(0)  # without the timer


def start(call: str) -> subprocess.Popen:
  code = f"import sys; from evals import interrupted; interrupted.{call}"
  return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})


def finish(what: str, folder: Path, delay: float = 0.0) -> float | None:
  """Seconds that it took; None: killed. RuntimeError for another end."""
  process = start(f"child({what!r}, {str(folder)!r}, {delay!r})")
  out, error = process.communicate()
  if process.returncode == -signal.SIGKILL:
    return None
  if process.returncode:
    raise RuntimeError(f"{what} ended with {process.returncode}:\n{error}")
  return float(out.splitlines()[-1])


def leftovers(folder: Path) -> list[str]:
  """Files and folders that only a process at work may have."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                if path.name.startswith(".") or ".partial" in path.name)


def put_back(place: Path, kept: Path) -> None:
  shutil.rmtree(place, ignore_errors=True)
  if kept.exists():
    shutil.copytree(kept, place)


def kill(what: str, folder: Path, moments: int, rng: random.Random) -> dict:
  """A row of the table; RuntimeError for something lost or left."""
  look, place, kept = WORK[what][1], folder / PLACE[what], folder / f"before-{what}"
  put_back(place, kept)
  if what != "build":  # what is there already is not built
    finish(what, folder)
    shutil.copytree(place, kept)
  old, took = look(folder), finish(what, folder)
  new, there, killed, halves = look(folder), 0, 0, 0
  while killed < moments:
    if look(folder) != old:
      put_back(place, kept)
    if finish(what, folder, rng.uniform(0.001, took)) is not None:
      took *= 0.9
      continue
    killed += 1
    found = look(folder)
    halves += bool(leftovers(folder))
    there += found is not None
    if found not in (old, new):
      raise RuntimeError(f"{what}: after kill {killed} it is neither what was there nor the new")
  if look(folder) != old:
    put_back(place, kept)
  finish(what, folder)
  if look(folder) != new or leftovers(folder):
    raise RuntimeError(f"{what}: the process after {killed} kills leaves {leftovers(folder)}")
  return {"what": what, "kills": killed, "whole after the kill": there,
          "something half beside it": halves, "s": f"{took:.1f}"}


def racer(folder: str, me: int, rounds: int) -> None:
  """One of two that start the same run at once, again and again."""
  folder, told = Path(folder), []
  c = config(folder)
  startup.prepare()  # one device, as of the run that they are compared with
  for i in range(rounds):
    (folder / f"{i}.{me}").touch()
    end = time.monotonic() + 300
    while not (folder / f"{i}.{1 - me}").exists():
      if time.monotonic() > end:
        raise TimeoutError("the other one did not come")
    try:
      loop.train(c, folder / f"race{i}")
      told.append("trained")
    except BlockingIOError as error:
      told.append(str(error))
    except Exception as error:
      told.append(f"failed: {type(error).__name__}: {error}")
  print("\n" + json.dumps(told))


def losses(workdir: Path) -> list:
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def race(folder: Path, rounds: int) -> dict:
  """A row of the table; RuntimeError where two trained, or none, or not as one alone."""
  both = [start(f"racer({str(folder)!r}, {me}, {rounds})") for me in (0, 1)]
  ends = [process.communicate() for process in both]
  if any(process.returncode for process in both):
    raise RuntimeError(f"race: {ends}")
  told = [json.loads(out.splitlines()[-1]) for out, _ in ends]
  for i, pair in enumerate(zip(*told)):
    good = sidecar.steps(folder / f"race{i}" / "checkpoints")
    if (sorted(text == "trained" for text in pair) != [False, True]
        or not any("is in use by process" in text for text in pair) or good != [2, 4]
        or any(sidecar.check(folder / f"race{i}" / "checkpoints" / str(step)) for step in good)
        or losses(folder / f"race{i}") != losses(folder / "run")):
      raise RuntimeError(f"race {i}: {pair}, steps {good}, {losses(folder / f'race{i}')}")
  return {"what": "race", "kills": rounds, "whole after the kill": rounds,
          "something half beside it": 0, "s": ""}


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("moments", 20, "Kills of each, and races.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_list("what", [*WORK, "race"], "Which of them.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the moments.", flag_values=values)


def main(_):
  startup.prepare()
  folder, rows = Path(tempfile.mkdtemp(prefix="interrupted.")), []
  rng = random.Random(FLAGS.seed)
  try:
    loop.train(config(folder), folder / "run")
    for what in tqdm(FLAGS.what, file=sys.stderr):
      rows.append(race(folder, FLAGS.moments) if what == "race"
                  else kill(what, folder, FLAGS.moments, rng))
  except RuntimeError as error:
    sys.exit(str(error))
  finally:
    shutil.rmtree(folder)
  print(tables.markdown([*rows[0]], [[*row.values()] for row in rows]))


if __name__ == "__main__":
  program.start(main, define_flags)
