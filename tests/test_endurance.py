"""A run outlives what happens to it: kills, signals, bad steps; and says where its time went."""

import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config as configs, launch
from hope_jax.checkpoints import checkpoint, sidecar, weights
from hope_jax.data import loader, tokenized
from hope_jax.training import loop, spikes, steps
from test_train import losses, poison

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from evals import kills


def short(**fields):
  """12 steps, a checkpoint every 5, of a model that compiles fast."""
  c = configs.base()
  c.model.update(dict(configs.PRESETS["transformer"], dim=16, layers=1, heads=2, vocab=33,
                      dropout=0.1))
  c.channel.kind = "swiglu"
  c.data.update(dict(task="recall", recall_pairs=4, recall_keys=16, seq=32, align=32, batch=4))
  c.optim.warmup = 2
  c.train.update(dict(steps=12, log_every=1, eval_every=6, eval_batches=2, save_every=5) | fields)
  return c


def final(c, workdir):
  """(state, position of the data) of the last checkpoint."""
  with checkpoint.Checkpoints(workdir / "checkpoints", c.train.keep) as saved:
    like = jax.eval_shape(lambda: steps.init_state(c, jax.random.key(0)))
    return saved.restore(saved.latest(), like)[:2]


def strict_rows(workdir):
  """Lines of metrics; NaN and Infinity are not JSON."""
  def refuse(name):
    raise ValueError(name)
  return [json.loads(line, parse_constant=refuse)
          for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_verdicts_and_the_mean_norm_of_what_was_applied():
  state, applied, mean = spikes.fresh(), [], 0.0
  rng = np.random.default_rng(0)
  for i in range(300):
    norm = {30: 60.0, 31: np.nan, 32: np.inf, 5: 60.0, 40: -np.inf}.get(i, rng.uniform(5, 10))
    loss = np.nan if i == 50 else 1.0
    good, state = jax.jit(spikes.judge, static_argnums=3)(state, jnp.float32(loss),
                                                          jnp.float32(norm), 5.0)
    assert bool(good) == (i not in (30, 31, 32, 40, 50)), i  # at step 5 nothing is known yet
    if good:
      applied.append(norm)
      mean = (np.mean(applied) if len(applied) <= spikes.REMEMBERED
              else mean + (norm - mean) / spikes.REMEMBERED)
    np.testing.assert_allclose(state.norm, mean, rtol=1e-4)
    assert int(state.in_a_row) == {30: 1, 31: 2, 32: 3, 40: 1, 50: 1}.get(i, 0)
  assert (int(state.applied), int(state.skipped), int(state.rollbacks)) == (295, 5, 0)
  assert not spikes.judge(state, jnp.float32(jnp.nan), jnp.float32(1), 0.0)[0]
  assert spikes.judge(state, jnp.float32(1), jnp.float32(1e9), 0.0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_bad_step_changes_nothing_but_the_counts(monkeypatch, name):
  poison(monkeypatch, {2: np.nan})
  c = short(rollback_after=3)
  c.model.pattern, c.channel.kind, c.optim.name = ("attention",), "cms", name
  # the slow one counts steps of its own
  c.channel.levels = (configs.Level("fast", 0), configs.Level("slow", 128))
  train_step, state, batches = (steps.make_train_step(c), steps.init_state(c, jax.random.key(0)),
                                iter(loader.train_batches(c)))
  state, _ = train_step(state, next(batches))
  before = jax.tree.map(jnp.copy, state)
  state, out = train_step(state, next(batches))
  assert np.isnan(out["loss"]) and int(state.guard.skipped) == int(
      state.guard.in_a_row) == 1 and int(state.step) == 2
  chex.assert_trees_all_equal((state.params, state.opt_state, state.rng, state.guard.norm,
                               state.guard.applied),
                              (before.params, before.opt_state, before.rng, before.guard.norm,
                               before.guard.applied))
  state, out = train_step(state, next(batches))
  assert np.isfinite(out["loss"]) and int(state.guard.in_a_row) == 0
  chex.assert_tree_all_finite((state.params, state.opt_state))
  assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(state.params["blocks"]["attention"]),
                                            jax.tree.leaves(before.params["blocks"]["attention"])))


