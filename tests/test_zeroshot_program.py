"""Laws of evals/zeroshot.py: rows in order, cut and resumed, memorized beside the baseline."""

import json
from pathlib import Path
import sys

from absl import flags
import numpy as np
import pytest

from hope_jax.reading import opening
from hope_jax.scoring import answers, choices, intervals, zeroshot
from tests import tiny_run
from tests.test_zeroshot import put

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import zeroshot as program

TASKS = "--tasks=boolq,winogrande"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run whose memories are written, and data/ with 6 questions of each task, all of like length:
  few shapes compile.
  """
  folder = tmp_path_factory.mktemp("zeroshot")
  tiny_run.save(folder / "run", tiny_run.configured("hope_hybrid", scale=10.0))
  lines = {
      "boolq": [dict(passage=tiny_run.tiny_text(i)[:16], question="read", answer=i % 2 == 0)
                for i in range(6)],
      "winogrande": [dict(sentence=f"slow chunk {i} so _ read.", option1="slow", option2="chunk",
                          answer=str(1 + i % 2)) for i in range(6)]}
  for task, own in lines.items():
    put(folder / "data", task, *map(json.dumps, own))
  return folder


def call(folder, name, *argv):
  values = flags.FlagValues()
  program.define_flags(values)
  program.main(values(["zeroshot", f"--checkpoint={folder / 'run'}", f"--output={folder / name}",
                       f"--data_dir={folder / 'data'}", "--batch=4", *argv]), values)
  return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def whole(folder):
  return call(folder, "whole.json", TASKS, "--memorize")


def numbers(result):
  """All that does not depend on time."""
  return [(name, [[row[key] for key in ("gold", "tokens", "baseline", "memorized")]
                  for row in rows]) for name, rows in result["rows"].items()]


def test_answers_are_those_of_the_choices_in_their_order(folder, whole):
  config, params, tokenizer = opening.load(folder / "run")
  for name, rows in whole["rows"].items():
    questions = zeroshot.read(name, str(folder / "data"))
    assert len(rows) == 6 and [row["gold"] for row in rows] == [q.gold for q in questions]
  prompts = choices.encode(tokenizer, [(prompt, [choice]) for prompt, choice in zip(
      questions[4].prompts, questions[4].choices)])
  scores = choices.score(config, params, prompts)
  np.testing.assert_allclose(rows[4]["baseline"]["log_likelihoods"],
                             [own[0].log_likelihood for own in scores], rtol=1e-4)
  assert whole["tasks"]["boolq"]["chance"] == 0.5


def test_scores_are_counted_from_the_rows(whole):
  for name, task in whole["tasks"].items():
    acc = {kind: [row[kind]["acc"] for row in whole["rows"][name]]
           for kind in ("baseline", "memorized")}
    for kind, right in acc.items():
      assert task["scores"]["acc"][kind]["value"] == pytest.approx(np.mean(right))
    want = np.mean(acc["memorized"]) - np.mean(acc["baseline"])
    assert task["scores"]["acc"]["difference"]["value"] == pytest.approx(want)
    assert all(own["updates"] > 0 for own in task["memories"].values()) and task["memories"]
  likelihoods = [[row[kind]["log_likelihoods"] for row in whole["rows"]["boolq"]]
                 for kind in ("baseline", "memorized")]
  assert np.abs(np.subtract(*likelihoods)).min() > 1e-4  # something was learned of every one


def test_cut_and_resumed_equals_uninterrupted(folder, whole, monkeypatch):
  answer, calls = answers.Asked.answer, []
  def cut(*args):
    calls.append(0)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return answer(*args)
  monkeypatch.setattr(answers.Asked, "answer", cut)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "cut.json", TASKS, "--memorize")
  monkeypatch.undo()
  assert (folder / "cut.json.partial").exists() and not (folder / "cut.json").exists()
  again = call(folder, "cut.json", TASKS, "--memorize")
  assert numbers(again) == numbers(whole) and not (folder / "cut.json.partial").exists()


def test_a_leak_is_marked(folder, whole, capsys):
  result = call(folder, "leak.json", "--tasks=boolq", "--memorize",
                "--memorize_use_correct_answer")
  assert result["leaks_the_answer"] and "LEAKS THE ANSWER" in capsys.readouterr().out
  assert not whole["leaks_the_answer"]
  assert result["rows"]["boolq"][0]["memorized"] != whole["rows"]["boolq"][0]["memorized"]


@pytest.mark.slow
def test_carried_on_from_question_to_question(folder, whole, monkeypatch):
  """The first question is answered as afresh, the next ones otherwise; resumed or not."""
  options = "--tasks=winogrande", "--memorize", "--memorize_no_reset"
  carried = call(folder, "carried.json", *options)
  rows, afresh = carried["rows"]["winogrande"], whole["rows"]["winogrande"]
  def values(row):
    return row["memorized"]["log_likelihoods"]
  np.testing.assert_allclose(values(rows[0]), values(afresh[0]), rtol=1e-4)
  assert np.abs(np.subtract(values(rows[1]), values(afresh[1]))).max() > 1e-3
  answer, calls = answers.Asked.answer, []
  def cut(*args):
    calls.append(0)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return answer(*args)
  monkeypatch.setattr(answers.Asked, "answer", cut)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "resumed.json", *options)
  monkeypatch.undo()
  assert numbers(call(folder, "resumed.json", *options)) == numbers(carried)


@pytest.mark.parametrize("argv, message", [
    (["--tasks=bool"], "--tasks=bool: there is none; choose from piqa"),
    (["--tasks=piqa"], "no .*zeroshot/piqa_valid.jsonl: put the validation split of baber/piqa"),
    (["--tasks=boolq", "--memorize", "--memorize_surprise_threshold=1e9"],
     "made no update: no gate opened")])
def test_refusals_are_one_line(folder, argv, message):
  with pytest.raises(SystemExit, match=message):
    call(folder, "refused.json", *argv)


def test_the_better_choice_by_length_is_another():
  """Two tokens at -2 each lose against one at -3 in sum, and win by the character."""
  question = zeroshot.Question(("p",), (" abcdefgh", " ab"), 0, (8, 2), "p", "p abcdefgh")
  scores = [choices.Score(-4.0, False), choices.Score(-3.0, False)]
  assert answers.judged(question, scores) == {"log_likelihoods": [-4.0, -3.0], "acc": False,
                                              "acc_norm": True}


def test_a_model_that_knows_nothing_is_at_chance(monkeypatch):
  """The interval of an accuracy holds chance about as often as it says: 95 of 100 times."""
  rng, held = np.random.default_rng(0), 0
  monkeypatch.setattr(intervals, "RESAMPLES", 1000)
  for seed in range(100):
    rows = [{"baseline": {"log_likelihoods": [0.0] * 4, "acc": right}, "compiled": False,
             "seconds": {"baseline": 1.0}, "tokens": 1} for right in rng.random(200) < 0.25]
    entry = answers.summary(rows, ("acc",), seed)["scores"]["acc"]["baseline"]
    held += entry["low"] <= 0.25 <= entry["high"]
  assert 88 <= held <= 99
