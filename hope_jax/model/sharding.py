"""Which device holds what: from names, by rules, to a data x fsdp x tensor mesh (config.mesh).

    streams                 rows of the batch and fast state, over data and fsdp: each its own
    model                   an axis of each matrix, over fsdp, at rest; where it is used, it is
                            gathered block by block
    heads, hidden, vocab    over tensor: devices share the work on a stream
    layers                  whole matrices of a stack, over fsdp: only while Muon orthogonalises
                            them (training/optimizer.py)

What the compiler cannot see from the arguments of a program is said inside it by `constrain`, under
`within(mesh)`.
"""

import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from hope_jax.model import mixers, parameters
from hope_jax.model.axes import AXES, axis_sizes, spec

# what the teach signal writes, by its path in FastState: all axes but whole ones at the end
LEVELS = (
    (r"layers/levels/.*/(up|gate)/kernel", (None, "streams", None, "hidden")),
    (r"layers/levels/.*/down/kernel", (None, "streams", "hidden")),
    (r"layers/.*", (None, "streams")),
    (r".*", ("streams",)),
)


def path_name(path) -> str:
  """'blocks/cms/fast/up/kernel' of a jax key path."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def mesh(config, devices: list | None = None) -> Mesh:
  """The mesh of a configuration on these devices (default: all). ValueError if it does not fit."""
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(config, len(devices))
  return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3,
                       devices=devices)


def mesh_shape(config, devices: int) -> tuple[int, int, int]:
  """(data, fsdp, tensor) of config.mesh; ValueError, with the fix, unless all devices are used."""
  m = config.mesh
  whole = m.fsdp * m.tensor
  if devices % whole or m.data not in (0, devices // whole):
    raise ValueError(
        f"mesh.data={m.data}, mesh.fsdp={m.fsdp}, mesh.tensor={m.tensor} do not fit {devices} "
        f"devices: their product must be {devices} (data=0: what is left). On a CPU, "
        f"JAX_NUM_CPU_DEVICES={(m.data or 1) * whole} makes so many")
  return devices // whole, m.fsdp, m.tensor


def replicated(devices: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(devices, PartitionSpec())


def by_stream(devices: Mesh) -> NamedSharding:
  """Split along the first axis."""
  return NamedSharding(devices, PartitionSpec(AXES["streams"]))


def own_rows(devices: Mesh, batch: int) -> list[int]:
  """The rows of a batch that lie on devices of this process."""
  parts = by_stream(devices).addressable_devices_indices_map((batch,)).values()
  return sorted({row for part, in parts for row in range(batch)[part]})


def place_batch(batch: dict, devices: Mesh) -> dict:
  """A whole batch on the mesh, of the rows of this process (`own_rows`)."""
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(by_stream(devices), a),
                      batch)


def one_each(devices: Mesh, number: int) -> jax.Array:
  """(devices,) of int32: each device holds the number of its own process."""
  where = NamedSharding(devices, PartitionSpec(devices.axis_names))
  return jax.make_array_from_callback((devices.size,),
                                      where, lambda _: np.full(1, number, np.int32))


def of_params(params, devices: Mesh):
  """The sharding of each parameter (arrays or ShapeDtypeStructs).

  Raises ValueError for a parameter that no rule names, or an axis that a mesh axis does not divide.
  """
  return jax.tree_util.tree_map_with_path(lambda path, leaf: _named(devices, path_name(path),
                                                                    leaf.shape), params)


def of_state(state, devices: Mesh):
  """The shardings of a TrainState: what the optimizer keeps of a parameter lies where that lies.

  Raises ValueError as `of_params`, and for a matrix of the optimizer that belongs to no parameter.
  """
  shapes = {path_name(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

  def of_optimizer(path, leaf):
    words = path_name(path).split("/")
    names = ["/".join(words[i:]) for i in range(len(words))]
    owner = next((name for name in names if shapes.get(name) == leaf.shape
                  or name.rpartition("/")[0] in shapes), None)  # or a part (training/matrices.py)
    if owner is None and len(leaf.shape) > 1:
      raise ValueError(f"optimizer state {path_name(path)} of shape {leaf.shape} belongs to no "
                       "parameter: say in hope_jax.sharding.of_state where it lies")
    return replicated(devices) if owner is None else _named(devices, owner, leaf.shape)

  everywhere = jax.tree.map(lambda _: replicated(devices),
                            state.replace(params=None, opt_state=None, fast=None))
  return everywhere.replace(
      params=of_params(state.params, devices),
      opt_state=jax.tree_util.tree_map_with_path(of_optimizer, state.opt_state),
      fast=None if state.fast is None else of_fast(state.fast, devices))


def of_fast(fast, devices: Mesh):
  """The shardings of a FastState. ValueError if its streams cannot be shared out."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: NamedSharding(devices,
                                       _fast_spec(path_name(path), leaf.shape,
                                                  dict(devices.shape))), fast)


