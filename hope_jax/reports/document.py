"""A page that needs neither server nor network: sections of text, pictures, tables.

    document.write(path, "a run", [Section("curves", pictures=[document.drawn(figure)])])

Needs jinja2 (hope_jax[evals]).
"""

import base64
from collections.abc import Sequence
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

from hope_jax.runtime import program

MISSING = "the page needs jinja2: pip install 'hope_jax[evals]'"
# Okabe and Ito's, which the colour-blind tell apart, on light and dark ground
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")


class Token(NamedTuple):
  """A piece of a text on a ground of some colour; about: what is said when one points at it."""
  text: str
  colour: str
  about: str


class Section(NamedTuple):
  """A table has a head; pictures are data: addresses."""
  title: str
  text: str = ""
  pictures: Sequence[str] = ()
  head: Sequence[str] = ()
  rows: Sequence[Sequence] = ()
  tokens: Sequence[Token] = ()
  code: str = ""


def check() -> None:
  """ImportError, saying what to install, before the work."""
  if importlib.util.find_spec("jinja2") is None:
    raise ImportError(MISSING)


def template(name: str):
  """One of the templates beside this file. ImportError, saying what to install."""
  check()
  import jinja2  # an extra: evals
  return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                            loader=jinja2.FileSystemLoader(Path(__file__).parent)
                            ).get_template(name)


def picture(path: Path) -> str:
  """A PNG as an address that holds it; "" where there is none."""
  return _address(path.read_bytes()) if path.exists() else ""


def drawn(figure) -> str:
  """A figure of matplotlib as such an address."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=110)
  return _address(file.getvalue())


def _address(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def write(path: str | Path, title: str, sections: Sequence[Section]) -> None:
  """The page; whole or as it was."""
  program.replace(path, template("document.html").render(title=title, sections=sections))
