"""How fast a state is saved, hashed and restored, against the disk's own rate.

    python evals/checkpoints.py --gib=1 --folder=runs/speed
    python evals/checkpoints.py --config=configs/pilot.py --folder=runs/speed   a model's state

The state is random numbers, which no compression helps. Cold: the files are dropped from the
system's cache before they are read (best effort; a network disk or a virtual one may keep its own).
Writes, measures and deletes --folder/checkpoint_speed.
"""

import contextlib
import os
from pathlib import Path
import shutil
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import config as configs
from hope_jax.checkpoints import checkpoint, sidecar
from hope_jax.model import checks
from hope_jax.model.state import TrainState
from hope_jax.reports.tables import markdown
from hope_jax.runtime import program, startup
from hope_jax.training import steps

FLAGS = flags.FLAGS
ARRAY = 1024 * 4096  # numbers in each array of --gib: 16 MiB


def state_like():
  """The state's shapes."""
  if FLAGS.config is not None:
    checks.validate(FLAGS.config)
    return jax.eval_shape(lambda: steps.init_state(FLAGS.config, jax.random.key(0)))
  count = max(1, round(FLAGS.gib * 2**30 / 3 / ARRAY / 4))
  tree = {f"array_{i}": jax.ShapeDtypeStruct((ARRAY,), jnp.float32) for i in range(count)}
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32), tree, {"first": tree, "second": tree},
                    jax.random.key(0))


def random_state(like):
  """Random numbers of these shapes."""
  rng = np.random.default_rng(0)

  def leaf(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    return jnp.asarray(rng.standard_normal(x.shape, np.float32)).astype(x.dtype)

  return jax.tree.map(leaf, like)


def drop_cache(folder: Path) -> None:
  """Asks the system to forget what it has read of these files."""
  for path in files(folder):
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files(folder: Path) -> list[Path]:
  return [path for path in folder.rglob("*") if path.is_file()]


def read(folder: Path) -> None:
  """Every byte, file by file."""
  buffer = bytearray(2**22)
  for path in files(folder):
    with open(path, "rb", buffering=0) as file:
      while file.readinto(buffer):
        pass


class Times:
  """(seconds, the processor's seconds in all threads) of what is measured, by name."""

  def __init__(self):
    self.seconds = {}

  @contextlib.contextmanager
  def measure(self, name: str):
    began, worked = time.perf_counter(), time.process_time()
    yield
    self.seconds.setdefault(name,
                            []).append((time.perf_counter() - began, time.process_time() - worked))


def measure(folder: Path, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], int, int]:
  """(Times by name, bytes of the state, files of a step)."""
  like = state_like()
  state = jax.block_until_ready(random_state(like))
  meta, times = {"config": configs.to_json(configs.base()), "tokenizer": "none"}, Times()
  # as a step takes the arrays over
  train = jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)
  state = jax.block_until_ready(train(state))
  with checkpoint.Checkpoints(folder, keep=1) as saved:
    for step in range(rounds):
      with times.measure("save, whole"):
        with times.measure("save, what the training waits for"):
          saved.save(step, state, {}, meta)
          state = jax.block_until_ready(train(state))
        saved.wait()
      path = folder / str(step)
      with times.measure("hash, files in the system's cache"):
        sidecar.check(path)
      for name, run in (("read alone, cold", lambda: read(path)),
                        ("hash, cold", lambda: sidecar.check(path))):
        drop_cache(path)
        with times.measure(name):
          run()
      drop_cache(path)
      with times.measure("hash and restore, cold"):
        jax.block_until_ready(checkpoint.Checkpoints(folder, keep=1).restore(step, like)[0].params)
    count = len(files(path))
  return times.seconds, sum(x.nbytes for x in jax.tree.leaves(state)), count


def define_flags(values: flags.FlagValues) -> None:
  program.define_config("Model whose training state is saved.", values)
  flags.DEFINE_float("gib", 1.0, "Without --config: size of the state, a third each for "
                     "parameters and two moments.", lower_bound=0.01, flag_values=values)
  program.define_path("folder", "Where to write: on the disk to be measured.", required=True,
                      flag_values=values)
  flags.DEFINE_integer("rounds", 3, "The median of so many is shown.", lower_bound=1,
                       flag_values=values)


def main(_):
  startup.prepare()
  folder = Path(FLAGS.folder) / "checkpoint_speed"
  try:
    with program.one_line(ValueError, OSError, RuntimeError):
      seconds, size, count = measure(folder, FLAGS.rounds)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  print(f"{size / 1e6:,.0f} MB in {count} files, {os.cpu_count()} cores, median of "
        f"{FLAGS.rounds}\n")
  rows = []
  for name, values in seconds.items():
    (middle, worked), (least, _) = np.median(values, 0), np.min(values, 0)
    rates = [f"{size / 1e6 / each:,.0f}" for each in (middle, least)]
    rows.append([name, f"{middle:.2f}", f"{least:.2f}", *rates, f"{worked:.2f}"])
  print(markdown(["what", "s", "fastest, s", "MB/s", "fastest, MB/s", "processor, s"], rows))


if __name__ == "__main__":
  program.start(main, define_flags)
