"""Evaluations while a model is trained: programs of evals/, on a step that is saved.

    c.train.evaluations = ("niah:1000 --lengths=2048 --memorize", "passkey:500")

Every so many steps, which are saved then, a program scores the saved step, as from a command line:
what it writes lies in WORKDIR/evaluations/, its main scores are in the metrics. One that fails, or
takes more memory than there is, has lost nothing: it is said and logged, and training goes on
(train.on_evaluation_error=stop ends it). A signal gives it up, and the run that goes on takes it up
where it was. Of many processes the first one runs them.
"""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import re
import shlex
import signal
from typing import NamedTuple

import jax

from hope_jax.runtime.startup import say
from hope_jax.scoring import programs


class _Stopped(BaseException):
  """A signal has come."""


class Entry(NamedTuple):
  """One of train.evaluations."""
  name: str
  every: int
  argv: list[str]


def entries(config) -> list[Entry]:
  """ValueError, naming the fix, for an entry that cannot be run."""
  found = []
  for text in config.train.evaluations:
    match = isinstance(text, str) and re.fullmatch(r"(\w+):([1-9]\d*)((?: --\S+)*)", text)
    if not match:
      raise ValueError(f"train.evaluations: {text!r} is no evaluation: write "
                       "\"niah:1000 --lengths=2048\", name, steps, flags")
    name, every = match[1], int(match[2])
    if name not in programs.PROGRAMS:
      raise ValueError(f"train.evaluations: there is no {name}: choose of "
                       f"{', '.join(programs.PROGRAMS)}")
    if every % config.train.save_every:
      raise ValueError(f"train.evaluations: {name} is to score step {every}, and steps are saved "
                       f"every train.save_every={config.train.save_every}: set it to a multiple")
    found.append(Entry(name, every, shlex.split(match[3])))
  return found


def at(run, i: int, validate: bool) -> dict:
  """What `run` (loop.py) scores at step i, where it is due: validation, whose scores are returned,
  then the programs whose files are not there yet.
  """
  result = run.evaluate(i) if validate else {}
  for entry in entries(run.config):
    output = run.workdir / "evaluations" / f"{i}_{entry.name}.json"
    due = i and i % entry.every == 0 and not output.exists()
    if due and not run.stop and jax.process_index() == 0:
      _score(run, i, entry, output)
  return result


def _score(run, i: int, entry: Entry, output: Path) -> None:
  try:
    with run.pause("evaluation"), given_up(run.signals):
      run.saved.wait()
      programs.call(entry.name, [f"--checkpoint={run.workdir / 'checkpoints' / str(i)}",
                                 f"--output={output}", *entry.argv])
  except RuntimeError as error:
    run.record(i, {"evaluation": {entry.name: {"failed": 1}}})
    run.forgive(f"{entry.name} of step {i} failed: {error}", error)
    return
  if run.signals.caught:
    return
  scores = programs.headline(programs.PROGRAMS[entry.name].headline,
                             json.loads(output.read_text()))
  found = {way: own["value"] for way, own in scores.items()}
  run.record(i, {"evaluation": {entry.name: found}})
  say(f"step {i} {entry.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
      + f" ({output})")


@contextlib.contextmanager
def given_up(signals) -> Iterator[None]:
  """A signal (runtime/signals.py) is noted, as without this, and ends what runs in here."""
  def catch(number, frame):
    signals.catch(number, frame)
    raise _Stopped
  before = {number: signal.signal(number, catch) for number in signals.before}
  try:
    yield
  except _Stopped:
    before[signal.SIGINT] = signals.before[signal.SIGINT]  # as signals.catch has it
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
