"""The table of compiled programs: every one can run, with the numbers of the dry run."""

import pytest

from evals import compiled


@pytest.mark.parametrize("table", ["meshes", "remat", "depths", "lengths"])
def test_every_program_can_run(table):
  for entry in compiled.cases(table):
    c = compiled.configuration(entry)
    assert c.data.batch % (c.optim.accumulate * c.mesh.data * c.mesh.fsdp) == 0
  with pytest.raises(ValueError, match="no table nonsense"):
    compiled.cases("nonsense")


@pytest.mark.slow
def test_a_program_has_its_devices_and_says_why_it_was_left_out():
  small = {"model.dim": 32, "model.vocab": 64, "selfmod.memory": "linear", "data.seq": 64,
           "optim.name": "adamw"}
  done = compiled.apart(compiled.case("smoke", "two", (1, 2, 1), **small), minutes=5)
  assert done["label"] == "two" and done["seq"] == 64 and done["flops"] > 0 and sum(
      done["sent"].values()) > 0
  assert 0 < done["memory"]["arguments"] < done["memory"]["peak"]
  broken = compiled.apart(compiled.case("smoke", "none", (1, 1, 1), **{"model.dim": 31}), minutes=5)
  assert "model.dim=31 is not divisible" in broken["left_out"]
