"""What fails beside the training loses nothing,
and what others put beside our files is no damage.
"""

import os
import shutil
import subprocess
import sys
import threading
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evals import curves
from hope_jax import config, export, integrity, memorize, report
from hope_jax.checkpoints import checkpoint, sidecar, weights
from hope_jax.data import heldout, loader, tokenized
from hope_jax.reading import conversation
from hope_jax.runtime import lock
from hope_jax.scoring import results, validation
from hope_jax.training import loop, steps
from tests.test_train import losses, small

QUICK = dict(model__pattern=("gru",), model__dropout=0.0, channel__kind="swiglu", train__steps=3)
STRAYS = (".DS_Store", "Thumbs.db", "params/._manifest.ocdbt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(configuration, workdir) of three steps."""
  folder = tmp_path_factory.mktemp("run")
  c = small(folder, **QUICK, train__eval_every=3)
  loop.train(c, folder / "run")
  return c, folder / "run"


@pytest.mark.parametrize("error", [
    RuntimeError("memory mem made no update in the whole evaluation"),
    RuntimeError("RESOURCE_EXHAUSTED: out of memory"), OSError(5, "Input/output error")])
def test_an_evaluation_that_fails_costs_no_step(run, tmp_path, monkeypatch, capsys, error):
  def fail(*_):
    raise error

  monkeypatch.setattr(validation, "evaluate", fail)
  c = run[0].copy_and_resolve_references()
  assert loop.train(c, tmp_path / "run") == {}
  said = capsys.readouterr().err
  assert f"the evaluation of step 3 failed: {type(error).__name__}" in said
  assert losses(tmp_path / "run") == losses(run[1])
  assert sidecar.steps(tmp_path / "run" / "checkpoints") == [3]


def test_an_evaluation_that_fails_stops_a_run_where_it_is_to(run, tmp_path, monkeypatch):
  def fail(*_):
    raise RuntimeError("memory mem made no update")

  monkeypatch.setattr(validation, "evaluate", fail)
  c = run[0].copy_and_resolve_references()
  c.train.on_evaluation_error = "stop"
  with pytest.raises(RuntimeError, match="made no update"):
    loop.train(c, tmp_path / "run")
  assert sidecar.steps(tmp_path / "run" / "checkpoints") == [3]  # saved before


@pytest.mark.parametrize("fraction", [0.0, 1e-9])
def test_a_run_without_validation_documents_says_so_at_the_start(tmp_path, capsys, fraction):
  c = small(tmp_path, **QUICK, train__eval_every=1)
  c.data.val_fraction = fraction
  loop.train(c, tmp_path / "run")
  said = capsys.readouterr().err
  assert "there will be no evaluation" in said and "raise data.val_fraction" in said
  assert said.index("there will be no evaluation") < said.index("step 1/3")
  assert sidecar.steps(tmp_path / "run" / "checkpoints") == [3]
  c.train.on_evaluation_error = "stop"
  with pytest.raises(ValueError, match="no validation document"):
    loop.train(c, tmp_path / "stops")
  assert not sidecar.steps(tmp_path / "stops" / "checkpoints")


@pytest.mark.parametrize("rollback_after, name", [(0, "adamw"), (3, "muon")])
def test_a_batch_without_labels_is_an_empty_step(rollback_after, name):
  c = config.base()
  c.model.update(dict(pattern=("gru",), dim=8, layers=1, heads=1, vocab=9))
  c.data.update(dict(seq=16, align=16, batch=2))
  c.train.rollback_after, c.optim.name, c.optim.warmup = rollback_after, name, 0
  step = steps.make_train_step(c)
  tokens = jnp.ones((2, 16), jnp.int32)
  batch = {"tokens": tokens, "labels": tokens, "segments": tokens}
  state, _ = step(steps.init_state(c, jax.random.key(0)), batch)
  before = jax.device_get(state.replace(rng=None))
  state, out = step(state, batch | {"labels": -tokens})
  assert out["loss"] == out["labels"] == out["grad_norm"] == 0
  after = jax.device_get(state.replace(rng=None))
  jax.tree.map(np.testing.assert_array_equal, after, before.replace(step=before.step + 1))
  state, out = step(state, batch)
  assert out["loss"] > 0 and state.guard.applied == 2


def test_documents_of_one_token_each_are_trained_past(tmp_path, capsys):
  """Between others: their windows have no label, in training and in the evaluation."""
  c = small(tmp_path, **QUICK, data__batch=1, train__eval_every=3, train__eval_batches=1)
  batches = loader.train_batches

  def emptied(*args):
    for i, batch in enumerate(batches(*args)):
      yield batch | ({"labels": np.full_like(batch["labels"], -1)} if i == 1 else {})

  class Batches:
    def __init__(self, *args):
      self._own = emptied(*args)
      self.get_state, self.set_state = dict, lambda state: None

    def __iter__(self):
      return self

    def __next__(self):
      return next(self._own)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loader, "train_batches", Batches)
    result = loop.train(c, tmp_path / "run")
  assert result["loss"] > 0 and "nan" not in capsys.readouterr().err


