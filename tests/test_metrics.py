"""Laws of the metrics: a resumed run leaves the same file; rates count training time alone."""

import importlib.util
import json
import sqlite3
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hope_jax.runtime import boards
from hope_jax.runtime.metrics import Meter, Metrics, format_line, matmul_rate


def train(workdir, first, last, resume_step=-1):
  with Metrics(workdir, resume_step, ["tensorboard"]) as metrics:
    for step in range(first, last + 1):
      metrics.write(step, {"loss": jnp.float32(1 / step), "memory": {"layer_0": np.float64(step)},
                           "tokens": 64 * step})


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def test_resumed_file_equals_uninterrupted(tmp_path):
  train(tmp_path / "whole", 1, 9)
  train(tmp_path / "cut", 1, 7)
  with (tmp_path / "cut" / "metrics.jsonl").open("a") as f:
    f.write('{"step": 8, "lo')  # killed while writing
  train(tmp_path / "cut", 5, 9, resume_step=4)
  assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
  assert [r["step"] for r in rows(tmp_path / "cut")] == list(range(1, 10))


def test_damaged_lines_are_left_out_and_said(tmp_path, capsys):
  train(tmp_path, 1, 3)
  whole = rows(tmp_path)
  with (tmp_path / "metrics.jsonl").open("ab") as f:
    f.write(b"\0\0\0\n" + b'{"step\xff": 2}\n')  # as after a power cut
  with Metrics(tmp_path, 3) as metrics:
    assert whole[-1].items() <= metrics.resumed.items()
  assert rows(tmp_path) == whole
  assert "metrics.jsonl: 2 damaged line(s) are left out" in capsys.readouterr().err


def board(workdir):
  data = max((workdir / "tb").glob("events.out.tfevents.*")).read_bytes()
  while data:  # records: length, its checksum, the event, its checksum
    size = int.from_bytes(data[:8], "little")
    yield Event.FromString(data[12:12 + size])
    data = data[16 + size:]


def test_tensorboard_is_told_where_the_resumed_run_begins(tmp_path):
  train(tmp_path, 5, 6, resume_step=4)
  starts = [e.step for e in board(tmp_path) if e.session_log.status == SessionLog.START]
  assert starts == [5]  # TensorBoard drops older events from this step on
  values = [(e.step, v.tag, v.simple_value) for e in board(tmp_path) for v in e.summary.value]
  assert (6, "memory/layer_0", 6.0) in values


class Kept(boards.Board):
  """A board in a file, which forgets nothing."""

  def __init__(self, path):
    self.path = path

  def log(self, row, step):
    with self.path.open("a") as file:
      file.write(f"{step} {row['loss']:.4f}\n")

  def finish(self):
    pass


def test_a_board_that_drops_nothing_is_told_every_step_once(tmp_path, monkeypatch):
  class Filed(boards._Remembering):
    def begin(self, workdir, name, config):
      assert config == {} and len(name) == 8
      return Kept(workdir / name)

  monkeypatch.setitem(boards.BOARDS, "filed", Filed)
  def write(first, last, resume_step=-1):
    with Metrics(tmp_path, resume_step, ["filed"]) as metrics:
      for step in range(first, last + 1):
        metrics.write(step, {"loss": 1 / step})
  write(1, 5)
  write(4, 7, resume_step=3)  # 4 and 5 are taken again
  told = (tmp_path / boards.name_of(tmp_path)).read_text().splitlines()
  assert told == [f"{step} {1 / step:.4f}" for step in range(1, 8)]
  write(1, 2)  # from the start: another run
  assert (tmp_path / boards.name_of(tmp_path)).read_text() == "1 1.0000\n2 0.5000\n"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_board_of_a_library(name, tmp_path, monkeypatch):
  """Where it is installed a run goes on in itself; where not, that is said at the start."""
  if importlib.util.find_spec(name) is None:
    with pytest.raises(ValueError, match=f"pip install 'hope_jax\\[{name}\\]'"):
      boards.check([name])
    return
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  for first, last, resumed in ((1, 3, -1), (3, 4, 2)):
    with Metrics(tmp_path, resumed, [name]) as metrics:
      for step in range(first, last + 1):
        metrics.write(step, {"loss": float(step)})
  if name == "trackio":
    database, = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select run_name, step from metrics order by step")
    names, steps = zip(*rows)
    assert steps == (1, 2, 3, 4) and len({*names}) == 1
  else:
    assert len([*(tmp_path / "wandb").glob(f"*{boards.name_of(tmp_path)}*")]) == 2


