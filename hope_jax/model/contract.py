"""What a token mixer must offer, and what is said of each parameter: the records modules end with.

A token mixer is a file with a record, a line in the table (mixers.py) and a section in config.py.
Everything else follows from the record: training, streams, placement on devices, optimizer, export,
costs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Parameter(NamedTuple):
  """A row of the table of parameters (parameters.py), for all paths that its pattern matches."""
  path: str  # regular expression of the path below the module's own
  # logical axes (axes.py) of its last axes; those before them are whole
  axes: tuple[str | None, ...]
  group: str  # matrix (decayed; Muon) | embedding | vector
  # in exported files, below the layer's; may refer to groups of the path (\1) and hold {part}
  name: str
  transposed: bool = False  # in exported files
  # config -> {part: its index after the axes layer and head}
  cuts: Callable[[Any], dict[str, Any]] | None = None
  # of an array that is several matrices (training/matrices.py): the axis, -1 or -2, in which those
  # of all heads lie side by side; the parts that are vectors, where parts are rows of one array
  heads: int = 0
  width: Callable[[Any], int] | None = None  # of those heads; None: model.dim / model.heads
  vectors: tuple[str, ...] | None = None
  initial: bool = False  # what a memory holds before it is written while it reads


class Mixer(NamedTuple):
  """A token mixer. B streams, S slots (slots.py), D model width, N layers of this mixer."""
  # config -> module: (x_BxSxD, state | None, slots.Layout, may_write ())
  #   -> (y_BxSxD, state | None, notes)
  build: Callable
  fresh: Callable  # (config, B) -> state of streams that have read nothing, leaves (B, ...)
  # state with leaves (N, B, ...) -> the same without context, with what was learned
  forget: Callable
  context: Callable  # config -> tokens that are kept as context; 0: none
  # config -> documents start at multiples of so many slots (1: anywhere, without gaps); 0: anywhere
  grid: Callable
  check: Callable  # config -> None; ValueError naming the field and the fix
  # memories of its own at every token: teach.paths has the mixer's name, notes have "moved/..."
  writes: bool
  parameters: tuple[Parameter, ...]
  # (pattern of a leaf's path in the state, its axes after N and B)
  state_axes: tuple[tuple[str, tuple], ...]
  # of the configuration, that it reads; none: the one of its own name
  sections: tuple[str, ...] = ()


def complete(name: str, mixer: Mixer) -> Mixer:
  """The record; ValueError, naming what is missing, if it is not whole."""
  missing = [field for field, value in zip(Mixer._fields, mixer) if value is None]
  if missing:
    raise ValueError(f"mixer {name} has no {', '.join(missing)}: give it in its record; "
                     "model/contract.py says what it is")
  return mixer