def test_a_step_has_its_loss_although_it_was_saved_before(run):
  step = run[1] / "checkpoints" / "3"
  assert sidecar.metric(step) > 0 and not sidecar.check(step)


@pytest.mark.parametrize("name", STRAYS)
def test_stray_files_are_ignored_and_said(run, tmp_path, capsys, name):
  c, workdir = run
  shutil.copytree(workdir, tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "3" / name).write_bytes(b"\0\1")
  (tmp_path / "run" / "checkpoints" / "._3").write_bytes(b"\0")
  params, _, _ = weights.load(tmp_path / "run" / "checkpoints")
  jax.tree.map(np.testing.assert_array_equal, params,
               weights.load(workdir / "checkpoints")[0])
  assert f"{name}: not written with the step, and ignored" in capsys.readouterr().err
  with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as saved:
    assert saved.newest_good() == 3
  assert name in capsys.readouterr().err
  with pytest.raises(SystemExit, match="0"):
    integrity.main(["", "verify", str(tmp_path / "run")])
  assert f"  {name}: was not written with the step, and is ignored" in capsys.readouterr().out
  loop.train(c, tmp_path / "run")  # goes on, and finds nothing to do
  assert not list((tmp_path / "run" / "checkpoints").glob("*.damaged*"))


@pytest.mark.parametrize("between", [" ", ","])
def test_a_document_of_one_line_trains_a_tokenizer(between):
  text = between.join(["memory"] * 3000)
  pieces = list(tokenized._lines(f"short\n{text}\n\nend"))
  assert "".join(pieces) == f"short\n{text}\n\nend" and max(map(len, pieces)) <= 4096
  assert pieces[0] == "short\n" and pieces[-1] == "end" and len(pieces) > 6
  assert between == "," or pieces[1].endswith("memory ")


