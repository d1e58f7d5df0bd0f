"""Laws of niah.py and passkey.py: chance, one seed one file, batches, resumption, leaks."""

import json
import sys
from pathlib import Path

from absl import flags
import numpy as np
import pytest

from hope_jax.reports import heatmap
from hope_jax.scoring import retrieval
from tests import tiny_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import niah, passkey

TIMES = dict.fromkeys(("date", "command", "speed", "machine"))
SHORT = ("--lengths=150,180", "--depths=0,1", "--samples=4", "--kinds=single_1,literal_free",
         "--memorize", "--batch=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("niah")
  tiny_run.save(folder / "run", tiny_run.configured("hope_attention"))
  (folder / "hay.txt").write_text("".join(tiny_run.tiny_text(i) for i in range(40)))
  return folder


def call(folder, name, *argv, program=niah):
  values = flags.FlagValues()
  program.define_flags(values)
  program.main(values(["", f"--checkpoint={folder / 'run'}", f"--output={folder / name}",
                       f"--haystack={folder / 'hay.txt'}", *argv]), values)
  return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def whole(folder):
  return call(folder, "whole.json", *SHORT)


def test_a_random_model_is_at_chance_and_writes_no_answer(whole):
  assert whole["chance"] == pytest.approx(1 / 11)
  rows = whole["rows"]
  assert len(rows) == 2 * 2 * 2 * 4 and whole["ways"] == ["baseline", "memorized", "control"]
  for way in whole["ways"]:
    scored = retrieval.share([row[way]["choice"] for row in rows])
    assert scored["low"] <= whole["chance"] <= scored["high"]
    assert not any(row[way]["exact"] for row in rows)
  assert all(total["updates"] > 0 for total in whole["memories"].values())
  assert (whole["memories"].keys() & {"cms_fast", "cms_mid", "cms_slow"})
  assert whole["effective_length"]["all"] == {"baseline": None, "memorized": None}
  assert [(own["length"], own["way"], own["batches"]) for own in whole["speed"]] == [
      (length, way, 2) for length in (150, 180) for way in whole["ways"]]
  assert all(own["tokens_per_second"] > 0 for own in whole["speed"])


def test_scores_add_up_and_differences_are_paired(whole):
  for part in whole["lengths"]:
    rows = [row for row in whole["rows"] if row["length"] == part["length"]]
    gain = np.mean([row["memorized"]["choice"] - row["baseline"]["choice"] for row in rows])
    assert part["choice"]["difference"]["value"] == pytest.approx(gain)
    assert part["samples"] == len(rows) == 16
  assert {(cell["kind"], cell["length"], cell["depth"]) for cell in whole["cells"]} == {
      (kind, length, depth) for kind in ("single_1", "literal_free") for length in (150, 180)
      for depth in (0.0, 1.0)}
  assert (len({row["baseline"]["nats"] for row in whole["rows"]}) == 32
          and all(row["baseline"]["nats"] != row["memorized"]["nats"] for row in whole["rows"]))


def test_interrupted_and_resumed_is_the_same_file_and_another_batch_the_same_scores(
    folder, whole, monkeypatch):
  calls, score = [], retrieval.score
  def once(*args):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return score(*args)
  monkeypatch.setattr(retrieval, "score", once)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "again.json", *SHORT)
  again = call(folder, "again.json", *SHORT)
  assert len(calls) == 3 + 2 and not (folder / "again.json.partial").exists()
  assert again | TIMES == whole | TIMES
  monkeypatch.setattr(retrieval, "score", score)
  other = call(folder, "other.json", *SHORT, "--batch=3", "--lengths=180", "--nocontrol",
               "--kinds=literal_free")
  first = [row for row in whole["rows"] if (row["length"], row["kind"]) == (180, "literal_free")]
  for row, same in zip(other["rows"], first, strict=True):
    for way in other["ways"]:
      assert row[way]["choice"] == same[way]["choice"]
      np.testing.assert_allclose(row[way]["nats"], same[way]["nats"], rtol=1e-4)


def test_the_page_of_a_result_shows_its_numbers(whole):
  text = heatmap.show(whole)
  assert f"{whole['lengths'][0]['choice']['memorized']['value']:.4f}" in text
  figure = heatmap.draw(whole)
  drawn = heatmap.draw_seconds(whole).axes[0].lines
  np.testing.assert_allclose(drawn[2].get_ydata() * [own["tokens_per_second"] for own in whole[
      "speed"] if own["way"] == "memorized"], [150, 180])
  lengths, depths, grid = heatmap.table(whole["cells"], "choice", "baseline")
  assert (lengths, depths) == ([150, 180], [0.0, 1.0]) and len(figure.axes) == 2 * 2 * 4
  rows = [row["baseline"]["choice"] for row in whole["rows"]
          if (row["length"], row["depth"]) == (180, 0.0)]
  assert grid[0, 1] == pytest.approx(np.mean(rows))


@pytest.mark.slow
def test_an_answer_that_leaks_is_marked_and_carried_samples_differ(folder, capsys):
  few = ("--lengths=120", "--depths=0.5", "--samples=2", "--nocontrol", "--memorize")
  one, leaking, carried = (call(folder, "few.json", *few, *more, program=passkey) for more in (
      (), ("--memorize_use_correct_answer",), ("--memorize_no_reset",)))
  assert "LEAKS THE ANSWER" in capsys.readouterr().out
  assert leaking["leaks_the_answer"] and not one["leaks_the_answer"]
  def nats(result):
    return [row["memorized"]["nats"] for row in result["rows"]]
  assert sum(nats(leaking)) < sum(nats(one))
  assert nats(carried)[0] == pytest.approx(nats(one)[0], rel=1e-4)
  assert abs(nats(carried)[1] - nats(one)[1]) > 1e-4


@pytest.mark.parametrize("argv, told", [
    (("--lengths=20",), "takes .* tokens and the context has 20"),
    (("--kinds=hay",), "no kind 'hay' of needles: choose of single_1"),
    (("--lengths=many",), "--lengths and --depths are numbers"),
    (("--depths=2",), "--depths lie between 0 and 1"),
    (("--memorize", "--memorize_steps=0", "--memorize_state=x"), "the contexts are what"),
    (("--haystack=nowhere",), "does not exist")])
def test_bad_input_is_one_line(folder, argv, told):
  with pytest.raises(SystemExit, match=told) as error:
    call(folder, "none.json", *argv)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("gained, lost", [(0.3, 0.1), (0.05, 0.05), (0, 0)])
def test_the_interval_of_paired_differences_covers(gained, lost):
  rng, count = np.random.default_rng(0), 24
  drawn = rng.multinomial(count, [gained, lost, 1 - gained - lost], 2000)
  covered = []
  for up, down, same in drawn:
    own = retrieval.paired([1.0] * up + [-1.0] * down + [0.0] * same)
    covered.append(own["low"] <= gained - lost <= own["high"])
    assert own["value"] == pytest.approx((up - down) / count) and own["low"] < own["high"]
  assert np.mean(covered) > 0.93


def test_the_effective_length_ends_at_the_first_that_is_too_hard():
  def at(length, value):
    return {"length": length, "found": {"baseline": {"value": value}}}
  lengths = [at(8, 1.0), at(2, 0.9), at(4, 0.8)]
  assert retrieval.effective(lengths, ["baseline"], 0.85) == {"baseline": 2}
  assert retrieval.effective(lengths, ["baseline"], 0.8) == {"baseline": 8}
  assert retrieval.effective(lengths, ["baseline"], 0.95) == {"baseline": None}
