"""Tensors by Hugging Face's names, and our parameters.

The names are those of the table of parameters (model/parameters.py), but that queries, keys and
values are tensors of their own, and that one level is the MLP. Every tensor is used exactly once.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.checkpoints import arrays
from hope_jax.foreign.source import Source
from hope_jax.model import attention, lm, parameters

DERIVED = ("rotary_emb.inv_freq",)  # ends of names of what older files keep though it is computed


class Place(NamedTuple):
  """Where a tensor lies in our parameters."""
  path: str
  at: tuple  # index of our array, (layer, ..., columns)
  transposed: bool
  shape: tuple[int, ...]  # as the file has it


def places(config) -> dict[str, Place]:
  """{name: its place} of a model of attention and gated MLPs, each of one level."""
  like = jax.eval_shape(lambda: lm.init_params(config, jax.random.key(0)))
  width, heads, groups = (attention.head_width(config), config.model.heads,
                          attention.kv_heads(config))
  ends = np.cumsum([0, heads * width, groups * width, groups * width]).tolist()
  out = {}
  for path, leaf in arrays.leaves(like).items():
    row = parameters.row(path)
    cuts = {"": (...,)}
    if "qkv_proj" in row.name:
      cuts = {part: (..., slice(*ends[i:i + 2])) for i, part in enumerate("qkv")}
    for layer in range(config.model.layers) if "{layer}" in row.name else [None]:
      for part, cut in cuts.items():
        at = cut if layer is None else (layer, *cut)
        shape = np.empty(leaf.shape, np.bool_)[at].shape
        name = row.name.replace("{layer}", str(layer)).replace("qkv_proj", f"{part}_proj")
        name = re.sub(r"cms\.[^.]+\.", "mlp.", name).replace("mlp.norm", "post_attention_layernorm")
        out[name] = Place(path, at, row.transposed, shape[::-1] if row.transposed else shape)
  return out


def assemble(source: Source, config, dtype=jnp.float32):
  """Our parameters from a source, read tensor by tensor.

  Raises ValueError, naming them, for tensors that are unknown, missing or of another shape.
  """
  like = jax.eval_shape(lambda: lm.init_params(config, jax.random.key(0)))
  wanted = places(config)
  shapes = {name: shape for name, shape in source.shapes.items() if not name.endswith(DERIVED)}
  twice = config.model.tied and "lm_head.weight" in shapes
  if twice:
    shapes.pop("lm_head.weight")
  arrays.check_same(shapes, {name: place.shape for name, place in wanted.items()},
                    ("the file", "its config.json"), "the tensors do not fit config.json",
                    "fetch the model again; one of more parts is of a family that is not known")
  built = {path: np.empty(leaf.shape, dtype) for path, leaf in arrays.leaves(like).items()}
  for name, tensor in source.tensors():
    if twice and name == "lm_head.weight":
      _check_tied(tensor, source)
    elif name in wanted:
      place = wanted[name]
      built[place.path][place.at] = tensor.T if place.transposed else tensor
  leaves = [jnp.asarray(built.pop(path)) for path in arrays.leaves(like)]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_tied(head_VxD, source: Source) -> None:
  """A head that is said to be the embedding, and is in the file too, has to be it."""
  for name, tensor in source.tensors():
    if name == "model.embed_tokens.weight" and not np.array_equal(tensor, head_VxD):
      raise ValueError("config.json says that the head is the embedding (tie_word_embeddings), and "
                       "the file has another, lm_head.weight: set it to false in config.json")


def tensors(params, config) -> dict[str, np.ndarray]:
  """Inverse of `assemble`: every tensor by its name."""
  ours = {path: np.asarray(leaf) for path, leaf in arrays.leaves(params).items()}
  return {name: np.asarray((lambda a: a.T if place.transposed else a)(ours[place.path][place.at]),
                           order="C")
          for name, place in places(config).items()}
