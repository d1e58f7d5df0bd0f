"""evals/interrupted.py at few moments: what is killed leaves nothing half, of two runs one trains.
"""

import random

import pytest

from evals import interrupted
from hope_jax.training import loop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """With a run and its data."""
  folder = tmp_path_factory.mktemp("interrupted")
  loop.train(interrupted.config(folder), folder / "run")
  return folder


@pytest.mark.parametrize("what", interrupted.WORK)
def test_killed_at_any_moment(folder, what):
  assert interrupted.kill(what, folder, 2, random.Random(1))["kills"] == 2


def test_of_two_that_race_for_a_workdir_one_trains(folder):
  interrupted.race(folder, 2)
