"""Laws of the sidecars: whatever happens to a step's file is named, and the step is not loaded."""

import hashlib
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config, integrity
from hope_jax.checkpoints import arrays, sidecar, stored, weights
from hope_jax.checkpoints.checkpoint import Checkpoints
from hope_jax.model.state import TrainState
from hope_jax.reading import conversation

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = b"a tokenizer"
META = {"config": config.to_json(config.base()), "tokenizer": hashlib.sha256(TOKENIZER).hexdigest()}
OWNER = {"fingerprint": "model", "levels": {}}


def state(step):
  """Tells its step in every array."""
  value = jnp.full((3, 4), step, jnp.float32)
  return TrainState(jnp.int32(step), {"layer": {"w": value}}, (value + 1,), jax.random.key(step),
                    {"clock": value + 2})


def flip(path):
  """One bit, in the middle of the file."""
  data = bytearray(path.read_bytes() or b"\0")
  data[len(data) // 2] ^= 0x20  # in a text, another case of a letter
  path.write_bytes(data)


def shorten(path):
  """By one byte; what was empty gets one."""
  data = path.read_bytes()
  path.write_bytes(data[:-1] if data else b"x")


def files(folder):
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with the steps 1 and 2, never changed."""
  workdir = tmp_path_factory.mktemp("run")
  (workdir / "config.json").write_text(META["config"])
  (workdir / "tokenizer.model").write_bytes(TOKENIZER)
  with Checkpoints(workdir / "checkpoints", keep=2) as saved:
    for step in (1, 2):
      saved.save(step, state(step), {"next": step}, META)
      saved.rate(step, 3 / step)
  return workdir


@pytest.fixture
def copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / "run")


def verify(path, capsys):
  """(exit status, lines) of the program."""
  with pytest.raises(SystemExit) as exit:
    integrity.main(["integrity", "verify", str(path)])
  return exit.value.code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("damage, what",
                         [(flip, "(differs|has grown)"), (Path.unlink, "is missing"),
                                          (shorten, "(is truncated|has grown|differs)")],
                         ids=["flipped", "missing", "truncated"])
def test_any_file_damaged_is_named_and_the_step_before_is_restored(copy, damage, what, capsys):
  steps = copy / "checkpoints"
  names = files(steps / "2")
  assert {"integrity.json", "meta/data.json", "iterator/data.json",
          "params/manifest.ocdbt"} <= set(names) and len(names) > 15
  for name in names:
    whole = shutil.copytree(steps / "2", copy / "whole")
    damage(steps / "2" / name)
    code, lines = verify(copy, capsys)
    assert code == 1 and lines[0].startswith(f"{steps}/1: good"), name
    assert lines[1] == f"{steps}/2: DAMAGED, 1 file(s)" and re.match(f"  {name}: {what}",
                                                                     lines[2]), lines
    with Checkpoints(steps, keep=2) as saved:
      with pytest.raises(ValueError,
                         match=f"{steps}/2 is damaged .{name}: .*: bring it back from a copy"):
        saved.restore(2, state(0))
      assert saved.newest_good() == 1, name
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"step 2 is damaged ({name}: " in said[
        0] and "kept as 2.damaged, going on from step 1" in said[0]
    assert sidecar.check(steps / "2.damaged")
    shutil.rmtree(steps / "2.damaged")
    os.rename(whole, steps / "2")
  assert verify(copy, capsys)[0] == 0


def test_a_run_that_fell_back_goes_on_and_writes_the_damaged_step_again(copy, capsys):
  steps = copy / "checkpoints"
  for again in ("2.damaged", "2.damaged-1"):
    flip(steps / "2" / "train" / "manifest.ocdbt")
    with Checkpoints(steps, keep=2) as saved:
      found = saved.newest_good()
      restored, position, meta = saved.restore(found, jax.eval_shape(lambda: state(0)))
      assert position == {"next": 1} and meta == META and restored.step == 1 and np.all(
          restored.fast["clock"] == 3)
      assert saved.save(2, state(2), {"next": 2}, META)
    assert sidecar.steps(steps) == [1, 2] and (steps / again).is_dir()
    assert Checkpoints(steps, keep=2).newest_good() == 2
  assert "train/manifest.ocdbt: differs" in capsys.readouterr().err


def test_evaluations_fall_back_too_and_hash_what_they_read(copy, capsys):
  steps = copy / "checkpoints"
  shorten(steps / "2" / "train" / "manifest.ocdbt")  # no business of an evaluation
  assert np.all(weights.load(steps)[0]["layer"]["w"] == 2) and not capsys.readouterr().err
  flip(steps / "2" / "params" / "manifest.ocdbt")
  before = files(steps)
  assert np.all(weights.load(steps)[0]["layer"]["w"] == 1)
  assert capsys.readouterr().err == (f"{steps}: step 2 is damaged (params/manifest.ocdbt: differs "
                                     "from what was written): reading step 1\n")
  assert files(steps) == before
  with pytest.raises(ValueError, match=f"{steps}/2 is damaged .params/manifest.ocdbt: differs"):
    weights.load(steps, step=2)
  flip(steps / "2" / "meta" / "data.json")
  assert stored.read_meta(
      steps) == META and "step 2 is damaged (meta/data.json: " in capsys.readouterr().err
  with pytest.raises(ValueError, match="meta/data.json"):
    stored.read_meta(steps, 2)


def test_without_a_good_step_the_error_names_the_files_and_nothing_is_moved(copy):
  steps = copy / "checkpoints"
  (steps / "1" / "integrity.json").unlink()
  (steps / "2" / "params" / "_METADATA").unlink()
  before = files(steps)
  for read in (Checkpoints(steps, keep=2).newest_good, lambda: weights.load(steps)):
    with pytest.raises(ValueError,
                       match="is good: step 2: params/_METADATA: is missing; step 1: "
                             "integrity.json: is missing: "):
      read()
  assert files(steps) == before


def test_a_conversation_that_is_damaged_is_refused(tmp_path, capsys):
  fast = {"clock": jnp.ones(3)}
  conversation.save(tmp_path / "talk", fast, OWNER)
  assert verify(tmp_path / "talk", capsys)[0] == 0
  for name in files(tmp_path / "talk" / "0"):
    damaged = shutil.copytree(tmp_path / "talk", tmp_path / "damaged" / name.replace("/", "_"))
    flip(damaged / "0" / name)
    code, lines = verify(damaged, capsys)
    assert code == 1 and lines[1].startswith(f"  {name}: ")
    with pytest.raises(ValueError, match=f"no step in {damaged} is good: step 0: {name}: "):
      conversation.load(damaged, fast, OWNER)


def test_verify_reads_a_run_its_checkpoints_or_one_step_and_names_every_file(copy, capsys):
  steps = copy / "checkpoints"
  assert [len(verify(path, capsys)[1]) for path in (copy, steps, steps / "2")] == [2, 2, 1]
  (steps / "2" / "params" / "more").write_text("")
  shorten(steps / "2" / "_CHECKPOINT_METADATA")
  size = (steps / "1" / "_CHECKPOINT_METADATA").stat().st_size
  flip(steps / "2" / "meta" / "data.json")
  with open(steps / "2" / "iterator" / "data.json", "a") as file:
    file.write(" ")
  assert verify(steps / "2", capsys) == (1, [
      f"{steps}/2: DAMAGED, 3 file(s)", f"  _CHECKPOINT_METADATA: is truncated: {size - 1} of "
                                        f"{size} bytes",
      "  iterator/data.json: has grown: 12 of 11 bytes",
      "  meta/data.json: differs from what was written"])
  (steps / "1" / "integrity.json").unlink()
  code, lines = verify(steps / "1", capsys)
  assert code == 1 and "integrity.json: is missing" in lines[1]
  with pytest.raises(SystemExit, match=f"no saved step in {copy}/nowhere: give a run"):
    integrity.main(["", "verify", str(copy / "nowhere")])


def test_verify_looks_at_the_files_beside_the_checkpoints(copy, capsys):
  flip(copy / "config.json")
  code, lines = verify(copy, capsys)
  # a restart may change it
  assert code == 0 and lines[-1].startswith("  config.json: is not that of step 2")
  flip(copy / "tokenizer.model")
  code, lines = verify(copy, capsys)
  assert code == 1
  assert "  tokenizer.model: differs from the one that step 2 was trained with" in lines
  (copy / "tokenizer.model").unlink()
  assert verify(copy, capsys)[0] == 1


def test_the_program_runs_without_jax(copy):
  code = ("import sys; sys.modules['jax'] = None; from hope_jax import integrity; "
          "sys.argv = ['integrity', 'verify', sys.argv[1]]; integrity.run()")
  for damaged in (False, True):
    if damaged:
      flip(copy / "checkpoints" / "1" / "meta" / "data.json")
    child = subprocess.run([sys.executable, "-c", code, copy], cwd=ROOT, capture_output=True,
                           text=True)
    assert child.returncode == damaged and (
        "meta/data.json: differs" in child.stdout) == damaged, child.stderr


def test_the_sidecar_tells_what_wrote_the_step(run, tmp_path, monkeypatch):
  one, two = (sidecar.read(run / "checkpoints" / step) for step in "12")
  assert one["step"] == 1 and one["metric"] == 3 and one["tokenizer"] == META["tokenizer"]
  assert one["config"] == sidecar.sha256(run / "config.json")
  assert one["rng"] == arrays.fingerprint({"rng": jax.random.key_data(jax.random.key(1))}) != two[
      "rng"]
  assert one["code"] == two["code"] == sidecar.code_version()
  sources = shutil.copytree(ROOT / "hope_jax", tmp_path / "hope_jax")
  monkeypatch.setattr(sidecar, "PACKAGE", sources)
  assert sidecar.code_version() == one["code"]
  flip(sources / "memory" / "write_rule.py")
  assert sidecar.code_version() != one["code"]


def test_a_step_has_its_name_only_when_it_is_hashed_and_training_does_not_wait(tmp_path,
                                                                               monkeypatch):
  hash_it, seal = threading.Event(), sidecar.seal

  def waiting(*args):
    assert hash_it.wait(60)
    seal(*args)

  monkeypatch.setattr(sidecar, "seal", waiting)
  saved = Checkpoints(tmp_path, keep=1)
  saved.save(1, state(1), {}, META)  # returns
  end = time.monotonic() + 20
  while not (tmp_path / "1.partial").exists() and time.monotonic() < end:
    time.sleep(0.01)
  committed, named = (tmp_path / "1.partial").exists(), sidecar.steps(tmp_path)
  hash_it.set()
  saved.wait()
  assert committed and named == []
  assert sidecar.steps(tmp_path) == [1] and not sidecar.check(tmp_path / "1")


def test_the_disk_has_a_step_before_its_name_and_its_name_before_another_is_deleted(tmp_path,
                                                                                    monkeypatch):
  done = []
  for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree")):
    def spy(first, *rest, name=name, real=getattr(module, name), **how):
      where = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first
      done.append((name, os.path.relpath(where, tmp_path)))
      return real(first, *rest, **how)
    monkeypatch.setattr(module, name, spy)
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, state(1), {}, META)
    saved.wait()
    done.clear()
    saved.save(2, state(2), {}, META)
  named, deleted = done.index(("rename", "2.partial")), [kind for kind, _ in done].index("rmtree")
  on_disk = {path for kind, path in done[:named] if kind == "fsync"}
  assert {f"2.partial/{name}"
          for name in files(tmp_path / "2")} | {"2.partial", "2.partial/params"} <= on_disk
  assert ("fsync", ".") in done[named:deleted]


def test_a_failure_while_hashing_is_a_failed_save(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path, keep=1)
  saved.save(1, state(1), {}, META)
  saved.wait()

  def full(*_):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(sidecar, "seal", full)
  saved.save(2, state(2), {}, META)
  with pytest.raises(OSError, match="saving step 2 failed: no space left in .*; step 1 is whole"):
    saved.wait()
  assert Checkpoints(tmp_path, keep=1).newest_good() == 1 and os.listdir(tmp_path) == ["1"]


KILLED = """
import sys
import jax
from tests.test_integrity import META, state
from hope_jax.checkpoints.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=2) as saved:
  start = saved.newest_good()
  if start is not None:
    assert saved.restore(start, state(0))[0].step == start
  print(start, flush=True)
  for step in range((start or 0) + 1, 100_000):
    saved.save(step, state(step), {"next": step}, META)
"""


@pytest.mark.slow
def test_killed_at_any_moment_of_saving_hashing_or_deleting_there_is_a_good_step(tmp_path):
  last, moments = 0, random.Random(0)
  for _ in range(4):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().strip() == str(last or None)
    time.sleep(0.5 + moments.random())
    process.send_signal(signal.SIGKILL)
    assert "damaged" not in process.communicate()[1]
    found = sidecar.steps(tmp_path)
    assert 1 <= len(found) <= 3 and found[-1] > last
    assert not any(sidecar.check(tmp_path / str(step)) for step in found)
    last = found[-1]
