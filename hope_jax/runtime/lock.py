"""One process at a time: a lock that ends with its process, however that ends.

    with lock.held(workdir / ".lock", "another --workdir"):
      ...

It is the kernel's (flock), which network file systems pass on to their server. The file says who
holds it, and goes when the lock does.
"""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import os
from pathlib import Path
import shlex
import socket
import sys
import time
from typing import TextIO


@contextlib.contextmanager
def held(path: str | Path, fix: str, patience: float = 0) -> Iterator[None]:
  """Holds the lock of a file. BlockingIOError, saying who holds it and the `fix`, if another does
  (for longer than `patience` seconds; that it waits is said).

  Where the file system has no locks, nothing is held.
  """
  end, said = time.monotonic() + patience, False
  while True:
    try:
      file = _open(Path(path), fix)
      break
    except BlockingIOError as error:
      if time.monotonic() >= end:
        raise
      if not said:
        print(f"waiting: {error}", file=sys.stderr, flush=True)
      said = True
      time.sleep(0.1)
  try:
    yield
  finally:
    with contextlib.suppress(FileNotFoundError):  # its folder may be gone
      os.unlink(path)
    file.close()


def is_held(path: str | Path) -> bool:
  """Whether a process holds the lock of a file."""
  try:
    with held(path, ""):
      return False
  except BlockingIOError:
    return True


def _open(path: Path, fix: str) -> TextIO:
  while True:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = open(path, "a+")
    except OSError as error:
      raise type(error)(error.errno, f"{path.parent} cannot be written: {error.strerror}; choose "
                                     f"{fix}, or change its permissions") from None
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      owner = _owner(file)
      file.close()
      locked = path.parent if path.name == ".lock" else path.with_name(path.name[1:-len(".lock")])
      raise BlockingIOError(f"{locked} is in use by {owner}: wait for its end, or choose {fix}"
                            ) from None
    except OSError:  # no locks here
      return file
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      now = datetime.datetime.now().isoformat(" ", "seconds")
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()} since {now} "
                 f"({shlex.join(sys.argv)})")
      file.flush()
      return file
    file.close()  # its holder has just ended and taken the file away


def _owner(file: TextIO) -> str:
  """What the holder says of itself: it may just have got the lock, and be about to write that."""
  for _ in range(50):
    file.seek(0)
    if said := file.read().strip():
      return said
    time.sleep(0.01)
  return "another process"
