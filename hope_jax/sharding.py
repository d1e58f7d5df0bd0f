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
