"""A memorized text's picture shows the file's numbers: a panel a memory, bars, gates, losses."""

import json
import sys

from absl import flags
import numpy as np
import pytest

from hope_jax import config, report
from hope_jax.reading import study
from hope_jax.reports import memorized

FAST = dict(period=8, updates=[[1, 1], [0, 0], [1, 0]], open=[[1, 1], [0, 0], [0, 1]],
            moved=[[0.5, 1.5], [0.0, 0.0], [3.0, 0.0]],
            surprise=[[2.0, 4.0], [0.5, 0.5], [1.0, 3.0]], pending=[[0, 0], [0, 0], [0, 0]])
SLOW = dict(period=16, updates=[[0, 0], [1, 1], [0, 0]], open=[[1, 1], [1, 1], [1, 1]],
            moved=[[0.0, 0.0], [2.0, 4.0], [0.0, 0.0]],
            surprise=[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], pending=[[8, 8], [0, 0], [8, 8]])
DATA = dict(chunk=8, threshold=0.75, predicted=[8.0, 4.0, 0.0], selfmod={},
            nats=dict(before=[16.0, 12.0, 0.0], read=[16.0, 10.0, 0.0], after=[8.0, 6.0, 0.0]),
            memories=dict(cms_fast=FAST, cms_slow=SLOW))


@pytest.fixture
def figure():
  pytest.importorskip("matplotlib", reason="pip install hope_jax[plots]")
  return memorized.draw(DATA)


def panels(figure):
  """The panels, and the scales of surprise beside them."""
  own = [axis for axis in figure.axes if axis.get_ylabel() != "surprise"]
  return own, [axis for axis in figure.axes if axis not in own]


def test_a_panel_for_the_losses_and_one_for_every_memory(figure):
  own, beside = panels(figure)
  assert [axis.get_title() for axis in own] == ["", "cms_fast: period 8, 2 updates a layer",
                                                "cms_slow: period 16, 1 updates a layer"]
  assert len(beside) == 2 and own[-1].get_xlabel() == "tokens read"


def test_losses_are_means_and_a_chunk_without_a_predicted_token_has_none(figure):
  lines = {line.get_label(): line for line in figure.axes[0].lines}
  assert set(lines) == {"before", "read", "after"}
  np.testing.assert_array_equal(lines["before"].get_ydata(), [2.0, 3.0])
  np.testing.assert_array_equal(lines["after"].get_ydata(), [1.0, 1.5])
  np.testing.assert_array_equal(lines["read"].get_xdata(), [4.0, 12.0])


@pytest.mark.parametrize("number, moved, surprise, gates", [
    (1, [1.0, 0.0, 1.5], [3.0, 0.5, 2.0], [4.0, 20.0]),
    (2, [0.0, 3.0, 0.0], [1.0, 1.0, 1.0], [4.0, 12.0, 20.0])])
def test_bars_surprise_and_gates_are_the_numbers(figure, number, moved, surprise, gates):
  own, beside = panels(figure)
  assert [bar.get_height() for bar in own[number].patches] == moved
  middle = [bar.get_x() + bar.get_width() / 2 for bar in own[number].patches]
  np.testing.assert_allclose(middle, [4.0, 12.0, 20.0])
  line, dots, threshold = beside[number - 1].lines
  np.testing.assert_array_equal(line.get_ydata(), surprise)
  np.testing.assert_array_equal(dots.get_xdata(), gates)
  assert set(threshold.get_ydata()) == {0.75}


def test_self_modifying_memories_are_a_panel_of_their_own():
  pytest.importorskip("matplotlib", reason="pip install hope_jax[plots]")
  selfmod = {"moved/mem": [[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]], "eta": [[0.1, 0.1]] * 3}
  last = memorized.draw(DATA | dict(selfmod=selfmod, memories={})).axes[-1]
  assert last.get_title() == "selfmod" and [line.get_label() for line in last.lines] == ["mem"]
  np.testing.assert_array_equal(last.lines[0].get_ydata(), [2.0, 3.0, 4.0])


def test_what_memorize_describes():
  """Losses go by the first reading's chunks, also where a reread text starts inside a chunk."""
  c = config.base()
  c.model.pattern, c.model.layers, c.channel.in_context, c.teach.chunk = ("attention",), 2, True, 8
  c.channel.levels = (config.Level("fast", 8), config.Level("slow", 16))
  stats = {name: {key: np.array(memory[key], float)[..., None]
                  for key in ("updates", "open", "moved", "surprise", "pending")}
           for name, memory in (("fast", FAST), ("slow", SLOW))}
  nats_T, labels_T = np.arange(24.0), np.arange(24) < 12
  moved_T = np.roll(nats_T, 5)[None], np.roll(labels_T, 5)[None]
  first = study.Report(nats_T[None], labels_T[None], stats)
  data = study.describe(c, {"before": first, "read": first, "after": study.Report(*moved_T, {})})
  assert data["predicted"] == [8, 4,
                               0] and data["nats"] == dict.fromkeys(("before", "read", "after"),
                                                                    [28, 38, 0])
  assert data["memories"] == json.loads(json.dumps(DATA["memories"])) and data["chunk"] == 8


def call(*argv):
  values = flags.FlagValues()
  report.define_flags(values)
  report.main(values(["report", *map(str, argv)]), values)


def test_program(tmp_path, monkeypatch):
  source, picture = tmp_path / "out.json", tmp_path / "new" / "out.png"
  source.write_text(json.dumps(DATA))
  with monkeypatch.context() as without:
    without.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match=r"ImportError: .*pip install hope_jax\[plots\]"):
      call(f"--memorized={source}", f"--output={picture}")
  pytest.importorskip("matplotlib", reason="pip install hope_jax[plots]")
  call(f"--memorized={source}", f"--output={picture}")
  assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["no JSON", "[1]", "{}", json.dumps(DATA | dict(predicted=[1.0])),
                                  json.dumps(DATA | dict(memories=dict(cms_fast={})))])
def test_another_file_is_refused(tmp_path, text):
  (tmp_path / "x.json").write_text(text)
  with pytest.raises(SystemExit,
                     match="x.json was not written by python -m hope_jax.memorize --output"):
    call(f"--memorized={tmp_path / 'x.json'}", f"--output={tmp_path / 'x.png'}")