def test_run_from_the_start_drops_what_was_there(tmp_path):
  train(tmp_path, 1, 3)
  train(tmp_path, 1, 2)
  assert [r["step"] for r in rows(tmp_path)] == [1, 2]


def test_rows_are_flat_numbers_and_on_disk_at_once(tmp_path):
  with Metrics(tmp_path) as metrics:
    metrics.write(3, {"loss": jnp.float32(0.5), "memory": {"layer_0": {"norm": np.float32(2)}},
                      "tokens": np.int64(7)})
    assert rows(tmp_path) == [{"step": 3, "loss": 0.5, "memory/layer_0/norm": 2.0, "tokens": 7}]
    with pytest.raises(ValueError, match=r"memory/all has shape \(2,\); write one number per name"):
      metrics.write(4, {"memory": {"all": jnp.zeros(2)}})
    assert len(rows(tmp_path)) == 1


class Clock:
  """A clock that stands still unless told."""

  now = 0.0

  def __call__(self):
    return self.now


def test_meter_counts_training_time_alone():
  clock = Clock()
  meter = Meter(steps=100, tokens=1000, flops=6.0, peak=12_000.0, clock=clock)
  clock.now += 60  # compilation
  meter.start(1)
  clock.now += 5
  with meter.pause():
    clock.now += 30  # evaluation
  clock.now += 5
  assert meter.read(11) == {"tokens_per_s": 1000.0, "mfu": 0.5, "eta_s": 89.0}
  clock.now += 5
  assert meter.read(21)["tokens_per_s"] == 2000.0  # of the last interval
  with pytest.raises(ValueError, match="no training between steps 21 and 21"):
    meter.read(21)


def test_lines_are_aligned_and_readable():
  rates = {"tokens_per_s": 51_234.0, "mfu": 0.312, "eta_s": 3725.0}
  a = format_line(5, 1000, loss=8.31, bpb=2.9, rates=rates, grad_norm=1.25, lr=1e-3,
                  memory=[0.1, 0.02])
  b = format_line(990, 1000, loss=10.5, bpb=1.2,
                  rates={"tokens_per_s": 1.5e6, "mfu": 0.05, "eta_s": 9.4},
                  grad_norm=0.01, lr=1e-5, memory=[0.3, 0.4])
  assert a == ("step    5/1000  loss  8.3100  bpb 2.9000   51.2k tok/s  MFU 31.2%  eta  1:02:05  "
               "grad 1.25e+00  lr 1.00e-03  memory 1.0e-01 2.0e-02")
  assert [i for i, c in enumerate(a) if c == "/"] == [i for i, c in enumerate(b)
                                                      if c == "/"] and len(a) == len(b)
  many = format_line(5, 1000, loss=8.31, bpb=2.9, rates=rates, grad_norm=1.25, lr=1e-3,
                     memory=[0.1] * 23 + [0.5])
  assert many.endswith("memory 1.0e-01 to 5.0e-01 in 24 layers")


def test_matmul_rate_is_a_rate_and_measured_once():
  a = np.ones((512, 512), np.float32)
  began = time.perf_counter()
  for _ in range(4):
    a @ a
  numpy_rate = 4 * 2 * 512**3 / (time.perf_counter() - began)
  rate = matmul_rate("float32")
  assert numpy_rate / 30 < rate < 1e16  # the unit is right; shared cores allow no more
  assert matmul_rate("float32") == rate
