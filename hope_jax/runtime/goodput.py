"""Where a run's time went, over all its restarts: the share of steps that stayed, and the rest.

    goodput = Goodput(workdir / "goodput.json")
    goodput.resume(step)                 of the checkpoint; 0 without one
    with goodput.span("save"): ...       the time in here is saving; outside, what `enter` said last
    goodput.write(step)                  on disk at once: a kill loses at most what came after

Every second of a process, from the Goodput's creation, is in exactly one of KINDS. `data` and
`save` are what the loop waits for, not what goes on behind it. `lost` is the time of steps that
were done and are not in the run: those that a restart had to repeat and those that a rollback
dropped, each at the mean time of a step. Not known, and left out: the time between the last write
and a kill, between the end of a process and its restart, and Python's own start.
"""

import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hope_jax.runtime import program

KINDS = ("steps", "start", "compile", "data", "save", "restore", "evaluation", "lost")


class Goodput:
  """A run's account in the file `path`; a broken one is set aside (.damaged), a new one begins."""

  def __init__(self, path: str | Path, clock: Callable[[], float] = time.perf_counter):
    self.path, self._clock = Path(path), clock
    self._kept = {"starts": 0, "step": 0, "steps": 0, "lost_steps": 0,
                  "seconds": dict.fromkeys(KINDS, 0.0)}
    try:
      self._kept = json.loads(self.path.read_bytes())
    except FileNotFoundError:
      pass
    except ValueError:  # a power cut may leave an empty file: not worth a run
      os.replace(self.path, self.path.with_suffix(".json.damaged"))
    self._kept["starts"] += 1
    self._kind, self._since = "start", clock()

  def resume(self, step: int) -> None:
    """The run goes on from here; the steps beyond it that the file knows are lost work."""
    self.lose(self._kept["step"] - step)
    self._kept["step"] = step

  def lose(self, steps: int) -> None:
    """The last so many steps, if any, are not in the run after all."""
    kept, seconds = self._kept, self._kept["seconds"]
    steps = min(max(steps, 0), kept["steps"])
    if steps:
      time_lost = seconds["steps"] * steps / kept["steps"]
      seconds["steps"] -= time_lost
      seconds["lost"] += time_lost
      kept["steps"] -= steps
      kept["lost_steps"] += steps

  def enter(self, kind: str) -> str:
    """The time from now on is of this kind; returns what it was before."""
    before, now = self._kind, self._clock()
    self._kept["seconds"][before] += now - self._since
    self._kind, self._since = kind, now
    return before

  @contextlib.contextmanager
  def span(self, kind: str) -> Iterator[None]:
    """The time in here is of this kind."""
    before = self.enter(kind)
    try:
      yield
    finally:
      self.enter(before)

  def write(self, step: int) -> None:
    """Everything until now, the run being at `step`; the file is replaced as a whole."""
    self.enter(self._kind)
    self._kept["steps"] += step - self._kept["step"]
    self._kept["step"] = step
    program.replace(self.path, json.dumps(self._kept, indent=1))

  def summary(self) -> dict[str, float]:
    """Shares (0 to 1, together 1) by kind, and: seconds, starts, lost_steps."""
    total = sum(self._kept["seconds"].values())
    return ({kind: seconds / max(total, 1e-9) for kind, seconds in self._kept["seconds"].items()}
            | {"seconds": total, "starts": self._kept["starts"],
               "lost_steps": self._kept["lost_steps"]})

  def line(self) -> str:
    """The summary for a person."""
    s = self.summary()
    rest = ", ".join(f"{kind} {100 * s[kind]:.1f}" for kind in KINDS[1:])
    return (f"goodput: {100 * s['steps']:.1f} % of "
            f"{datetime.timedelta(seconds=round(s['seconds']))} in steps that stayed; {rest} "
            f"({s['lost_steps']} steps); {s['starts']} start{'s' * (s['starts'] > 1)}")
