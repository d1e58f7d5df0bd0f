"""Trees of arrays, stored and expected: names, whether they agree, where they go and as what."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

OWN = "use the checkpoint's own configuration (config.json beside it) or another workdir"


def fingerprint(params: Any) -> str:
  """16 hex digits that change with any parameter's name, shape, type or value."""
  digest = hashlib.sha256()
  for name, leaf in sorted(leaves(params).items()):
    digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
    digest.update(jax.device_get(leaf).tobytes())
  return digest.hexdigest()[:16]


def check_architecture(stored: Any, expected: Any, what: str = "architecture",
                       fix: str = OWN) -> None:
  """ValueError unless two trees (leaves with shape and dtype) agree in path, shape and type."""
  a, b = ({name: f"{leaf.shape} {leaf.dtype}" for name, leaf in leaves(tree).items()}
          for tree in (stored, expected))
  check_same(a, b, ("checkpoint", "this configuration"), f"checkpoint of another {what}", fix)


def check_same(a: dict, b: dict, names: tuple[str, str], what: str, fix: str) -> None:
  """ValueError, with the first differences, unless these two {array: description} agree."""
  differ = [array for array in sorted(a | b) if a.get(array) != b.get(array)]
  if not differ:
    return
  lines = [f"  {array}: {names[0]} {a.get(array, 'has none')}, {names[1]} "
           f"{b.get(array, 'has none')}" for array in differ[:5]]
  if len(differ) > 5:
    lines.append(f"  and {len(differ) - 5} more")
  raise ValueError("\n".join([f"{what}: {len(differ)} of {len(a | b)} arrays differ", *lines, fix]))


def leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: leaf}, paths equal for a tree and Orbax's account of it; a random key by its data."""
  named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    named[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
  return named


def placed(tree: Any) -> Any:
  """What Orbax restores into; an array without a place goes to this process's first device."""
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def leaf(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first)

  return jax.tree.map(leaf, tree)


def cast(tree: Any, dtype: Any) -> Any:
  """Shapes and places of a tree, with floating-point leaves of another type; None: the tree."""
  if dtype is None:
    return tree

  def leaf(x):
    kind = dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, kind, sharding=getattr(x, "sharding", None))

  return jax.tree.map(leaf, tree)
