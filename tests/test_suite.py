"""Laws of suite.py and its page: the page says what the JSON says; goes on; failures stay there."""

from html.parser import HTMLParser
import json
from pathlib import Path
import re
import sys

from absl import flags
import pytest

from hope_jax.reports import page
from hope_jax.scoring import programs
from tests import tiny_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import suite

RESULT = {
    "date": "2026-11-28", "command": "python x", "config": {"a": [1]}, "leaks_the_answer": True,
    "fingerprint": "f00", "tokenizer": "0f0", "share": {"value": 0.25, "low": 0.125, "high": None},
    "best": None, "kinds_read": ["one", "<two>"], "samples": 12_345, "rate": 0.0123456,
    "tasks": {"a.b/c": {"baseline": {"value": 0.5, "low": 0.25, "high": 0.75}, "count": 3},
              "d": {"count": 4}},
    "lengths": [{"length": 256, "exact": {"memorized": {"value": 1.0, "low": None, "high": None}}}],
    "rows": [{"text": "not shown"}]}


class Cells(HTMLParser):
  """{(file, keys): text} of all cells of a page that say where their value stands."""

  def __init__(self, text: str):
    super().__init__()
    self.cells, self.file, self.at, self.loud = {}, None, None, []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.file = attrs.get("data-file", self.file)
    self.at = (self.file, *json.loads(attrs["data-at"])) if "data-at" in attrs else None
    self.is_loud = attrs.get("class") == "loud"

  def handle_data(self, data):
    if self.at is not None:
      self.cells[self.at] = self.cells.get(self.at, "") + data
    elif getattr(self, "is_loud", False) and data.strip():
      self.loud.append(data.strip())

  def handle_endtag(self, tag):
    self.at, self.is_loud = None, False


def numbers(value):
  """Of a score or a number, as they are."""
  if isinstance(value, dict):
    return [value[name] for name in ("value", "low", "high") if value[name] is not None]
  return [value]


def compare(folder: Path, text: str) -> int:
  """Reads every cell back and compares it with its file; how many there were."""
  cells = Cells(text).cells
  for (file, *keys), said in cells.items():
    value = json.loads((folder / file).read_text())
    for key in keys:
      value = value[key]
    if value is None or isinstance(value, (bool, str, list)):
      assert said == page.shown(value) if not isinstance(value, list) else said == ", ".join(
          map(page.shown, value))
    else:
      found = [float(n.replace(",", "")) for n in re.findall(r"-?[\d,.]+(?:e[-+]?\d+)?", said)]
      assert found == pytest.approx(numbers(value), rel=1e-3)
  return len(cells)


def suite_of(folder: Path, *runs) -> Path:
  """A folder with a suite of written results."""
  for i, (result, error) in enumerate(runs):
    (folder / f"{i}.json").write_text(json.dumps(result))
  rows = [{"checkpoint": "runs/a", "name": "a", "evaluation": f"e{i}", "about": "x & y", "step": 7,
           "argv": [], "headline": "share", "file": f"{i}.json",
           "seconds": 1.5, "error": error} for i, (_, error) in enumerate(runs)]
  (folder / page.FILE).write_text(json.dumps(
      {"date": "today", "command": "python <suite>", "quick": False, "runs": rows}))
  return folder


def test_the_page_says_what_its_json_says(tmp_path):
  folder = suite_of(tmp_path, (RESULT, None), ({}, "RuntimeError: no <memory>"))
  text = page.write(folder).read_text()
  cells = Cells(text)
  assert compare(folder, text) == 13
  assert cells.cells["0.json", "tasks", "a.b/c", "baseline"] == "0.5 (0.25 to 0.75)"
  assert cells.cells["0.json", "kinds_read"] == "one, <two>" and "not shown" not in text
  assert "RuntimeError: no <memory>" in cells.loud
  assert sum(said.startswith("LEAKS THE ANSWER") for said in cells.loud) == 1
  assert not re.search(r"(src|href)=.(?!data:|#)", text) and "http" not in text  # no network
  assert "prefers-color-scheme: dark" in text and "width=device-width" in text
  wrong = json.loads((folder / "0.json").read_text())
  wrong["tasks"]["d"]["count"] = 5
  (folder / "0.json").write_text(json.dumps(wrong))
  with pytest.raises(AssertionError):
    compare(folder, text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny_run.save(tmp_path_factory.mktemp("suite") / "run",
                       tiny_run.configured("hope_attention"))


def call(folder, run, *argv):
  values = flags.FlagValues()
  suite.define_flags(values)
  suite.main(values(["", f"--checkpoints={run}", f"--output={folder}", "--quick", *argv]), values)
  return json.loads((folder / page.FILE).read_text())


@pytest.fixture
def small(monkeypatch):
  """Programs with settings for a tiny model; and what was called."""
  called, real = [], programs.call
  table = {name: own._replace(quick=("--lengths=150", "--samples=1", "--depths=0.5", *more))
           for (name, own), more in zip(list(programs.PROGRAMS.items())[:2],
                                        (("--kinds=single_1",), ()))}
  monkeypatch.setattr(programs, "PROGRAMS", table)
  def call(name, argv):
    called.append(name)
    return real(name, argv)
  monkeypatch.setattr(programs, "call", call)
  return called


@pytest.mark.slow
def test_a_suite_runs_what_is_missing_and_its_page_is_true(tmp_path, run, small):
  call(tmp_path, run, "--evaluations=niah")
  written = call(tmp_path, run)
  assert small == ["niah", "passkey"]  # the first is there
  assert [row["evaluation"] for row in written["runs"]] == ["niah", "passkey"]
  result = json.loads((tmp_path / "run" / "niah.json").read_text())
  assert "--seed=0" in result["command"] and result["memorize"]["on"]
  text = (tmp_path / "index.html").read_text()
  assert compare(tmp_path, text) > 50 and text.count("data:image/png;base64,") == 4
  assert len(text) < 2_000_000
  with pytest.raises(SystemExit, match="1 of 1 evaluations failed: niah"):
    programs.PROGRAMS["niah"] = programs.PROGRAMS["niah"]._replace(quick=("--lengths=9",))
    call(tmp_path, run, "--evaluations=niah")
  rows = {row["evaluation"]: row for row in json.loads((tmp_path / page.FILE).read_text())["runs"]}
  assert "choose a longer one" in rows["niah"]["error"] and rows["passkey"]["error"] is None
  assert rows["niah"]["error"] in Cells((tmp_path / "index.html").read_text()).loud


def test_an_evaluation_that_is_not_known_lists_those_that_are(tmp_path, run):
  with pytest.raises(SystemExit, match="--evaluations=nia: choose of niah, passkey, babi, "):
    call(tmp_path, run, "--evaluations=nia")
  with pytest.raises(SystemExit, match="no checkpoint in"):
    call(tmp_path, tmp_path / "nowhere")


def test_a_program_is_called_as_from_a_command_line(tmp_path):
  before = list(sys.argv)
  with pytest.raises(RuntimeError, match="FileNotFoundError: no checkpoint in"):
    programs.call("niah", [f"--checkpoint={tmp_path}", f"--output={tmp_path / 'x.json'}"])
  with pytest.raises(RuntimeError, match="Unknown command line flag 'lenghts'"):
    programs.call("niah", ["--lenghts=3"])
  assert sys.argv == before


def test_folders_of_equal_names_are_numbered():
  assert suite.names_of(["runs/a", "other/a", "runs/b"]) == ["1_a", "2_a", "b"]