HOLDER = """
import sys, time
from hope_jax.runtime import lock
with lock.held(sys.argv[1], "another"):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_lock_says_who_holds_it_and_ends_with_its_process(tmp_path):
  path = tmp_path / ".lock"
  with lock.held(path, "another --workdir"):
    assert lock.is_held(path)
    with pytest.raises(BlockingIOError,
                       match=f"in use by process {os.getpid()} on .*choose another --workdir"):
      with lock.held(path, "another --workdir"):
        pass
  assert not path.exists() and not lock.is_held(path)
  other = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
  assert other.stdout.readline() == "held\n"
  with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
    with lock.held(path, "another"):
      pass
  other.kill()
  other.wait()
  with lock.held(path, "another"):  # its file is there, its lock is not
    pass


def test_a_second_run_in_a_workdir_is_refused_and_changes_nothing(run, tmp_path):
  c, workdir = run
  shutil.copytree(workdir, tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "9.partial").mkdir()  # being written
  with lock.held(tmp_path / "run" / ".lock", "another --workdir"):
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(OSError, match="in use by process .*choose another --workdir"):
      loop.train(c, tmp_path / "run")
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before
  loop.train(c, tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints" / "9.partial").exists()


def test_what_a_killed_data_build_left_is_cleaned_and_what_another_builds_is_not(tmp_path):
  c = small(tmp_path)
  left, other = (tmp_path / f".data.host-{i}-build" for i in (1, 2))
  for folder in (left, other):
    folder.mkdir()
    (folder / "tokens").write_bytes(b"x")
  with lock.held(f"{other}.lock", "another"):
    tokenized.build(c)
  assert not left.exists() and other.exists()
  assert sorted(path.name for path in tmp_path.glob(".data*")) == [other.name]


def builders(c, together):
  """Two threads that build the same folder; what became of each."""
  told = []

  def build():
    try:
      told.append(tokenized.build(c, together=together))
    except BlockingIOError as error:
      told.append(str(error))

  both = [threading.Thread(target=build) for _ in range(2)]
  for each in both:
    each.start()
  for each in both:
    each.join()
  return told


@pytest.mark.parametrize("together", [False, True])
def test_of_two_builders_one_builds(tmp_path, monkeypatch, capsys, together):
  """The other is refused; of one run's processes it waits and takes the first one's folder."""
  c, write, built = small(tmp_path), tokenized._write, []

  def slow(partial, config):
    built.append(partial)
    time.sleep(0.5)
    write(partial, config)

  monkeypatch.setattr(tokenized, "_write", slow)
  told = builders(c, together)
  assert len(built) == 1 and not list(tmp_path.glob(".data*"))
  said = f"{tmp_path / 'data'} is in use by process {os.getpid()} on "
  if not together:
    refused, = (text for text in told if isinstance(text, str))
    assert refused.startswith(said) and refused.endswith("choose another data.dir")
  else:
    assert told == [tmp_path / "data"] * 2 and f"waiting: {said}" in capsys.readouterr().err
  assert tokenized.build(c, verify=True) == tmp_path / "data"


def test_a_second_process_that_learns_into_a_state_is_refused_before_it_reads(tmp_path):
  """None of the inputs is there: what is said is of the state."""
  with conversation.writing(tmp_path / "state"):
    with pytest.raises(BlockingIOError, match="state is in use by process .*another folder"):
      with conversation.writing(tmp_path / "state"):
        pass
    values = flags.FlagValues()
    memorize.define_flags(values)
    values(["memorize", f"--state={tmp_path / 'state'}", "--drop=x"])
    with pytest.raises(SystemExit, match="state is in use by process"):
      memorize.main(["memorize"], values)
  assert not any((tmp_path / "state").iterdir())


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
  """None of the inputs is there: what is said is of the output."""
  (tmp_path / "file").touch()
  (tmp_path / "folder").mkdir()
  for output in (tmp_path / "file" / "out", tmp_path / "folder"):
    for write in (lambda: export.write(tmp_path / "none", output), lambda: results.ready(output)):
      with pytest.raises(OSError, match=f"{output} cannot be written: .*; choose another file"):
        write()
  with pytest.raises(OSError, match="cannot be written"):
    with conversation.writing(tmp_path / "file" / "state"):
      pass
  for name in ("file/out.png", "folder", "out.nothing"):
    values = flags.FlagValues()
    report.define_flags(values)
    values(["report", f"--memorized={tmp_path / 'none'}", f"--output={tmp_path / name}"])
    with pytest.raises(SystemExit, match="cannot be written" if "nothing" not in name else "none"):
      report.main(["report"], values)


def test_a_copy_is_whole_or_as_it_was(tmp_path, monkeypatch):
  (tmp_path / "new").write_bytes(b"new")
  (tmp_path / "there").write_bytes(b"old")

  def cut(source, target):
    with open(target, "wb") as file:
      file.write(b"n")
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch, pytest.raises(OSError):
    patch.setattr(shutil, "copy", cut)
    sidecar.copy(tmp_path / "new", tmp_path / "there")
  assert (tmp_path / "there").read_bytes() == b"old"
  sidecar.copy(tmp_path / "new", tmp_path / "there")
  assert (tmp_path / "there").read_bytes() == b"new"


def test_metrics_of_a_killed_run_are_drawn(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert curves.read(str(tmp_path), "loss") == {1: 2.0}
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n')
  with pytest.raises(ValueError, match="metrics.jsonl, line 2: "):
    curves.read(str(tmp_path), "loss")


@pytest.mark.parametrize("ending", ["ndjson", "JSONL.bz2", "json.xz", "jsonl.gz"])
def test_held_out_json_lines_are_those_of_training(tmp_path, ending):
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts" / f"a.{ending}").touch()
  (source, _), = heldout.sources([str(tmp_path / "texts")], "text", (), 0.1)
  assert source.kind == "jsonl"
