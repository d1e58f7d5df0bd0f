"""An ablation differs from its base in exactly what it says; the report says what its JSON says.

    python -m pytest tests/test_ablations.py
"""

import json

from absl import flags
import pytest

from configs import ablations
from hope_jax import ablate, compare, config
from hope_jax.model import checks
from hope_jax.runtime import startup
from hope_jax.reports import comparison
from hope_jax.training import loop

SAID = {  # sections that a set may touch
    "teach": {"teach.scale", "teach.decay_duration", "channel.levels"}, "cms": {"channel.levels"},
    "selfmod": {"titan.modifier"}, "optimizer": {"optim.name"}, "rule": {"channel.levels"},
    "attention": {"attention.window", "model.pattern"},
    "surprise": {"teach.metric", "teach.threshold"},
    "controls": {"teach.paths", "channel.levels", "model.titan", "control.reset", "control.frozen",
                 "control.sign", "control.shuffled_teach"},
    "memories": {"selfmod.rank_one", "selfmod.alpha", "selfmod.bound", "selfmod.chunk_generators",
                 "selfmod.chunk_memory", "selfmod.momentum", "channel.levels", "control.sign",
                 "control.keys_as_queries"}}


@pytest.mark.parametrize("size", ablations.SIZES)
@pytest.mark.parametrize("kind", ablations.SETS)
def test_each_changes_what_it_says_and_can_run(kind, size):
  first, *names = ablations.SETS[kind]
  assert first in ablations.BASES
  base, seen = ablations.fields(ablations.get_config(f"{first},{size}")), []
  assert base == ablations.fields(ablations.base(first, size))
  for name in names:
    c = ablations.get_config(f"{name},{size}")
    checks.validate(c)
    changed = {field: value for field, value in ablations.fields(c).items()
               if value != base[field]}
    assert changed and changed.keys() <= SAID[kind], name
    assert changed not in seen, name
    seen.append(changed)


def test_levels_keep_all_but_what_is_changed():
  base = ablations.base()
  for name, periods in (("cms_every_token", (1, 1, 1, 1)), ("cms_sparse", (8, 32, 128, 512)),
                        ("cms_one", (32,)), ("cms_three", (1, 4, 32))):
    levels = ablations.get_config(name).channel.levels
    assert tuple(level.period for level in levels) == periods
    assert len({level.name for level in levels}) == len(levels)
    assert all(level.lr == own.lr for level, own in zip(levels, base.channel.levels))
  assert [level.scale for level in ablations.get_config("teach_fast_most").channel.levels] == [
      2.0, 1.0, 0.5, 0.25]


def test_a_run_that_was_made_with_other_settings_is_not_taken_for_this_one(tmp_path):
  found = compare.named(["configs/ablations.py:full"])
  run, = compare.runs(found, {"full": 20}, 1, tmp_path)
  run.folder.mkdir(parents=True)
  (run.folder / "config.json").write_text(config.to_json(run.config))
  compare.check_done([run])
  (run.folder / comparison.COSTS).write_text("{}")
  compare.check_done([run])
  with pytest.raises(ValueError, match="full/seed0 was trained with other settings: choose "):
    compare.check_done(compare.runs(found, {"full": 200}, 1, tmp_path))


def test_names_that_are_none():
  for spec in ("x", "full,large"):
    with pytest.raises(ValueError, match="no ablation .*: choose NAME or NAME,SIZE from full"):
      ablations.get_config(spec)
  with pytest.raises(ValueError, match="no set x: choose from teach, cms"):
    ablate.sets(["x"], "small", [])


@pytest.mark.slow
def test_a_report_says_what_its_json_says(tmp_path, monkeypatch, capsys):
  """One that fails is missing; what two sets share is trained once."""
  trained, train = [], loop.train

  def some(config, folder):
    trained.append(folder.parent.name)
    if config.teach.scale == 0.15:
      raise FloatingPointError("step 1: loss nan")
    return train(config, folder)

  monkeypatch.setattr(loop, "train", some)
  sets, every = {"teach": ("full", "teach_15"), "selfmod": ("full", "modifier_off")}, ablate.sets
  def tiny(*given):
    return {name: {ablation: found[ablation] for ablation in sets[name]}
            for name, found in every(*given).items()}
  monkeypatch.setattr(ablate, "sets", tiny)
  monkeypatch.setattr(startup, "prepare", lambda *_, **__: None)  # jax has its devices
  values = flags.FlagValues()
  ablate.define_flags(values)
  fields = ("data.task='recall'", "model.dim=16", "model.layers=1", "model.heads=2", "data.batch=2",
            "data.seq=64", "train.steps=2", "train.eval_batches=1", "channel.hidden=1.0")
  values(["ablate", "--set=teach,selfmod", "--seeds=1", f"--workdir={tmp_path}",
          *(f"--override={field}" for field in fields)])
  ablate.main(None, values)
  said = capsys.readouterr()
  assert trained == ["full", "teach_15", "modifier_off"]
  assert "teach_15, seed 0, failed" in said.err and "Missing: teach_15." in said.out
  found = json.loads((tmp_path / "reports" / "ablations.json").read_text())["sets"]
  text = (tmp_path / "reports" / "ablations.md").read_text()
  assert text.strip() == said.out.strip()
  for kind in sets:
    for row in found[kind]["models"]:
      assert f"| {row['name']} | 1 | {row['score']['value']:.4f} |" in text
      for path, value in row["moved"].items():
        assert f"{path} {value:.3g}" in text
  assert found["selfmod"]["models"][1]["difference"]["value"] == pytest.approx(
      found["selfmod"]["models"][1]["score"]["value"]
      - found["selfmod"]["models"][0]["score"]["value"])
