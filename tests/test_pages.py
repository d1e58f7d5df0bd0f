"""Pages of runs, checkpoints and texts say what the files say.

    python -m pytest tests/test_pages.py
"""

from html.parser import HTMLParser
import json
import math

from absl import app, flags
import pytest

from hope_jax import report
from hope_jax.reports import memorized_text, runs
from tests import tiny_run

pytest.importorskip("jinja2")


class Read(HTMLParser):
  """The cells of all tables, and the spans of texts with what they say."""

  def __init__(self, path):
    super().__init__()
    self.rows, self.spans, self.pictures, self._into = [], [], 0, None
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    own = dict(attributes)
    if tag == "tr":
      self.rows.append([])
    elif tag in ("td", "th"):
      self.rows[-1].append("")
      self._into = "cell"
    elif tag == "span":
      self.spans.append(["", own["title"], own["style"]])
      self._into = "span"
    elif tag == "img":
      assert own["src"].startswith("data:image/png;base64,")
      self.pictures += 1

  def handle_endtag(self, tag):
    self._into = None

  def handle_data(self, text):
    if self._into == "cell":
      self.rows[-1][-1] += text
    elif self._into == "span":
      self.spans[-1][0] += text


def call(*arguments):
  values = flags.FlagValues()
  report.define_flags(values)
  report.main(values(["report", *map(str, arguments)]), values)


def row(step, **more):
  return {"step": step, "train/loss": 3.0 / step, "train/lr": 0.1, "train/bpb": math.pi / step,
          "memory/0/moved/cms_fast": 0.5, "memory/1/moved/cms_fast": 1.5,
          "update/matrix": 0.25 * step} | more


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Still training: the last line is being written."""
  folder = tiny_run.save(tmp_path_factory.mktemp("run") / "one", tiny_run.configured("hope_hybrid"))
  rows = [row(1), row(2), row(3, **{"validation/bpb": 2.5})]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows)
                                        + '{"step": 4, "tra')
  (folder / "goodput.json").write_text(json.dumps({"seconds": {"steps": 30.0, "compile": 10.0}}))
  return folder


def test_a_run(run):
  call("run", run)
  page = Read(run / "report.html")
  for name, value in runs.last(runs.read(run)).items():
    assert [name, f"{value:.6g}"] in page.rows
  assert ["steps", "75.0 %", "0:00:30"] in page.rows
  assert page.pictures == 5  # loss, bits per byte, rate, writes, steps
  assert runs.by_memory(runs.read(run), "moved") == {"cms_fast": ([1, 2, 3], [1.0, 1.0, 1.0])}
  assert runs.series(runs.read(run), "update/matrix") == ([1, 2, 3], [0.25, 0.5, 0.75])


def test_a_checkpoint(run, tmp_path):
  call("checkpoint", run, f"--output={tmp_path / 'page.html'}")
  page = Read(tmp_path / "page.html")
  step, = [row for row in page.rows if row[0] == str(tiny_run.STEP)]
  assert step[3] == "as written" and ["step", str(tiny_run.STEP)] in page.rows
  damaged = next(file for file in (run / "checkpoints" / str(tiny_run.STEP)).rglob("*")
                 if file.is_file() and file.stat().st_size > 100 and "params" in str(file))
  before = damaged.read_bytes()
  damaged.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
  call("checkpoint", run, f"--output={tmp_path / 'page.html'}")
  damaged.write_bytes(before)
  assert any("differs from what was written" in cell for row in Read(tmp_path / "page.html").rows
             for cell in row)


def test_runs_side_by_side(run, tmp_path):
  other = tmp_path / "two"
  other.mkdir()
  (other / "metrics.jsonl").write_text(json.dumps(row(5)) + "\n")
  call("compare", run, other, f"--output={tmp_path / 'both.html'}")
  page = Read(tmp_path / "both.html")
  assert ["number", "one", "two"] in page.rows and ["train/loss", "1", "0.6"] in page.rows
  assert ["validation/bpb", "2.5", ""] in page.rows


def test_a_text_token_by_token(tmp_path):
  data = {"chunk": 2, "threshold": 0.0, "predicted": [2, 1], "nats_per_token": {"before": 2.0},
          "nats": {"before": [4.0, 2.0], "read": [4.0, 1.0], "after": [1.0, 3.0]}, "selfmod": {},
          "memories": {"cms_fast": {"period": 2, "updates": [[1], [1]], "open": [[1], [1]],
                                    "moved": [[0.5], [0.25]], "surprise": [[1.0], [1.0]]}},
          "by_token": {"text": ["", "a<b>", " &", "\n"], "nats": {
              "before": [3.0, 1.0, 2.0], "read": [3.0, 1.0, 1.0], "after": [1.0, 1.0, 3.0]}}}
  path = tmp_path / "text.json"
  path.write_text(json.dumps(data))
  call("memorized", path)
  page = Read(tmp_path / "text.html")
  assert [text for text, _, _ in page.spans] == ["", "a<b>", " &", "\n"]
  assert page.spans[1][1] == ("3.00 nats before, 3.00 as it was read, 1.00 after; cms_fast moved "
                              "0.5")
  assert page.spans[3][1].endswith("cms_fast moved 0.25")
  easier, same, harder = (style for _, _, style in page.spans[1:])
  assert memorized_text.GAIN in easier and "0.30" in easier and "0.00" in same
  assert memorized_text.LOSS in harder and page.pictures == 1


def test_what_is_no_run(tmp_path):
  for words, message in ((("run", tmp_path), "metrics.jsonl: name the folder of a run"),
                         (("checkpoint", tmp_path), "no checkpoint in"),
                         (("memorized", __file__), "was not written by")):
    with pytest.raises(SystemExit, match=message):
      call(*words, f"--output={tmp_path / 'x.html'}")
    assert not (tmp_path / "x.html").exists()
  for words in ((), ("runs", tmp_path), ("run",), ("run", tmp_path, tmp_path)):
    with pytest.raises(app.UsageError, match="say run DIR"):
      call(*words)
