"""The one table of parameters: logical axes, optimizer group and exported name of each (contract.Parameter).

    row("blocks/attention/qkv/kernel").group        "matrix"

Layers come first in what lies below blocks/. A parameter without a row is an error: add the row beside its module.
"""

import functools
import re
from typing import NamedTuple

from hope_jax.model import cms, mixers, mlp, titan
from hope_jax.model.contract import Parameter

LAYER = "model.layers.{layer}."  # before the exported names of what lies below blocks/
MODEL = (  # paths and names below nothing
    Parameter(r"embed/embedding", ("vocab", "model"), "embedding", r"model.embed_tokens.weight"),
    Parameter(r"norm/scale", (), "vector", r"model.norm.weight"),
)
BLOCK = (  # below blocks/
    Parameter(r"mixer_norm/scale", (), "vector", r"input_layernorm.weight"),
    Parameter(r"channel_norm/scale", (), "vector", r"post_attention_layernorm.weight"),
)
PARTS = {"mlp": mlp.PARAMETERS, "cms": cms.PARAMETERS, "titan": titan.PARAMETERS}


class Row(NamedTuple):
  """What the table says of one path."""
  axes: tuple[str | None, ...]
  group: str
  name: str  # may hold {layer} and {part}
  transposed: bool
  cuts: object
  mixer: str | None  # the token mixer that it belongs to


@functools.cache
def table() -> tuple[tuple[str, str, Parameter, str | None], ...]:
  """(pattern of the whole path, what comes before the name, row, token mixer) of every row."""
  below = {"mixer": {name: mixer.parameters for name, mixer in mixers.TABLE.items()}, "part": PARTS}
  rows = [(p.path, "", p, None) for p in MODEL] + [(f"blocks/{p.path}", LAYER, p, None) for p in BLOCK]
  for kind, modules in below.items():
    rows += [(f"blocks/{module}/{p.path}", LAYER, p, module if kind == "mixer" else None)
             for module, parameters in modules.items() for p in parameters]
  return tuple(rows)


@functools.cache
def row(path: str) -> Row:
  """What is said of the parameter at a path, or of what an optimizer keeps of it. ValueError if there is nothing."""
  path = path[path.index("blocks/"):] if "blocks/" in path else "/".join(path.split("/")[-2:])
  for pattern, before, p, mixer in table():
    if match := re.fullmatch(pattern, path):
      return Row(p.axes, p.group, before + match.expand(p.name), p.transposed, p.cuts, mixer)
  raise ValueError(f"no row for parameter {path}: add one to the parameters of its module (hope_jax/model/parameters.py "
                   "lists them)")