@pytest.mark.slow
def test_a_guard_that_finds_nothing_changes_nothing():
  results = []
  for patience in (0, 3):
    c = short(rollback_after=patience)
    c.optim.skip_above = 100.0 * (patience > 0)
    train_step, state, batches = (steps.make_train_step(c), steps.init_state(c, jax.random.key(0)),
                                  iter(loader.train_batches(c)))
    for _ in range(5):
      state, out = train_step(state, next(batches))
    results.append((state, out))
  chex.assert_trees_all_equal(*results)


def test_a_spike_is_skipped(tmp_path, monkeypatch):
  c = short(steps=30, rollback_after=3, eval_every=30, save_every=30)
  c.optim.skip_above = 5.0
  poison(monkeypatch, {25: 100.0})
  loop.train(c, tmp_path)
  counts = final(c, tmp_path)[0].guard
  assert (int(counts.applied), int(counts.skipped), int(counts.rollbacks)) == (29, 1, 0)
  assert set(range(1, 31)) - set(losses(tmp_path)) == {25}


@pytest.mark.slow
def test_too_many_bad_steps_go_back_to_a_checkpoint_and_on_to_new_data(tmp_path, monkeypatch,
                                                                       capsys):
  c = short(rollback_after=2)
  # a period of three steps that are taken: 1 to 3, and 4, 5, 9
  c.channel.kind = "cms"
  c.channel.levels = (configs.Level("fast", 0), configs.Level("slow", 3 * c.data.seq))
  poison(monkeypatch, {7: np.nan, 8: np.inf, 10: np.nan})
  loop.train(c, tmp_path / "run")
  said = capsys.readouterr().err
  assert "step 8: rolled back to the parameters of step 5; the data go on" in said
  assert "3 steps skipped, 1 rollbacks" in said

  # by hand: 1-5, then 9, 11, 12
  batches, step = list(zip(range(12), loader.train_batches(c))), steps.make_train_step(c)
  state = jax.jit(lambda key: steps.init_state(c, key))(jax.random.key(c.seed))
  for i, batch in batches:
    if i + 1 not in (6, 7, 8, 10):
      state, _ = step(state.replace(step=jnp.int32(i)), batch)
  got, _ = final(c, tmp_path / "run")
  chex.assert_trees_all_equal((got.params, got.opt_state, got.guard.norm),
                              (state.params, state.opt_state, state.guard.norm))
  assert (int(got.step), int(got.guard.applied), int(got.guard.skipped),
          int(got.guard.rollbacks)) == (12, 8, 3, 1)
  rows = [row for row in strict_rows(tmp_path / "run") if "train/lr" in row]
  assert [row["step"] for row in rows] == list(range(1, 13))
  assert [row["step"] for row in rows if "train/loss" not in row] == [7, 8, 10]
  assert rows[-1]["train/skipped"] == 3 and rows[-1]["train/rollbacks"] == 1


@pytest.mark.slow
def test_a_rollback_passes_over_a_damaged_checkpoint(tmp_path, monkeypatch, capsys):
  c, meta = short(rollback_after=2, save_every=2, keep=4), checkpoint.Checkpoints.meta
  poison(monkeypatch, {7: np.nan, 8: np.inf})

  def damaged(saved, step):
    if step == 4:
      (saved.directory / "4" / "params" / "_METADATA").unlink()
    return meta(saved, step)
  monkeypatch.setattr(checkpoint.Checkpoints, "meta", damaged)
  loop.train(c, tmp_path)
  said = capsys.readouterr().err
  assert "not rolled back to step 4" in said and "params/_METADATA: is missing" in said
  assert "step 8: rolled back to the parameters of step 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("log_every, until", [(1, 8), (4, 9), (4, 11)])
def test_skips_and_rollbacks_are_the_same_after_a_restart(tmp_path, monkeypatch, log_every, until):
  c = short(rollback_after=2, log_every=log_every)
  poison(monkeypatch, {7: np.nan, 8: np.inf, 10: np.nan})
  loop.train(c, tmp_path / "whole")
  stop_at(monkeypatch, until)
  with pytest.raises(SystemExit, match="143"):
    loop.train(c, tmp_path / "cut")
  monkeypatch.undo()
  poison(monkeypatch, {7: np.nan, 8: np.inf, 10: np.nan})
  loop.train(c, tmp_path / "cut")
  chex.assert_trees_all_equal(final(c, tmp_path / "cut"), final(c, tmp_path / "whole"))
  assert kills.rows(tmp_path / "cut") == kills.rows(tmp_path / "whole")


