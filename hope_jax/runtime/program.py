"""How a program begins with its flags, and ends with one line where a person can mend it."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import importlib.util
import os
from pathlib import Path
import sys
import tempfile
import traceback
import types

from absl import app, flags
from ml_collections import config_flags, ConfigDict

from hope_jax import versions

PACKAGE = Path(__file__).resolve().parents[1]  # has links to configs/ and evals/: so has the wheel


def start(main: Callable, define_flags: Callable) -> None:
  """Runs `main` with the flags that `define_flags` adds to absl's."""
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=parse_flags)


def path(text: str) -> str:
  """A file or folder as a person writes it: ~ is the home folder. ValueError for no name at all."""
  whole = os.path.expanduser(text)
  if not whole:
    raise ValueError("it is empty: name a file or folder")
  if whole.startswith("~"):
    raise ValueError(f"there is no home folder {whole.split('/')[0]}: write the whole path")
  return whole


def ready(path: str | Path) -> Path:
  """Makes the folder of a file that comes later; OSError if it could not be written there."""
  path = Path(path)
  try:
    if path.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      return path
  except OSError as error:
    raise type(error)(error.errno, f"{path} cannot be written: {error.strerror}; choose another "
                                   "file, or change the permissions of its folder") from None


def replace(path: str | Path, text: str) -> None:
  """Writes a text file, which is whole at any moment, or as it was."""
  new = Path(f"{path}.new")
  new.write_text(text)
  os.replace(new, path)


class _Path(flags.ArgumentParser):

  def parse(self, argument: str) -> str:
    return path(argument)


def define_path(name: str, about: str, **options) -> flags.FlagHolder:
  """A flag that holds a path, None by default; options as of absl's other flags."""
  return flags.DEFINE(_Path(), name, None, about, **options)


class _Config(flags.ArgumentParser):

  def parse(self, argument: str) -> ConfigDict:
    return configuration(argument)

  def flag_type(self) -> str:
    return "configuration file"


def define_config(about: str, values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
  """The flag --config, a file that `configuration` runs; --config.any.field=value sets a field."""
  holder = config_flags.DEFINE_config_file("config", None, about, flag_values=values)
  values["config"].parser = _Config()
  return holder


def configuration(argument: str) -> ConfigDict:
  """What get_config() of a file returns, locked; "file:text" calls get_config("text").

  A file that is not there is looked for in this package: configs/smoke.py is, wherever one is. The
  file may import others beside it, in ./configs and of the package from `configs`. ValueError, in
  one line that names file and line, for what goes wrong in it.
  """
  name, *given = argument.split(":", 1)
  file, module = _module(name)
  with _named(file):
    config = module.get_config(*given)
  if not isinstance(config, ConfigDict):
    raise ValueError(f"get_config() returned {type(config).__name__}: return base() of "
                     "hope_jax.config with some fields changed")
  return config.lock()


def module(name: str) -> types.ModuleType:
  """Such a file itself, found and named as `configuration` does."""
  return _module(name)[1]


def _module(name: str) -> tuple[Path, types.ModuleType]:
  file = Path(path(name))
  file = file if file.exists() or not (PACKAGE / file).is_file() else PACKAGE / file
  if not file.is_file():
    known = ", ".join(sorted(f"configs/{own.name}" for own in (PACKAGE / "configs").glob("*.py")))
    raise ValueError(f"there is no such file; hope_jax brings {known}")
  _import_beside(file)
  spec = importlib.util.spec_from_file_location("config_of_a_run", file)
  found = importlib.util.module_from_spec(spec)
  with _named(file):
    spec.loader.exec_module(found)
  return file, found


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
  """An error in here is a ValueError of one line, with the line of the file."""
  try:
    yield
  except Exception as error:
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__)
             if at.filename == str(file.absolute())]
    where = f"line {lines[-1]}: " if lines else ""
    raise ValueError(f"{where}{type(error).__name__}: {' '.join(str(error).split())}") from None


def _import_beside(file: Path) -> None:
  """`from configs import smoke` finds files beside this one, in ./configs and in this package."""
  if getattr(sys.modules.get("configs"), "__spec__", None) is None:  # not yet, or of another file
    for name in [name for name in sys.modules if name.startswith("configs.")]:
      del sys.modules[name]
    module = sys.modules["configs"] = types.ModuleType("configs")
    module.__path__ = [str(file.absolute().parent), str(Path("configs").absolute()),
                       str(PACKAGE / "configs")]


@contextlib.contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
  """An error of these kinds in here ends the program with its name and text, no traceback."""
  try:
    yield
  except kinds as error:
    sys.exit(f"{type(error).__name__}: {error}")


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """For `app.run`: an unknown field or a wrong type ends the program with a line, no traceback."""
  try:
    return values(argv)
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    fix = ("; the fields and their types are in hope_jax/config.py" + versions.hint(str(error))
           if "config" in values else "; --help lists all flags")
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}{fix}")
