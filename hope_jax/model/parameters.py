"""The one table of parameters: logical axes, optimizer group, exported name (contract.Parameter).

    row("blocks/attention/qkv/kernel").group        "matrix"

Layers come first in what lies below blocks/. A parameter without a row is an error: add the row
beside its module.
"""

import functools
import re

from hope_jax.model import cms, mixers, mlp, titan
from hope_jax.model.contract import Parameter

HEADS = "heads"  # the part of a parameter that is its heads' matrices (training/matrices.py)
LAYER = "model.layers.{layer}."  # before the exported names of what lies below blocks/
MODEL = (  # paths and names below nothing
    Parameter(r"embed/embedding", ("vocab", "model"), "embedding", r"model.embed_tokens.weight"),
    Parameter(r"norm/scale", (), "vector", r"model.norm.weight"),
    Parameter(r"head/embedding", ("vocab", "model"), "embedding", r"lm_head.weight"),
)
BLOCK = (  # below blocks/
    Parameter(r"mixer_norm/scale", (), "vector", r"input_layernorm.weight"),
    Parameter(r"channel_norm/scale", (), "vector", r"post_attention_layernorm.weight"),
)
PARTS = {"mlp": mlp.PARAMETERS, "cms": cms.PARAMETERS, "titan": titan.PARAMETERS}


@functools.cache
def table() -> tuple[tuple[str, Parameter], ...]:
  """(pattern of the whole path, its row with the whole exported name) of every row."""
  modules = {name: mixer.parameters for name, mixer in mixers.TABLE.items()} | PARTS
  below = [(p.path, p) for p in BLOCK]
  below += [(f"{module}/{p.path}", p) for module, rows in modules.items() for p in rows]
  return (*((p.path, p) for p in MODEL),
          *((f"blocks/{path}", p._replace(name=LAYER + p.name)) for path, p in below))


@functools.cache
def row(path: str) -> Parameter:
  """The row of a parameter, of a part of one, or of what an optimizer keeps of it. ValueError if
  there is none, or more than one.

  Its exported name is written out but for {layer} and {part}.
  """
  path = path[path.index("blocks/"):] if "blocks/" in path else "/".join(path.split("/")[-2:])
  whole, _, part = path.rpartition("/")
  if p := _find(path):
    return p
  if (p := _find(whole)) and part == HEADS and p.heads:
    rows, columns = p.axes
    axes = (columns, rows, None) if p.heads == -1 else (rows, None, columns)
    return p._replace(axes=axes, heads=0)
  if p and p.vectors is not None:
    return p._replace(group="vector" if part in p.vectors else p.group, vectors=None)
  raise ValueError(f"no row for parameter {path}: add one to the parameters of its module "
                   "(hope_jax/model/parameters.py lists them)")


def _find(path: str) -> Parameter | None:
  found = [(match, p) for pattern, p in table() if (match := re.fullmatch(pattern, path))]
  if len(found) > 1:
    raise ValueError(f"parameter {path} has rows {', '.join(p.path for _, p in found)}: let one of "
                     "them match it alone (hope_jax/model/parameters.py)")
  return found[0][1]._replace(name=found[0][0].expand(found[0][1].name)) if found else None
