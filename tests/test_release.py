"""A release verifies, runs from its own folder, and its card says what its files say.

    python -m pytest tests/test_release.py
"""

import json
import os
import subprocess
import sys

from absl import flags
import chex
import pytest

from hope_jax import integrity, release
from hope_jax.reading import opening
from hope_jax.scoring import intervals, results
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tiny_run.save(tmp_path_factory.mktemp("run") / "run", tiny_run.configured("hope_hybrid"))
  rows = [{"step": 3, "validation/loss": 5.5}, {"step": 7, "validation/loss": 1.25,
                                                "validation/bpb": 2.5, "validation/domain/x": 9.0},
          {"step": 9, "validation/loss": 7.75}]  # of a step that is not released
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "goodput.json").write_text("{}")
  evals = folder / "evals"
  evals.mkdir()
  results.write(evals / "passkey.json", {"command": "python evals/passkey.py"}, {
      "accuracy": intervals.student([0.5, 0.75]), "rows": [{"value": 1, "low": 0, "high": 2}]})
  return folder


@pytest.fixture(scope="module")
def released(run):
  call(run, run.parent / "release", f"--evaluations={run / 'evals'}", "--licence=Apache-2.0",
       "--licences=embedded:PSF-2.0")
  return run.parent / "release"


def call(run, output, *more):
  values = flags.FlagValues()
  release.define_flags(values)
  values(["release", f"--workdir={run}", f"--output={output}", *more])
  release.main(["release"], values)


def verify(folder, capsys):
  with pytest.raises(SystemExit) as ended:
    integrity.main(["integrity", "verify", str(folder)])
  return ended.value.code, capsys.readouterr().out


def test_it_has_the_same_parameters_and_verifies(run, released, capsys):
  (_, ours, mine), (_, theirs, words) = opening.load(run), opening.load(released)
  chex.assert_trees_all_equal(ours, theirs)
  assert mine.digest == words.digest
  code, said = verify(released, capsys)
  assert code == 0 and f"{released}: a release, good" in said


def test_the_card_says_what_the_files_say(released):
  card = (released / "README.md").read_text()
  assert "| bpb | 2.5000 |" in card and "| loss | 1.2500 |" in card and "domain" not in card
  entry = json.loads((released / "evaluations" / "passkey.json").read_text())["accuracy"]
  assert f"| accuracy | {entry['value']:.4f} ({entry['low']:.4f} to {entry['high']:.4f}) |" in card
  assert "Step 7; " in card and "licence: Apache-2.0" in card
  assert "`python evals/passkey.py`" in card
  assert "| embedded | embedded | PSF-2.0 |" in card and "rows" not in card


def test_a_file_that_was_changed_is_named(released, capsys):
  path = released / "metrics.jsonl"
  before = path.read_text()
  path.write_text(before.replace("2.5", "2.4"))
  code, said = verify(released, capsys)
  path.write_text(before)
  assert code == 1 and "metrics.jsonl: differs from what was written" in said


def test_it_runs_in_a_folder_without_anything_else(released, tmp_path):
  ended = subprocess.run(
      [sys.executable, "-m", "hope_jax.generate", f"--checkpoint={released}", "--prompt=read",
       "--tokens=3", "--temperature=0"], cwd=tmp_path, capture_output=True, text=True,
      env=os.environ | {"HOME": str(tmp_path)})
  assert ended.returncode == 0 and "3 written" in ended.stderr, ended.stderr


@pytest.mark.parametrize("more, message", [
    (["--licences=web:MIT"], "no source is called web; there are embedded"),
    (["--licences=MIT"], "write SOURCE:LICENCE"),
    (["--evaluations=none.json"], "none.json is no file of results"),
    (["--evaluations={run}/other"], "x.json is of another model .f00d, this one is")])
def test_what_does_not_fit(run, tmp_path, more, message):
  (run / "other").mkdir(exist_ok=True)
  (run / "other" / "x.json").write_text('{"fingerprint": "f00d"}')
  with pytest.raises(SystemExit, match=message):
    call(run, tmp_path / "release", *(text.format(run=run) for text in more))
  assert not any(tmp_path.iterdir())


def test_nothing_is_replaced_and_nothing_half_stays(run, released, tmp_path, monkeypatch):
  with pytest.raises(SystemExit, match="is there already: choose another --output"):
    call(run, released)
  monkeypatch.setattr(release, "card", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    call(run, tmp_path / "release")
  assert not any(tmp_path.iterdir())
