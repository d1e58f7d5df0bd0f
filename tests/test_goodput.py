"""Every second of a run is in one kind of time, over crashes too."""

import pytest

from hope_jax.runtime.goodput import KINDS, Goodput
from hope_jax.training import loop
from test_endurance import short, strict_rows


class Clock:
  now = 0.0

  def __call__(self):
    return self.now

  def passes(self, seconds):
    self.now += seconds


def test_goodput_over_a_crash(tmp_path):
  clock = Clock()
  first = Goodput(tmp_path / "goodput.json", clock)
  clock.passes(2)
  with first.span("restore"):
    clock.passes(1)
  first.resume(0)
  with first.span("compile"):
    clock.passes(3)
  first.enter("steps")
  clock.passes(10)
  with first.span("data"):
    clock.passes(1)
  first.write(20)
  clock.passes(100)  # killed: nobody knows of this

  second = Goodput(tmp_path / "goodput.json", clock)
  second.resume(15)
  second.enter("steps")
  clock.passes(5)
  with second.span("save"):
    clock.passes(3)
  second.write(25)
  s = second.summary()
  assert s["seconds"] == 25 and s["starts"] == 2 and s["lost_steps"] == 5
  seconds = {kind: round(s[kind] * 25, 6) for kind in KINDS}
  assert seconds == {"steps": 12.5, "start": 2, "compile": 3, "data": 1, "save": 3, "restore": 1,
                     "evaluation": 0, "lost": 2.5}
  assert second.line().startswith("goodput: 50.0 % of 0:00:25 in steps that stayed; start 8.0, "
                                  "compile 12.0")


def test_an_account_that_cannot_be_read_does_not_stop_a_run(tmp_path):
  (tmp_path / "goodput.json").write_text("")
  Goodput(tmp_path / "goodput.json").write(3)
  assert (tmp_path / "goodput.json.damaged").read_text() == ""
  assert Goodput(tmp_path / "goodput.json").summary()["starts"] == 2


def test_goodput_of_a_run(tmp_path):
  loop.train(short(), tmp_path)
  row, = (row for row in strict_rows(tmp_path) if "goodput/steps" in row)
  assert sum(row[f"goodput/{kind}"] for kind in KINDS) == pytest.approx(1)
  assert all(row[f"goodput/{kind}"] > 0
             for kind in ("steps", "start", "compile", "data", "save", "evaluation"))
  assert row["goodput/restore"] < 0.01 and row["goodput/lost"] == 0 and row["goodput/starts"] == 1
