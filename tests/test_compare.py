"""Models that are trained on the same batches: the budget, the pairs, what the table says.

    python -m pytest tests/test_compare.py
"""

import json

from absl import flags
import numpy as np
import pytest

from hope_jax import compare
from hope_jax.reports import comparison
from hope_jax.runtime import program, startup
from hope_jax.scoring import intervals
from hope_jax.training import budget, costs, loop

CONFIG = """
from pathlib import Path
from hope_jax import config
from tests import small_data

def get_config(name="transformer"):
  c = small_data.small(Path("{folder}"))
  kind, _, lr = name.partition(",")
  c.model.update(dict(config.PRESETS[kind], dim=16, layers=1, heads=2))
  c.attention.window, c.channel.hidden = 16, 1.0
  c.train.eval_batches, c.optim.warmup = 1, 0
  c.optim.lr = float(lr or 1e-2)
  return c
"""


@pytest.fixture(scope="module")
def file(built, tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(CONFIG.format(folder=built))
  return path


@pytest.fixture(autouse=True)
def devices(monkeypatch):
  """jax has them already."""
  monkeypatch.setattr(startup, "prepare", lambda *_, **__: None)


def call(*arguments):
  values = flags.FlagValues()
  compare.define_flags(values)
  values(["compare", *arguments])
  compare.main(["compare"], values)


def arguments(file, workdir, *more):
  return (f"--configs={file}:transformer,{file}:gru,1e-3", "--budget=tokens:2000",
          f"--workdir={workdir}", *more)


def parsed(text):
  """The cells of a markdown table."""
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


@pytest.mark.slow
def test_a_comparison(file, tmp_path, monkeypatch, capsys):
  """One seed, cut in its second run; then two seeds, where what is done is not done again."""
  trained, train = [], loop.train

  def cut(config, folder):
    trained.append(str(folder.relative_to(tmp_path)))
    if len(trained) == 2:
      raise KeyboardInterrupt
    return train(config, folder)

  monkeypatch.setattr(loop, "train", cut)
  with pytest.raises(KeyboardInterrupt):
    call(*arguments(file, tmp_path, "--seeds=1"))
  call(*arguments(file, tmp_path, "--seeds=2"))
  assert trained == ["transformer/seed0", "gru-1e-3/seed0", "gru-1e-3/seed0",
                     "transformer/seed1", "gru-1e-3/seed1"]
  result = json.loads((tmp_path / "results.json").read_text())
  assert result["score"] == "bpb" and {m["tokens"] for m in result["models"]} == {2048}
  for run in result["runs"]:
    folder = tmp_path / run["name"].replace(",", "-") / f"seed{run['seed']}"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "validation/bpb" in row][-1]
    assert run["points"][-1]["score"] == last["validation/bpb"] and last["step"] == 8
    assert 0 < run["points"][-1]["seconds"] and run["parameters"] > run["without_embedding"]
  final = {(run["name"], run["seed"]): run["points"][-1]["score"] for run in result["runs"]}
  for model in result["models"][1:]:
    both = [final[model["name"], seed] - final["transformer", seed] for seed in (0, 1)]
    assert model["difference"] == pytest.approx(intervals.student(both))
  said = capsys.readouterr().out
  assert said.strip() == (tmp_path / "results.md").read_text().strip()
  head, _, *rows = parsed(said.strip())
  for row, model in zip(rows, result["models"], strict=True):
    own = dict(zip(head, row))
    assert row[0] == model["name"] and own["parameters, M"] == f"{model['parameters'] / 1e6:.3f}"
    assert own["bits per byte (95 %)"].startswith(f"{model['score']['value']:.4f} (")
  assert all((tmp_path / f"{key}.png").stat().st_size > 1000 for key in comparison.AXES)
  with pytest.raises(SystemExit, match="is of another budget or of other configurations"):
    call(*arguments(file, tmp_path, "--override=optim.lr=0.5"))


@pytest.mark.nightly
def test_workers_train_as_one_does(file, tmp_path, monkeypatch):
  scores = []
  for workers in (1, 2):
    own = arguments(file, tmp_path / str(workers), "--seeds=1", f"--workers={workers}")
    monkeypatch.setattr(compare.sys, "argv", ["compare", *own])
    call(*own)
    result = json.loads((tmp_path / str(workers) / "results.json").read_text())
    scores.append([run["points"][-1]["score"] for run in result["runs"]])
  np.testing.assert_allclose(*scores, rtol=1e-5)  # another number of devices


def test_a_run_that_fails_is_said_and_the_others_count(file, tmp_path, monkeypatch, capsys):
  train = loop.train

  def fail(config, folder):
    if "gru" in str(folder):
      raise FloatingPointError("step 1: loss nan")
    return train(config, folder)

  monkeypatch.setattr(loop, "train", fail)
  with pytest.raises(SystemExit, match="without gru,1e-3 seed 0: see above"):
    call(*arguments(file, tmp_path, "--seeds=1"))
  said = capsys.readouterr()
  assert "gru,1e-3, seed 0, failed: step 1: loss nan" in said.err
  assert [row[0] for row in parsed(said.out.strip())[2:]] == ["transformer"]


def test_budgets(file):
  c = program.configuration(f"{file}:transformer")
  each = costs.training_flops(c) * 4 * 64
  assert budget.steps(budget.parse("tokens:2e3"), c) == 8
  assert budget.steps(budget.parse(f"flops:{7.5 * each}"), c) == 7
  with pytest.raises(ValueError, match="less than a step takes"):
    budget.steps(budget.parse(f"flops:{0.9 * each}"), c)
  for text in ("tokens", "tokens:", "tokens:-1", "tokens:inf", "hours:1", "tokens:nan"):
    with pytest.raises(ValueError, match="a budget is one of tokens, flops, seconds"):
      budget.parse(text)


def test_a_budget_of_seconds_is_as_many_steps_as_they_hold(file, monkeypatch):
  monkeypatch.setattr(budget, "MEASURED", 0.01)
  c = program.configuration(f"{file}:gru")
  found = budget.steps(budget.parse("seconds:100"), c)
  assert 100 < found < 100_000  # a step takes 1 ms to 1 s


@pytest.mark.parametrize("given, message", [
    (["{file}:gru", "{file}:gru"], "two configurations are called gru"),
    (["{file}:none"], "tiny.py:none: .*KeyError"), (["none.py"], "there is no such file"),
    (["{file}:gru", "configs/smoke.py"],
     "not trained on the same batches: data.align is 16 and 64")])
def test_what_cannot_be_compared(file, given, message):
  with pytest.raises(ValueError, match=message):
    compare.named([text.format(file=file) for text in given])


def test_settings_are_of_all_and_of_known_fields(file):
  found = compare.named([f"{file}:gru", f"{file}:transformer", "1e-3"],
                        ["data.seq=32", "optim.name=muon", "teach.layers=(0,)"])
  assert [*found] == ["gru", "transformer,1e-3"]
  assert all(c.data.seq == 32 and c.optim.name == "muon" and c.teach.layers == (0,)
             for c in found.values())
  for text in ("data.sequence=3", "data.seq=x"):
    with pytest.raises(ValueError, match="tiny.py:gru: "):
      compare.named([f"{file}:gru"], [text])


def test_students_interval_covers_as_stated():
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(2000):
    found = intervals.student(rng.normal(3.0, 2.0, 4))
    inside += found["low"] <= 3.0 <= found["high"]
  assert 0.935 < inside / 2000 < 0.965
  assert intervals.student([1.5]) == {"value": 1.5, "low": None, "high": None}
