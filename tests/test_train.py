"""The training loop: resumed = uninterrupted, signals, and runs that must not go on."""

import errno
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.checkpoints import sidecar, weights
from hope_jax.reading import sequences
from hope_jax.scoring import validation
from hope_jax.training import groups, loop, steps
from hope_jax.training.activity import Activity

ROOT = Path(__file__).resolve().parents[1]


def small(folder, **fields):
  c = config.base()
  c.model.dim, c.model.layers, c.model.heads, c.model.vocab, c.model.dropout = 16, 2, 2, 310, 0.1
  c.selfmod.memory = "linear"
  c.selfmod.chunk_generators = c.selfmod.chunk_memory = c.data.align = 16
  c.data.seq, c.data.batch = 32, 4
  c.data.dir = str(folder / "data")
  text = folder / "text"
  text.mkdir(exist_ok=True)
  for i in range(40):
    words = "read write memory chunk token slow fast level query value".split()
    lines = [f"def {words[(i + j) % 10]}_{words[(i * j) % 10]}(x):\n  return {words[j % 10]}(x) + "
             f"{i}\n" for j in range(i % 7 + 1)]
    (text / f"{i}.txt").write_text("".join(lines))
  source = c.data.sources[0].copy_and_resolve_references()
  source.update(dict(name="notes", kind="text", path=str(text), field=""))
  c.data.sources, c.data.val_fraction = (source,), 0.2
  # a period of four steps, which is saved in its middle
  c.channel.levels = (config.Level("fast", 0), config.Level("slow", 128))
  c.optim.warmup = 2
  c.train.update(steps=12, log_every=1, eval_every=6, eval_batches=2, save_every=5)
  for name, value in fields.items():
    section, field = name.split("__")
    c[section][field] = value
  return c


def small_transformer():
  c = config.base()
  c.model.pattern, c.channel.kind = ("attention",), "swiglu"
  c.model.dim, c.model.layers, c.model.heads, c.model.vocab = 16, 1, 1, 310
  c.data.seq, c.data.align, c.data.batch = 32, 16, 4
  return c


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def last_params(workdir):
  params, _, _ = weights.load(workdir / "checkpoints")
  return params


