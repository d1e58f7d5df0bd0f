"""A model that learns segments one after the other, and what it then makes of all of them.

    for stage in stages(segments, seed):        # before, after each, each alone, all mixed
      fast = learner.learn(stage); nats = learner.test()

One stream learns: its memories are carried from document to document, attention's context is not.
Test documents are read from copies of its state, without writing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hope_jax.model import attention, state
from hope_jax.reading import study
from hope_jax.scoring import choices, memorization
from hope_jax.scoring.segments import Segment


class Stage(NamedTuple):
  """What is learned before a test: documents (token ids); from a fresh state, or going on."""
  name: str
  documents: list[list[int]]
  fresh: bool


def stages(segments: Sequence[Segment], seed: int) -> list[Stage]:
  """Before any, after each in order, each alone, and all in one mixture."""
  mixed = [ids for segment in segments for ids in segment.learn]
  order = np.random.default_rng(seed).permutation(len(mixed))
  return [Stage("before", [], True),
          *(Stage(f"after {segment.name}", segment.learn, False) for segment in segments),
          *(Stage(f"only {segment.name}", segment.learn, True) for segment in segments),
          Stage("joint", [mixed[i] for i in order], True)]


class Learner:
  """One stream. `tests`: of each segment; batch: test documents read at a time."""

  def __init__(self, config, params, how: memorization.Options, segments: Sequence[Segment],
               batch: int | None):
    longest = max(len(ids) for segment in segments for ids in (*segment.learn, *segment.test))
    self.config = attention.with_room(config, choices.room(longest))
    self.params, self.how, self._saved = params, how, config
    self._tests = [ids for segment in segments for ids in segment.test]
    self._counts = [len(segment.test) for segment in segments]
    self._batch = batch or memorization.fitting(config)
    self.reset()

  def reset(self) -> None:
    """What was learned is forgotten, but for a state that was given."""
    self._fast = memorization.start(self.config, self.params, self.how, 1, self._saved)

  def learn(self, stage: Stage) -> list[dict]:
    """What the memories did in each document."""
    if stage.fresh:
      self.reset()
    did = []
    for ids in stage.documents:
      self._fast, own = memorization.learn(self.config, self.params, self._fast, [ids], self.how)
      did += own
    return did

  def test(self) -> list[list[float]]:
    """Nats of each test document of each segment."""
    order = sorted(range(len(self._tests)), key=lambda i: -len(self._tests[i]))
    found = dict.fromkeys(order)
    for first in range(0, len(order), self._batch):
      some = order[first:first + self._batch]
      padded = some + [some[-1]] * (self._batch - len(some))
      fast = state.select(self._fast, jnp.zeros(self._batch, jnp.int32))
      report = study.memorize(self.config, self.params, fast, [self._tests[i] for i in padded],
                              write=False)[1]
      for b, i in enumerate(some):
        found[i] = float(report.nats_BxT[b][report.labels_BxT[b]].astype(np.float64).sum())
    following = iter(range(len(self._tests)))
    return [[found[next(following)] for _ in range(count)] for count in self._counts]
