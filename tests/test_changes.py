"""A run that goes on with other settings: no sequence lost or read twice, no change without a word.
"""

import json

import pytest

from hope_jax import config, versions
from hope_jax.data import loader
from hope_jax.training import changes, loop
from tests.test_train import losses, small

QUICK = dict(model__pattern=("gru",), model__dropout=0.0, channel__kind="swiglu", train__steps=4,
             train__eval_every=100, train__save_every=2)


def changed(c, **fields):
  c = c.copy_and_resolve_references()
  for name, value in fields.items():
    section, field = name.split("__")
    c[section][field] = value
  return c


def keyed(batch):
  return [row.tobytes() for row in batch["tokens"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(configuration, folder) of four steps of four sequences."""
  folder = tmp_path_factory.mktemp("run")
  c = small(folder, **QUICK)
  loop.train(c, folder / "run")
  return c, folder / "run"


@pytest.mark.parametrize("batches", [(4, 8, 2), (8, 4, 1)])
def test_no_sequence_is_lost_or_read_twice_when_the_batch_changes(tmp_path, monkeypatch, capsys,
                                                                  batches):
  read, draw = [], loop._Run.draw

  def noted(*args):
    batch = draw(*args)
    read.extend(keyed(batch))
    return batch

  monkeypatch.setattr(loop._Run, "draw", noted)
  c = small(tmp_path, **QUICK, optim__final_lr=1.0)  # so that more steps are the same run
  for part, size in enumerate(batches):
    c.data.batch, c.train.steps = size, 2 * part + 2
    loop.train(c, tmp_path / "run")
  first, second, third = batches
  said = capsys.readouterr().err
  assert f"changed at step 2: data.batch {first} -> {second} (the data go on after" in said
  assert f"changed at step 4: data.batch {second} -> {third} (the data go on after" in said
  c.data.batch = 1
  whole = loader.train_batches(c)
  assert read == [keyed(next(whole))[0] for _ in range(2 * sum(batches))]


def test_a_position_of_an_earlier_version_counts_its_batches():
  assert versions.position({"next_index": 20}, 4) == {"sequences": 80}
  assert versions.position({"sequences": 7}, 4) == {"sequences": 7}


@pytest.mark.parametrize("fields, told", [
    (dict(train__steps=40), r"train.steps 4 -> 40 \(the learning rate of step 5 is .* instead of"),
    (dict(optim__lr=0.1), r"optim.lr 0.001 -> 0.1 \(the learning rate of step 5 is"),
    (dict(optim__warmup=9), "optim.warmup 2 -> 9"),
    (dict(optim__weight_decay=0.0), r"optim.weight_decay 0.1 -> 0.0 \(other steps\)"),
    (dict(optim__name="muon"), "optim.name adamw -> muon"),
    (dict(adamw__b1=0.5), r"adamw.b1 0.9 -> 0.5 \(other steps\)"),
    (dict(data__seed=1), "data.seed 0 -> 1 .*some come again and some are left out"),
    (dict(data__seq=64), "data.seq 32 -> 64 .*some come again"),
    (dict(model__dim=32), "model.dim 16 -> 32 .another model"),
    (dict(gru__forget_init=0.0), "gru.forget_init -1.0 -> 0.0 .another model"),
    (dict(teach__scale=0.5), "teach.scale 1.0 -> 0.5 .memories are written otherwise")])
def test_what_breaks_the_law_is_refused_in_a_line_and_changes_nothing(run, fields, told):
  c, workdir = run
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()
            and path.name != "goodput.json"}
  with pytest.raises(ValueError, match=told) as error:
    loop.train(changed(c, **fields), workdir)
  assert "give --allow_changes" in str(error.value) and "\n" not in str(error.value)
  assert before.items() <= {path: path.stat().st_mtime_ns for path in before}.items()


def test_fewer_steps_than_were_taken_are_refused_whatever_is_allowed(run):
  for allowed in (False, True):
    with pytest.raises(ValueError, match="train.steps=3, and 4 steps are taken: set it to 4 or"):
      loop.train(changed(run[0], train__steps=3), run[1], allow_changes=allowed)


def test_what_is_allowed_is_said_and_trains(run, tmp_path, capsys):
  c, _ = run
  loop.train(c, tmp_path / "run")
  capsys.readouterr()
  more = changed(c, train__steps=6, optim__lr=0.01, train__log_every=2)
  loop.train(more, tmp_path / "run", allow_changes=True)
  said = capsys.readouterr().err
  assert "changed at step 4: optim.lr 0.001 -> 0.01 (the learning rate of step 5 is" in said
  assert "train.steps 4 -> 6" in said and "train.log_every 1 -> 2" in said
  assert max(losses(tmp_path / "run")) == 6
  loop.train(more, tmp_path / "run")  # its own configuration by now
  assert "changed at" not in capsys.readouterr().err


@pytest.mark.parametrize("fields", [
    dict(train__save_every=3), dict(mesh__fsdp=2), dict(train__keep=5), dict(model__remat="block"),
    dict(optim__accumulate=2), dict(train__rollback_after=3), dict(attention__context=7)])
def test_what_keeps_the_law_goes_on_and_is_said(run, fields, capsys):
  c = run[0]
  changes.check(4, c, changed(c, **fields), True, False)
  (name, value), = fields.items()
  said = capsys.readouterr().err
  assert f"{name.replace('__', '.')} " in said and f" -> {value}" in said


def test_a_rate_that_stays_is_no_change(capsys):
  c = small_config(optim__final_lr=1.0, optim__warmup=2, train__steps=10)
  changes.check(5, c, changed(c, train__steps=20, optim__warmup=3), True, False)
  assert "the same learning rate in all steps that come" in capsys.readouterr().err
  with pytest.raises(ValueError, match="the learning rate of step 2 is"):
    changes.check(1, c, changed(c, optim__warmup=3), True, False)


def test_other_shards_are_other_data_and_the_same_elsewhere_are_not(capsys):
  c = small_config()
  other = changed(c, data__dir="elsewhere")
  changes.check(5, c, other, True, False)
  assert "data.dir runs/data/embedded_4k -> elsewhere (the same tokens)" in capsys.readouterr().err
  with pytest.raises(ValueError, match="data.dir .*some come again and some are left out"):
    changes.check(5, c, other, False, False)
  source = c.data.sources[0].copy_and_resolve_references()
  source.weight = 2.0
  with pytest.raises(ValueError, match="data.sources .*some come again"):
    changes.check(5, c, changed(c, data__sources=(source,)), True, False)


def small_config(**fields):
  return changed(config.base(), **fields)


def test_every_field_that_is_listed_is_one():
  fields = changes._flat(config.base())
  for pattern in (*changes.FREE, *changes.SHARDS):
    assert changes.fnmatch.filter(fields, pattern), pattern
  assert {*changes.BREAKS} <= {name.split(".")[0] for name in fields}
  sections = json.loads(config.to_json(config.base()))
  assert {name for name, part in sections.items() if part != {}} - {"version"} == {
      name.split(".")[0] for name in fields}


@pytest.mark.parametrize("before, after", [((True, 8), (True, 4)), ((False, 8), (True, 8))])
def test_rows_that_read_on_stay_as_many(before, after):
  old, new = (small_config(data__carry=carry, data__batch=size) for carry, size in (before, after))
  with pytest.raises(ValueError, match=f"set data.carry={before[0]} and data.batch=8 again"):
    changes.check(5, old, new, True, True)
