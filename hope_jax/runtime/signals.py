"""Being told to stop, by a person or a scheduler: noted, so that a program can finish what it must.

SIGTERM, SIGINT and SIGUSR1 (what SLURM sends ahead of time with --signal=USR1@60). By custom the
exit status is 128 + signal: 143, 130, 138; a shell shows the same for a program that did not catch
it.
"""

import contextlib
import signal


class Signals(contextlib.AbstractContextManager):
  """`caught`: number of the first signal within, or 0. Of later ones only another SIGINT acts."""

  def __enter__(self):
    self.caught, self.before = 0, {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
      self.before[number] = signal.signal(number, self.catch)
    return self

  def catch(self, number, _):
    self.caught = self.caught or number
    signal.signal(signal.SIGINT, self.before[signal.SIGINT])

  def __exit__(self, *_):
    for number, handler in self.before.items():
      signal.signal(number, handler)
