"""What does nothing in training: closed gates, memories without a write, levels without a step."""

import numpy as np

from hope_jax.runtime.startup import say
from hope_jax.scoring import validation

CLOSED_STEPS = 100  # without an open gate, after which it is said


class Activity:
  """What has moved since this process began to train."""

  def __init__(self, config):
    self._config, self._steps, self._names, self._moved = config, 0, set(), set()
    self._closed = {}  # steps since a gate of each memory opened

  def see(self, step: int, memory: dict, updates: dict) -> None:
    """One step's statistics and groups.norms of its update; says which gates stay closed."""
    self._steps += 1
    self._moved |= {name for name, moved in {**memory, **updates}.items() if np.any(moved > 0)}
    for name, opened in memory.items():
      kind, _, path = name.partition("/")
      if kind == "open":
        self._closed[path] = 0 if opened.any() else self._closed.get(path, 0) + 1
        if self._closed[path] == CLOSED_STEPS:
          self._closed[path] = 0
          say(f"step {step}: no gate of {path} opened in {CLOSED_STEPS} steps: its surprise is now "
              f"{float(memory['surprise/' + path].max()):.3g}, teach.threshold is "
              f"{self._config.teach.threshold:.3g}")
    self._names = {name for name in memory if name.startswith("moved")
                   and validation.writes(self._config, name)} | {
                       name for name in updates if name.startswith("level_")}

  def dead(self) -> list[str]:
    """Memories that nothing was written to, and levels that no step has changed."""
    return sorted(name.removeprefix("moved/") for name in self._names - self._moved)

  def report(self) -> None:
    """One line, if anything is dead."""
    if dead := self.dead():
      say(f"in {self._steps} steps {', '.join(dead)} did nothing: see teach.threshold, teach.scale "
          "and the level's lr and period, leave the level out, or grow it from a trained model "
          "(--init_from)")