def poison(monkeypatch, factors):
  """Multiplies a step's loss and gradients; `factors`: by step, from 1."""
  learn = sequences.learn
  def poisoned(config, params, batch, rng, step):
    loss, stats, gradients = learn(config, params, batch, rng, step)
    factor = jnp.ones(100).at[jnp.array(list(factors))
                              - 1].set(jnp.array(list(factors.values())))[step]
    return loss * factor, stats, jax.tree.map(lambda g: g * factor, gradients)
  monkeypatch.setattr(sequences, "learn", poisoned)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that was never stopped: (folder, config, workdir, result)."""
  folder = tmp_path_factory.mktemp("whole")
  c = small(folder, data__carry=True)
  return folder, c, folder / "run", loop.train(c, folder / "run")


def test_run_ends_with_an_evaluation_beside_the_bigram(whole):
  _, c, workdir, result = whole
  assert set(losses(workdir)) == set(range(1, 13))
  assert 0 < result["bpb"] < 20 and 0 < result["bigram_bpb"] < 20
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert all(row["memory/1/moved/mem"] > 0 for row in rows if "train/loss" in row)
  assert sidecar.steps(workdir / "checkpoints") == [10, 12]
  assert [sidecar.read(workdir / "checkpoints" / step)["metric"]
          for step in ("10", "12")] == [None, result["loss"]]
  assert config.to_json(config.load(workdir / "config.json")) == config.to_json(c)
  assert (workdir / "tokenizer.model").exists() and list((workdir / "tb").iterdir())


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit_in_the_middle_of_an_epoch(whole, monkeypatch):
  folder, c, workdir, result = whole
  part = folder / "part"

  class Stop(Exception):
    pass

  def stop_at(limit):
    log = loop._Run.log
    def stopping(self, finished):
      log(self, finished)
      if finished[0] == limit:
        raise Stop
    monkeypatch.setattr(loop._Run, "log", stopping)
    return log

  for limit in (7, 11):  # after the checkpoints of steps 5 and 10
    log = stop_at(limit)
    with pytest.raises(Stop):
      loop.train(c, part)
    monkeypatch.setattr(loop._Run, "log", log)
  again = loop.train(c, part)
  assert losses(part) == losses(workdir)
  chex.assert_trees_all_equal(last_params(part), last_params(workdir))
  assert again == result


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(whole):
  _, c, workdir, result = whole
  before = (workdir / "metrics.jsonl").read_text().count("train/loss")
  assert loop.train(c, workdir) == result
  assert (workdir / "metrics.jsonl").read_text().count("train/loss") == before


def test_sigterm_saves_and_the_same_command_resumes(whole):
  folder, c, workdir, _ = whole
  other = small_transformer()
  other.data, other.train.log_every = c.data, 1
  (folder / "long.json").write_text(config.to_json(other))
  run = folder / "killed"
  code = ("import sys; from hope_jax import config; from hope_jax.training import loop; c = "
          "config.load(sys.argv[1]); c.train.steps = 100000; c.train.eval_every = "
          "c.train.save_every = 100000; loop.train(c, sys.argv[2])")
  process = subprocess.Popen([sys.executable, "-c", code, folder / "long.json", run], cwd=ROOT,
                             stderr=subprocess.PIPE,
                             text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
  for line in process.stderr:
    if line.startswith("step"):
      process.send_signal(signal.SIGTERM)
      break
  rest = process.stderr.read()
  assert process.wait(60) == 128 + signal.SIGTERM and "the same command resumes" in rest
  step = sidecar.steps(run / "checkpoints")[-1]
  assert step == max(losses(run))


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run_and_saves_nothing(whole, monkeypatch):
  folder, run = whole[0], whole[0] / "diverged"
  c = small(folder)
  poison(monkeypatch, {6: np.nan})
  with pytest.raises(FloatingPointError,
                     match="step 6: loss nan.*Checkpoint 5 is good.*, with --allow_changes, a"):
    loop.train(c, run)
  assert sidecar.steps(run / "checkpoints") == [5]


@pytest.mark.slow
def test_a_run_goes_on_from_the_step_before_a_damaged_one(whole, capsys):
  folder, c, workdir, result = whole
  run = shutil.copytree(workdir, folder / "damaged")
  next((run / "checkpoints" / "12" / "train" / "d").iterdir()).write_bytes(b"not what was written")
  assert loop.train(c, run) == result
  said = capsys.readouterr().err
  assert "step 12 is damaged (train/d/" in said
  assert "kept as 12.damaged, going on from step 10" in said
  assert sorted(os.listdir(run / "checkpoints")) == ["10", "12",
                                                     "12.damaged"] and losses(run) == losses(
                                                         workdir)


@pytest.mark.slow
def test_a_save_that_fails_may_be_passed_over_but_not_the_last(whole, monkeypatch, capsys):
  folder, c, workdir, _ = whole
  seal = sidecar.seal

  def full(folder, facts):
    if facts["step"] in broken:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    seal(folder, facts)

  monkeypatch.setattr(sidecar, "seal", full)
  broken, run = {10}, folder / "full"
  c.train.on_save_error = "warn"
  try:
    loop.train(c, run)
    assert sidecar.steps(run / "checkpoints") == [5, 12] and losses(run) == losses(workdir)
    assert "saving step 10 failed: no space left" in capsys.readouterr().err
    broken, run = {5, 12}, folder / "full_at_the_end"
    with pytest.raises(OSError, match="saving step 12 failed"):  # the run would be lost
      loop.train(c, run)
  finally:
    c.train.on_save_error = "stop"


def test_workdir_of_another_model_is_refused(whole):
  folder, _, workdir, _ = whole
  other = small(folder, data__carry=True, model__dim=32)
  with pytest.raises(ValueError, match="model.dim 16 -> 32 .another model, .*--allow_changes"):
    loop.train(other, workdir)
  with pytest.raises(ValueError, match="checkpoint of another architecture(.|\n)*another workdir"):
    loop.train(other, workdir, allow_changes=True)


def test_workdir_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path):
  (tmp_path / "file").write_text("")
  c = small(tmp_path)
  with pytest.raises(OSError, match="cannot be written"):
    loop.train(c, tmp_path / "file" / "run")
  assert not Path(c.data.dir).exists()


@pytest.mark.slow
def test_gradient_accumulation_changes_nothing():
  c = small_transformer()
  state = steps.init_state(c, jax.random.key(0))
  batch = {name: np.random.default_rng(1).integers(1, 9, (4, 32))
           for name in ("tokens", "labels", "segments")}
  batch["segments"][:] = 1
  batch["labels"][0, :20] = -1  # pieces with different numbers of labels
  c.optim.accumulate = 2
  pieces, out = steps.make_train_step(c)(jax.tree.map(jnp.copy, state), batch)
  c.optim.accumulate = 1
  whole, want = steps.make_train_step(c)(state, batch)
  chex.assert_trees_all_close((pieces.params, out["loss"], out["grad_norm"]),
                              (whole.params, want["loss"], want["grad_norm"]), rtol=1e-4, atol=1e-6)


def test_a_memory_that_makes_no_update_fails_the_evaluation():
  with pytest.raises(RuntimeError, match="memory mem made no update"):
    validation.check_updates([{"moved/k": 0.1, "moved/mem": 0.0},
                              {"moved/k": 0.0, "moved/mem": 0.0}])
  validation.check_updates([{"moved/k": 0.0}, {"moved/k": 1e-9}])


def test_gates_that_stay_closed_are_said(capsys):
  seen = Activity(config.base())
  def report(opened):
    return {"open/cms_fast": np.array([0.0, opened]), "surprise/cms_fast": np.array([0.1, 0.2])}
  for i in range(99):
    seen.see(i, report(0), {})
  seen.see(99, report(1), {})
  for i in range(100, 199):
    seen.see(i, report(0), {})
  assert not capsys.readouterr().err
  seen.see(199, report(0), {})
  said = capsys.readouterr().err
  assert "no gate of cms_fast opened in 100 steps: its surprise is now 0.2" in said


def test_groups_of_parameters_and_what_does_nothing(tmp_path, capsys):
  """A level whose period is longer than the run, one that may not write, one that does both."""
  c = small(tmp_path)
  c.model.update(dict(config.PRESETS["hope_attention"], dim=16, layers=2, heads=1))
  c.attention.window, c.channel.in_context = 16, True
  c.channel.levels = (config.Level("fast", 16, lr=0.01), config.Level("closed", 32, lr=0.0),
                      config.Level("slow", 640))
  c.teach.update(dict(chunk=16, flush_partial=False))
  c.train.update(dict(steps=3, log_every=1, eval_every=3, save_every=3))
  loop.train(c, tmp_path / "run")
  said = capsys.readouterr().err
  params = steps.init_state(c, jax.random.key(0)).params
  sizes = groups.sizes(params)
  assert sum(sizes[group] for group in ("matrix", "embedding", "vector")) == sum(
      p.size for p in jax.tree.leaves(params))
  level = params["blocks"]["cms"]["slow"]
  assert sizes["level_slow"] == sum(p.size for p in jax.tree.leaves(level))
  assert f"vector {sizes['vector']:,}" in said and "in 3 steps level_slow did nothing: see" in said
  for row in (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()):
    if "train/grad_norm" in row:
      kinds = [row[f"gradient/{group}"] for group in ("matrix", "embedding", "vector")]
      assert sum(x * x for x in kinds) == pytest.approx(row["train/grad_norm"] ** 2, rel=1e-4)
      assert row["update/level_slow"] == 0 and row["gradient/level_slow"] > 0
      assert row["update/level_fast"] >= 0 and row["memory/0/moved/cms_fast"] > 0
