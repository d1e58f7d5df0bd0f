"""Which device holds what: the batch is split over all devices, everything else is on each of them."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh() -> jax.sharding.Mesh:
  """All devices on one axis, `data`."""
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(devices: jax.sharding.Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(devices, PartitionSpec())


def by_stream(devices: jax.sharding.Mesh) -> NamedSharding:
  """Split along the first axis."""
  return NamedSharding(devices, PartitionSpec("data"))


def place_fast(fast, devices: jax.sharding.Mesh):
  """A FastState with its streams split over the devices: the second axis of layers, the first of all else."""
  split = lambda tree, *axes: jax.device_put(tree, NamedSharding(devices, PartitionSpec(*axes)))
  return split(fast.replace(layers=None), "data").replace(layers=split(fast.layers, None, "data"))
