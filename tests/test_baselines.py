"""Models to be compared have as many parameters, and differ in what their names say.

    python -m pytest tests/test_baselines.py
"""

import pytest

from configs import baselines, controls, mid, pilot, target
from hope_jax.model import checks
from hope_jax.training import costs

SHARED = ("data", "optim", "train", "muon", "adamw")  # sections


def matched(names, sizes):
  for size in sizes:
    first = baselines.get_config(f"{names[0]},{size}")
    for name in names:
      c = baselines.get_config(f"{name},{size}")
      checks.validate(c)
      total, rest = costs.parameters(c)
      assert total == pytest.approx(baselines.TOTALS[size], rel=0.02), (name, size, total)
      assert total - rest == c.model.vocab * c.model.dim
      assert all(c[section] == first[section] for section in SHARED), (name, size)


def test_small_ones_are_of_one_size():
  matched(list(baselines.HIDDEN), ["small"])


@pytest.mark.nightly
def test_large_ones_are_of_the_sizes_of_the_large_configurations():
  for size, module in (("pilot", pilot), ("mid", mid), ("target", target)):
    total, _ = costs.parameters(module.get_config())
    assert baselines.TOTALS[size] == pytest.approx(total, rel=0.01)
  matched(list(baselines.HIDDEN), ["pilot", "mid", "target"])


def test_attention_is_swapped_by_name():
  full, window, delta = (baselines.get_config(name) for name in (
      "hope_hybrid", "hope_hybrid_window", "hope_hybrid_deltanet"))
  assert full.attention.window == 0 and window.attention.window == window.data.seq // 8
  assert delta.model.pattern == ("gated_deltanet",) and delta.model.titan == "modified"


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_a_control_changes_what_it_says_and_nothing_else(control):
  fields = {
      "memory_off": {"teach.paths"}, "reset": {"control.reset"}, "frozen": {"control.frozen"},
      "reversed": {"control.sign"}, "keys": {"control.keys_as_queries"},
      "shuffled": {"control.shuffled_teach"}, "one_period": {"channel.levels"},
      "no_cms": {"channel.levels"}, "no_self_modification": {"model.titan"}}
  plain, c = (baselines.get_config(f"hope_hybrid{rest}") for rest in ("", f",small,{control}"))
  checks.validate(c)
  changed = {f"{section}.{name}" for section in c if section != "seed" for name in c[section]
             if c[section][name] != plain[section][name]}
  assert changed == fields[control]
  if control not in ("no_cms", "no_self_modification"):
    assert costs.parameters(c) == costs.parameters(plain)
  if control == "reversed":
    assert controls.controlled(c, control) == plain


def test_self_modifying_memories_become_titans():
  c = baselines.get_config("hope_selfmod,small,no_self_modification")
  assert c.model.pattern == ("titans_lmm",)


@pytest.mark.parametrize("spec", ["rnn", "gru,huge"])
def test_a_name_that_is_none_is_refused(spec):
  with pytest.raises(ValueError, match=f"no baseline {spec}: choose NAME or NAME,SIZE from trans"):
    baselines.get_config(spec)
  with pytest.raises(ValueError, match="no control off: choose from memory_off"):
    baselines.get_config("gru,small,off")