def place_fast(fast, devices: Mesh):
  """A FastState, moved to where it belongs."""
  return jax.device_put(fast, of_fast(fast, devices))


def apart(fn, devices: Mesh):
  """fn(batch, fast, params, *same) -> (gradients, sums, means, fast), each device's streams apart.

  What a loop adds up is then summed over devices once, after the loop, and not in each of its
  steps; and parameters are gathered once, so that each device holds them and their gradient whole
  while it computes. Not for a mesh with `tensor`: XLA (of jax 0.10) fails where axes are half by
  hand, half automatic.
  """
  sizes = dict(devices.shape)

  def reduce(path, gradient):
    spec = _param_spec(path_name(path), gradient.shape, sizes)
    if "fsdp" in spec:
      gradient = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=spec.index("fsdp"),
                                      tiled=True)
    return jax.lax.psum(gradient, "data" if "fsdp" in spec else AXES["streams"])

  def part(batch, *rest):
    gradients, sums, means, fast = fn(batch, *rest)
    return (jax.tree_util.tree_map_with_path(reduce, gradients),
            jax.lax.psum(sums, AXES["streams"]), jax.lax.pmean(means, AXES["streams"]), fast)

  def whole(batch, fast, params, *same):
    def specs(shardings):
      return jax.tree.map(lambda where: where.spec, shardings)
    everywhere, streams = PartitionSpec(), specs(of_fast(fast, devices))
    return jax.shard_map(part, mesh=devices,
                         in_specs=(by_stream(devices).spec, streams,
                                   *[everywhere] * (1 + len(same))),
                         out_specs=(specs(of_params(params, devices)), everywhere, everywhere,
                                    streams), check_vma=False)(batch, fast, params, *same)
  return whole


def constrain_params(params, gathered: bool = False, below: str = ""):
  """Parameters or gradients by the table. `gathered`: whole over fsdp; `below`: before paths."""
  sizes = axis_sizes()
  if not sizes:
    return params
  if gathered:
    sizes = sizes | {"fsdp": 1}
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: jax.lax.with_sharding_constraint(leaf,
                                                          _param_spec(below + path_name(path),
                                                                      leaf.shape, sizes)), params)


def constrain_layers(params):
  """Parameters (or an optimizer's parts of them): over fsdp, stacks are cut between layers only."""
  sizes = axis_sizes()
  if not sizes:
    return params

  def by_layer(path, leaf):
    if leaf.ndim < 3:
      return leaf
    cut = _param_spec(path_name(path), leaf.shape, sizes | {"fsdp": 1})
    return jax.lax.with_sharding_constraint(leaf,
                                            PartitionSpec(*spec(("layers",), sizes), *cut[1:]))
  return jax.tree_util.tree_map_with_path(by_layer, params)


def constrain_fast(fast):
  """A FastState laid out as `place_fast` does."""
  sizes = axis_sizes()
  if not sizes:
    return fast
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: jax.lax.with_sharding_constraint(leaf,
                                                          _fast_spec(path_name(path), leaf.shape,
                                                                     sizes)), fast)


def _named(devices, name, shape):
  return NamedSharding(devices, _param_spec(name, shape, dict(devices.shape)))


def _param_spec(name, shape, sizes) -> PartitionSpec:
  axes = parameters.row(name).axes
  return _divided(f"parameter {name}", (None,) * (len(shape) - len(axes)) + axes, shape, sizes)


def _fast_spec(name, shape, sizes) -> PartitionSpec:
  own = re.fullmatch(r"layers/tokens/([^/]+)/?(.*)", name)
  rows = ([(pattern, (None, "streams", *axes)) for pattern, axes in mixers.TABLE[own[1]].state_axes]
          if own else LEVELS)
  axes = next(axes for pattern, axes in rows if re.fullmatch(pattern, own[2] if own else name))
  return _divided(f"fast state {name}", axes, shape, sizes)


def _divided(what, axes, shape, sizes) -> PartitionSpec:
  for i, axis in enumerate(axes):
    parts = math.prod(sizes[name] for name in AXES.get(axis, ()))
    if shape[i] % parts:
      names = " x ".join(f"mesh.{name}" for name in AXES[axis])
      raise ValueError(f"{what} of shape {shape}: axis {i} ({axis}) of size {shape[i]} is not "
                       f"divisible by {names} = {parts}: set {names} to a divisor of {shape[i]}, "
                       "or change that size")
  return spec(axes, sizes)


