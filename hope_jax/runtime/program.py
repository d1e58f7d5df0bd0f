"""How a program begins with its flags, and ends with one line where a person can mend it."""

from collections.abc import Callable, Iterator
import contextlib
import sys

from absl import app, flags


def start(main: Callable, define_flags: Callable) -> None:
  """Runs `main` with the flags that `define_flags` adds to absl's."""
  define_flags(flags.FLAGS)
  app.run(main)


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
             "hope_jax/config.py")
