"""How a program begins with its flags, and ends with one line where a person can mend it."""

from collections.abc import Callable, Iterator
import contextlib
import os
import sys

from absl import app, flags

from hope_jax import versions


def start(main: Callable, define_flags: Callable) -> None:
  """Runs `main` with the flags that `define_flags` adds to absl's."""
  define_flags(flags.FLAGS)
  app.run(main)


def path(text: str) -> str:
  """A file or folder as a person writes it: ~ is the home folder. ValueError for no name at all."""
  whole = os.path.expanduser(text)
  if not whole:
    raise ValueError("it is empty: name a file or folder")
  if whole.startswith("~"):
    raise ValueError(f"there is no home folder {whole.split('/')[0]}: write the whole path")
  return whole


class _Path(flags.ArgumentParser):

  def parse(self, argument: str) -> str:
    return path(argument)


def define_path(name: str, about: str, **options) -> flags.FlagHolder:
  """A flag that holds a path, None by default; options as of absl's other flags."""
  return flags.DEFINE(_Path(), name, None, about, **options)


@contextlib.contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
  """An error of these kinds in here ends the program with its name and text, no traceback."""
  try:
    yield
  except kinds as error:
    sys.exit(f"{type(error).__name__}: {error}")


def parse_flags(argv: list[str]) -> list[str]:
  """For `app.run`: an unknown field or a wrong type ends the program with a line, no traceback."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    sys.exit(f"{type(error).__name__}: {error}; the fields and their types are in "
             f"hope_jax/config.py{versions.hint(str(error))}")