def stop_at(monkeypatch, step, name="draw"):
  """SIGTERM when a function of the run is called at this step."""
  call = getattr(loop._Run, name)
  def stopping(self, i, *rest):
    if i == step:
      os.kill(os.getpid(), signal.SIGTERM)
    return call(self, i, *rest)

  monkeypatch.setattr(loop._Run, name, stopping)


def test_resumed_equals_uninterrupted_and_other_data_are_refused(tmp_path, monkeypatch):
  c = short()
  loop.train(c, tmp_path / "whole")
  with monkeypatch.context() as patch, pytest.raises(SystemExit, match="143"):
    stop_at(patch, 7)
    loop.train(c, tmp_path / "cut")
  with monkeypatch.context() as patch, pytest.raises(ValueError, match="holds other shards"):
    patch.setattr(tokenized, "digest", lambda _: "of others")
    loop.train(c, tmp_path / "cut")
  loop.train(c, tmp_path / "cut")
  assert kills.rows(tmp_path / "cut") == kills.rows(tmp_path / "whole")
  chex.assert_trees_all_equal(final(c, tmp_path / "cut"), final(c, tmp_path / "whole"))


def test_bad_steps_without_end_stop_the_run_and_the_checkpoints_are_good(tmp_path, monkeypatch):
  poison(monkeypatch, {i: np.nan for i in range(7, 13)})
  with pytest.raises(FloatingPointError,
                     match="step 10: 2 bad steps in a row, and no checkpoint to roll back to. Try "
                           "a smaller"):
    loop.train(short(rollback_after=2), tmp_path)
  for step in sidecar.steps(tmp_path / "checkpoints"):
    chex.assert_tree_all_finite(weights.load(tmp_path / "checkpoints", step=step)[0])


@pytest.mark.slow
def test_a_signal_in_an_evaluation_gives_it_up_and_the_resumed_run_makes_it_once(tmp_path,
                                                                                 monkeypatch):
  c = short()
  loop.train(c, tmp_path / "whole")
  for step in (6, 12):
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="143"):
      stop_at(patch, step, "evaluate")
      loop.train(c, tmp_path / "cut")
    assert sidecar.steps(tmp_path / "cut" / "checkpoints")[-1] == step
    assert not any("validation/loss" in row for row in kills.rows(tmp_path / "cut")
                   if row["step"] == step)
  for _ in range(2):  # the second leaves a finished run as it is
    loop.train(c, tmp_path / "cut")
    assert kills.rows(tmp_path / "cut") == kills.rows(tmp_path / "whole")
    assert sum("goodput/steps" in row for row in strict_rows(tmp_path / "cut")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_save_and_end_with_their_status(tmp_path, monkeypatch, number):
  c = short()
  call = loop._Run.draw
  def draw(self, i, before):
    if i == 2:
      # what a scheduler sends after the first changes nothing
      for each in (number, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), each)
    return call(self, i, before)

  monkeypatch.setattr(loop._Run, "draw", draw)
  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as stopped:
    loop.train(c, tmp_path)
  assert stopped.value.code == 128 + number and signal.getsignal(number) == before
  assert sidecar.steps(tmp_path / "checkpoints") == [3] and set(losses(tmp_path)) == {1, 2, 3}


