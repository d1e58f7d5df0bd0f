"""Two checkouts in turns: who begins changes, the first turn is left out,
the ratio is of speeds.
"""

import pytest

from evals import paired


def test_turns_and_ratio():
  asked = []
  def worker(name, seconds):
    def ask(what, model):
      asked.append(name)
      # the first compiles
      return (100.0, 100.0) if asked.count(name) == 1 else (seconds, 2.0)
    return ask
  row = paired.compare(worker("before", 2.0), worker("after", 1.0), "train", "x", 4)
  assert row["seconds"] == {"before": [2.0] * 4, "after": [1.0] * 4}
  assert row["processor_seconds"] == {"before": [2.0] * 4, "after": [2.0] * 4}
  assert row["processor_ratio"]["value"] == 1.0
  assert row["ratio"]["value"] == row["ratio"]["low"] == row["ratio"]["high"] == 2.0
  assert asked == ["before", "after", "after", "before"] * 2 + ["before", "after"]


def test_a_process_answers_or_its_end_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr(paired, "WORKER",
                      "while input(): print('noise'); print('seconds', 3.5, 2.5, flush=True)")
  assert paired.start(tmp_path, "none")("train", "x") == (3.5, 2.5)
  monkeypatch.setattr(paired, "WORKER", "input(); print('hello')")
  with pytest.raises(RuntimeError, match="ended while it was asked to train x"):
    paired.start(tmp_path, "none")("train", "x")
