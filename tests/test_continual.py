"""Laws of evals/continual.py on a tiny model: the matrix is that of readings by hand."""

import json
from pathlib import Path
import sys

from absl import flags
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.model.state import select
from hope_jax.reading import opening, study
from hope_jax.reports import learned
from hope_jax.scoring import memorization, segments, sequence
from tests import tiny_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import continual as program

SHORT = ("--learn_tokens=24", "--test_documents=3", "--test_tokens=16", "--batch=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run, three domains of words of their own, and the same as news of three years."""
  folder = tmp_path_factory.mktemp("continual")
  tiny_run.save(folder / "run", tiny_run.configured("hope_hybrid", scale=3.0))
  lines = {name: [{"text": f"{name} " * 4 + tiny_run.tiny_text(i)[:9], "date": f"201{n}-01"}
                  for i in range(9)] for n, name in enumerate(tiny_run.WORDS[:3])}
  for name, own in lines.items():
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
  (folder / "news.jsonl").write_text("\n".join(json.dumps(line) for own in lines.values()
                                               for line in own))
  return folder


def call(folder, name, *argv):
  values = flags.FlagValues()
  program.define_flags(values)
  program.main(values(["continual", f"--output={folder / name}", *SHORT, *argv]), values)
  return json.loads((folder / name).read_text())


def options(folder, memorize=True):
  paths = ",".join(str(folder / f"{name}.jsonl") for name in tiny_run.WORDS[:3])
  return [f"--checkpoint={folder / 'run'}", f"--domains={paths}"] + ["--memorize"] * memorize


@pytest.fixture(scope="module")
def whole(folder):
  return call(folder, "whole.json", *options(folder))


def test_the_matrix_is_that_of_readings_by_hand(folder, whole):
  """After the second segment, one document of the third: read by study.py alone."""
  config, params, tokenizer = opening.load(folder / "run")
  paths = [str(folder / f"{name}.jsonl") for name in tiny_run.WORDS[:3]]
  own = segments.cut(segments.domains(paths, "text"), tokenizer, learn=24, tests=3, tokens=16,
                     seed=0)
  learner = sequence.Learner(config, params, memorization.Options(True), own, 3)
  fast = memorization.start(learner.config, params, memorization.Options(True), 1)
  for ids in own[0].learn + own[1].learn:
    fast, _ = memorization.learn(learner.config, params, fast, [ids], memorization.Options(True))
  _, report = study.memorize(learner.config, params, select(fast, jnp.zeros(3, int)), own[2].test,
                             write=False)
  nats = (report.nats_BxT * report.labels_BxT).sum(1)
  np.testing.assert_allclose(whole["rows"][2]["nats"][2], nats, rtol=1e-4)
  bits = nats.sum() / np.log(2) / sum(own[2].sizes)
  assert whole["bits_per_byte"][2][2]["value"] == pytest.approx(bits, rel=1e-4)


def test_stages_and_bounds(folder, whole):
  names = [row["stage"] for row in whole["rows"]]
  assert names == ["before", *(f"after {name}" for name in whole["segments"]),
                   *(f"only {name}" for name in whole["segments"]), "joint"]
  first, only = whole["rows"][1], whole["rows"][4]  # both: the first segment, from a fresh state
  np.testing.assert_allclose(first["nats"][0], only["nats"][0], rtol=1e-5)
  assert all(own["updates"] > 0 for row in whole["rows"][1:] for own in row["memories"].values())
  gain = whole["frozen"]["value"] - whole["metrics"]["final"]["value"]
  assert whole["metrics"]["gain"]["value"] == pytest.approx(gain)
  assert len(whole["alone"]) == 3 and {"learned", "low"} <= set(whole["alone"][0])
  shown = learned.matrix(whole).axes[0].images[0].get_array()
  want = whole["bits_per_byte"][0][2]["value"] - whole["bits_per_byte"][3][2]["value"]
  assert shown.shape == (3, 3) and shown[2, 2] == pytest.approx(want)
  assert (folder / "whole.png").stat().st_size > 10_000


def test_cut_and_resumed_equals_uninterrupted(folder, whole, monkeypatch):
  test, calls = sequence.Learner.test, []
  def cut(self):
    calls.append(0)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return test(self)
  monkeypatch.setattr(sequence.Learner, "test", cut)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "cut.json", *options(folder))
  monkeypatch.undo()
  again = call(folder, "cut.json", *options(folder))
  assert again["rows"] == whole["rows"] and not (folder / "cut.json.partial").exists()


def test_several_checkpoints_and_years(folder, whole):
  """Equal checkpoints learn and forget nothing, and that is said."""
  same = ",".join([str(folder / "run")] * 4)
  result = call(folder, "several.json", f"--checkpoint={same}",
                f"--years={folder / 'news.jsonl'}")
  assert result["segments"] == ["2010", "2011", "2012"]
  assert {name: own["value"] for name, own in result["metrics"].items() if name != "final"} == {
      name: 0 for name in ("gain", "forgetting", "backward", "forward")}
  assert not any(own["learned"] for own in result["alone"])
  assert "NOT LEARNED" in program.show(result)


@pytest.mark.parametrize("change, message", [
    (lambda own: own[:2], "one checkpoint learns by --memorize"),
    (lambda own: own[:1] + own[2:], "name either the files of --domains"),
    (lambda own: own + ["--test_documents=99"], "too few for 99 to test"),
    (lambda own: [f"{own[0]},{own[0].split('=')[1]}", *own[1:2]], "2 checkpoints for 3 segments"),
    (lambda own: own + ["--memorize_surprise_threshold=1e9"], "made no update: no gate opened")])
def test_refusals_are_one_line(folder, change, message):
  with pytest.raises(SystemExit, match=message):
    call(folder, "refused.json", *change(options(folder)))
