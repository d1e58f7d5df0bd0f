"""Logical axes, and what a program says inside of where its arrays lie (the rest: sharding.py)."""

import contextlib
import math

import jax
from jax.sharding import Mesh, PartitionSpec

AXES = {  # logical axis -> mesh axes
    "streams": ("data", "fsdp"), "model": ("fsdp",), "heads": ("tensor",), "hidden": ("tensor",),
    "vocab": ("tensor",), "layers": ("fsdp",)}


def within(devices: Mesh | None):
  """Context to trace a program in: `constrain` and such speak of these devices; None: of none."""
  return (contextlib.nullcontext() if devices is None
          else jax.sharding.use_abstract_mesh(devices.abstract_mesh))


def parts() -> int:
  """Into how many the batch is cut where this is called: 1 outside of `apart`."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in mesh.manual_axes)


def constrain(array, *axes):
  """The array, its first axes laid out by these logical axes; as it is with no mesh (`within`)."""
  sizes = axis_sizes()
  if not sizes:
    return array
  return jax.lax.with_sharding_constraint(array, spec(axes, sizes))


def axis_sizes() -> dict[str, int]:
  """Of the mesh in whose context this is called; empty without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return {} if mesh.manual_axes else dict(mesh.shape)


def spec(axes, sizes) -> PartitionSpec:
  """Where an array of these logical axes lies, on a mesh of these sizes."""
  return PartitionSpec(*(tuple(name for name in AXES.get(axis, ()) if sizes[name] > 1) or None
                         for axis in axes))