def test_ctrl_c_before_the_first_step_ends_without_a_traceback(monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  for flag, value in {"CONFIG": short(), "WORKDIR": "run", "INIT_FROM": None,
                      "DRY_RUN": False, "ALLOW_CHANGES": False}.items():
    monkeypatch.setattr(launch, flag, types.SimpleNamespace(value=value))
  monkeypatch.setattr(launch.startup, "prepare", lambda *_, **__: None)
  monkeypatch.setattr(loop, "train", interrupted)
  with pytest.raises(SystemExit) as stopped:
    launch.main(["launch"])
  assert stopped.value.code == 128 + signal.SIGINT


@pytest.mark.slow
def test_same_seed_same_losses(tmp_path):
  for name in "ab":
    loop.train(short(), tmp_path / name)
  assert kills.rows(tmp_path / "a") == kills.rows(tmp_path / "b")
  chex.assert_trees_all_equal(final(short(), tmp_path / "a"), final(short(), tmp_path / "b"))
  c = short()
  c.seed = 1
  loop.train(c, tmp_path / "c")
  assert losses(tmp_path / "c") != losses(tmp_path / "a")


@pytest.mark.slow
def test_data_that_cannot_be_read_end_the_run_without_losing_a_step(tmp_path, monkeypatch):
  c = short()
  loop.train(c, tmp_path / "whole")
  batches = loader.train_batches

  class Failing:
    def __init__(self):
      self.inner, self.left = batches(c), 8

    def __getattr__(self, name):
      return getattr(self.inner, name)

    def __iter__(self):
      return self

    def __next__(self):
      self.left -= 1
      if self.left < 0:
        raise OSError(5, "Input/output error")
      return next(self.inner)

  with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
    patch.setattr(loader, "train_batches", lambda *_: Failing())
    loop.train(c, tmp_path / "cut")
  assert sidecar.steps(tmp_path / "cut" / "checkpoints") == [5, 8]
  loop.train(c, tmp_path / "cut")
  assert kills.rows(tmp_path / "cut") == kills.rows(tmp_path / "whole")


FULL_DISK = """
import resource, signal, sys
from hope_jax.checkpoints import checkpoint
from hope_jax.runtime import metrics
from hope_jax.training import loop
from tests.test_endurance import short

def limit(size):  # of one file: beyond it the kernel refuses the write, as a full disk does
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
c = short(on_save_error=sys.argv[2])
write, init = metrics.Metrics.write, checkpoint.Checkpoints.__init__
def keeping(self, *args):
  global waited
  waited = self
  init(self, *args)
checkpoint.Checkpoints.__init__ = keeping
def writing(self, step, values):
  if step == 7:
    waited.wait()
    limit(0)
  elif step == 11:
    limit(resource.RLIM_INFINITY)
  write(self, step, values)
metrics.Metrics.write = writing
try:
  loop.train(c, sys.argv[1])
except OSError as error:
  sys.exit(str(error))
"""


@pytest.mark.parametrize("on_error", ["warn", pytest.param("stop", marks=pytest.mark.slow)])
def test_what_cannot_be_logged_on_a_full_disk_is_said_and_training_goes_on_or_stops(tmp_path,
                                                                                    on_error):
  child = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, on_error], cwd=ROOT,
                         capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
  said = [line for line in child.stderr.splitlines() if "cannot be logged" in line]
  assert f"step 7 cannot be logged in {tmp_path}: File too large; " in said[0]
  if on_error == "stop":
    assert child.returncode == 1 and "free some space" in said[
        0] and "Traceback" not in child.stderr.partition(said[0])[0]
    assert sidecar.steps(tmp_path / "checkpoints") == [5]
  else:
    assert child.returncode == 0 and said[0].endswith("training goes on without it")
    assert sidecar.steps(tmp_path / "checkpoints") == [5,
                                                       12] and set(losses(tmp_path)) >= {1, 6, 11,
                                                                                         12}


@pytest.mark.slow
def test_killed_at_any_moment_equals_never_killed(tmp_path):
  rng = random.Random(1)
  assert kills.start(tmp_path / "whole")[0] == 0
  calls = {"before the first save": 3, "saving": 2, "restoring": 1, "between data and step": 9,
           "evaluating": 1, "compiling": 1}
  found = [kills.kill(tmp_path / "killed", moment, call, rng.uniform(0, kills.MOMENTS[moment][2]))
           for moment, call in calls.items()]
  assert all(found) and any(kill["reached"] > kill["resumes"] > 0 for kill in found)
  assert kills.start(tmp_path / "killed")[0] == 0
  assert not kills.differences(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("moment, saved",
                         [("compile", False), ("evaluate", True), ("save", True), ("log", True)])
def test_a_process_that_gets_sigterm_ends_in_time(tmp_path, moment, saved):
  code = ("import os, sys; from evals import kills; from hope_jax.training import loop; call = "
          "getattr(loop._Run, sys.argv[2])\ndef told(*args): print('now', flush=True); return "
          "call(*args)\nsetattr(loop._Run, sys.argv[2], told); kills.child(sys.argv[1])")
  process = subprocess.Popen([sys.executable, "-c", code, tmp_path, moment], cwd=ROOT,
                             stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
  process.stdout.readline()
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  process.stdout.read()
  assert process.wait() == (128 + signal.SIGTERM if saved else -signal.SIGTERM)
  assert time.monotonic() - began < 30
  assert bool(sidecar.steps(tmp_path / "checkpoints")) == saved
