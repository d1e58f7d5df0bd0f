"""Evaluations while training: of the step that is saved; one that fails loses nothing."""

import json
import os
import signal

import pytest

from hope_jax import config
from hope_jax.checkpoints import sidecar
from hope_jax.scoring import programs
from hope_jax.training import evaluations, loop
from tests import small_data


def small(folder, **train):
  c = small_data.small(folder)
  c.model.update(dict(config.PRESETS["transformer"], dim=16, layers=1, heads=1))
  c.channel.kind, c.attention.window = "swiglu", 16
  c.data.update(dict(seq=32, batch=2))
  c.train.update(dict(steps=4, log_every=1, eval_every=4, eval_batches=1, save_every=2, keep=9)
                 | train)
  return c


def metrics(workdir):
  """{step: {name: value}} of all that was logged."""
  found = {}
  for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
    found.setdefault(row["step"], {}).update(row)
  return found


def test_a_saved_step_is_scored_and_a_failure_loses_nothing(built, tmp_path, capfd,
                                                                  monkeypatch):
  found = (f"--haystack={built / 'words'} --lengths=160 --depths=0.5 --samples=2 --batch=2 "
           "--nocontrol")
  c = small(built, evaluations=(f"passkey:2 {found}", "niah:4 --lengths=9"))
  loop.train(c, tmp_path)
  said = capfd.readouterr().err
  assert "niah of step 4 failed: ValueError: what is to be found takes" in said
  assert "training goes on" in said and sidecar.steps(tmp_path / "checkpoints") == [2, 4]
  for step in (2, 4):
    result = json.loads((tmp_path / "evaluations" / f"{step}_passkey.json").read_text())
    assert result["checkpoint"] == str(tmp_path / "checkpoints" / str(step))
    assert metrics(tmp_path)[step]["evaluation/passkey/baseline"] == (
        result["lengths"][0]["choice"]["baseline"]["value"])
  assert metrics(tmp_path)[4]["evaluation/niah/failed"] == 1
  prints = [json.loads((tmp_path / "evaluations" / f"{step}_passkey.json").read_text())[
      "fingerprint"] for step in (2, 4)]
  assert prints[0] != prints[1]

  # a signal gives it up; the run that goes on makes it up, and stops at a failure if it is to
  (tmp_path / "evaluations" / "4_passkey.json").unlink()
  def killed(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the signal did not end it")
  with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
    patch.setattr(programs, "call", killed)
    loop.train(c, tmp_path)
  assert ended.value.code == 128 + signal.SIGTERM
  assert not (tmp_path / "evaluations" / "4_passkey.json").exists()
  with pytest.raises(RuntimeError, match="what is to be found takes"):
    loop.train(small(built, evaluations=c.train.evaluations, on_evaluation_error="stop"), tmp_path)
  assert (tmp_path / "evaluations" / "4_passkey.json").exists()


@pytest.mark.parametrize("text, told", [
    ("niah", "is no evaluation: write"), (3, "is no evaluation"), ("niah:0", "is no evaluation"),
    ("nia:2", "there is no nia: choose of niah, passkey"),
    ("niah:3", "train.save_every=2: set it to a multiple")])
def test_what_cannot_be_run_is_refused_at_the_start(tmp_path, text, told):
  c = config.base()
  c.train.update(dict(evaluations=(text,), save_every=2))
  with pytest.raises(ValueError, match=told):
    evaluations.entries(c)
  c.train.evaluations = ()
  assert config.from_json(config.to_json(c)).train.evaluations == ()
