"""What a level of memory computes (NL Eq. 70): norm, up, activation, down; its gradient by token.

A level's parameters are a dict {"norm": {"scale"}, "up": {"kernel"}, "down": {"kernel"}}. "gate"
beside "up" makes it a gated (SwiGLU) level, a "bias" in a part is added, a bias in the norm makes
it a layer norm. The `weights` of a stream are parameters plus what it has learned, its delta: trees
of the same structure with a stream axis in front.

Letters: B streams, C tokens, D model width, I and O the widths of a kernel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory.products import dense as product, gelu, stream_product

EPSILON = {"rms": 1e-6, "layer": 1e-5}


class Force(NamedTuple):
  """The gradient of one parameter: sum over tokens of input^T force; without input, of force."""
  input_BxCxI: jax.Array | None
  force_BxCxO: jax.Array


def init(key, width: int, hidden: int, depth: int, norm: str = "rms",
         activation: str = "gelu", bias: bool = False) -> dict:
  """Fresh parameters; `depth`: branches added to the residual stream in the whole model."""
  keys = jax.random.split(key, 3)
  def kernel(k, fan_in, fan_out, more=1):
    return {
        "kernel": (fan_in * more) ** -0.5 * jax.random.normal(k, (fan_in, fan_out), jnp.float32)}
  params = {"norm": {"scale": jnp.ones(width, jnp.float32)}, "up": kernel(keys[0], width, hidden),
            "down": kernel(keys[1], hidden, width, depth)}
  if norm == "layer":
    params["norm"]["bias"] = jnp.zeros(width, jnp.float32)
  if activation == "swiglu":
    params["gate"] = kernel(keys[2], width, hidden)
  if bias:
    for part in params.keys() - {"norm"}:
      params[part]["bias"] = jnp.zeros_like(params[part]["kernel"][0])
  return params


def current(params: dict, delta: dict, axis: int = 0, through: bool = True) -> dict:
  """Weights of each stream, of the parts that have a delta.

  `axis`: the deltas' stream axis, 1 if layers come first.
  """
  data = (lambda p: p) if through else jax.lax.stop_gradient
  return jax.tree.map(lambda p, d: jnp.expand_dims(data(p), axis) + d,
                      {part: params[part] for part in delta}, delta)


def apply(params: dict, x_BxCxD, weights: dict | None = None, added: dict | None = None, *,
          through: bool = True, epsilon: float = EPSILON["rms"]):
  """(what the level adds to its input, the input of each kernel).

  Args:
    weights: of each stream (`current`), (B, ...), of all parts or some; None: the parameters.
    added: at every token, added to a kernel's output or to a vector (`zeros`), of all parts or
      some: its gradient, with the inputs, gives the forces (`paired`).
    through: the parameters' gradient comes through the weights, which is right to second order.
      Otherwise it comes past them, as one product over all streams; the weights must then be
      `current(..., through=False)`.
    epsilon: of a root-mean-square norm.
  """
  if weights is not None and through:
    params = params | jax.lax.stop_gradient({part: params[part] for part in weights})
  dtype = x_BxCxD.dtype
  def get(tree, part, name):
    return None if tree is None else tree.get(part, {}).get(name)

  def vector(part, name):
    value, own, more = params[part][name], get(weights, part, name), get(added, part, name)
    value = value if own is None else own[:, None] + (value - jax.lax.stop_gradient(value))
    return value if more is None else value + more

  def dense(part, h):
    kernel, own, more = params[part]["kernel"], get(weights, part,
                                                    "kernel"), get(added, part, "kernel")
    y = product(h, kernel.astype(dtype)) if own is None else stream_product(h, kernel, own)
    y = y if more is None else y + more.astype(dtype)
    return y + vector(part, "bias").astype(dtype) if "bias" in params[part] else y

  h = _normalise(x_BxCxD, vector("norm", "scale"),
                 vector("norm", "bias") if "bias" in params["norm"] else None, epsilon)
  up = dense("up", h)
  a = jax.nn.silu(dense("gate", h)) * up if "gate" in params else gelu(up)
  inputs = {part: a if part == "down" else h for part in params if part != "norm"}
  return dense("down", a), inputs


def _normalise(x, scale, bias, epsilon):
  """Root-mean-square norm; layer norm where there is a bias. In float32 or better."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if bias is not None:
    wide = wide - jnp.mean(wide, -1, keepdims=True)
  epsilon = epsilon if bias is None else EPSILON["layer"]
  y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon) * scale
  return (y if bias is None else y + bias).astype(x.dtype)


def zeros(params: dict, *tokens: int) -> dict:
  """What `apply` adds when it adds nothing: (*tokens, O) for every parameter, in its type."""
  return jax.tree.map(lambda p: jnp.zeros((*tokens, p.shape[-1]), p.dtype), params)


def paired(inputs: dict, gradient_of_added: dict) -> dict:
  """The Forces of a level, from the inputs of its kernels and the gradient of what was added."""
  return {part: {name: Force(inputs[part] if name == "kernel" else None, value)
                 for name, value in leaves.items()}
          for part, leaves in gradient_of_added.items()}


def forces(params: dict, weights: dict, x_BxCxD, teach_BxCxD,
           epsilon: float = EPSILON["rms"]) -> dict:
  """The gradient of sum(teach * level(x)), token by token, in the structure of the weights."""
  added = zeros({part: params[part] for part in weights}, *x_BxCxD.shape[:2])
  _, pull, inputs = jax.vjp(lambda more: apply(params, x_BxCxD, weights, more, epsilon=epsilon),
                                added, has_aux=True)
  force, = pull(teach_BxCxD.astype(x_BxCxD.dtype))
  return paired(inputs, force)


def gradient(force: Force, weight_BxC=None) -> jax.Array:
  """Per stream, the weighted sum over tokens: (B, I, O), or (B, O) for a vector."""
  f = force.force_BxCxO
  if weight_BxC is not None:  # weight 0 leaves a token out, whatever its gradient
    f = jnp.where(weight_BxC[..., None] == 0, 0, f * weight_BxC[..., None])
  if force.input_BxCxI is None:
    return jnp.sum(f, 1)
  return jnp.einsum("bci,bco->bio", force.input_BxCxI, f.astype(force.input_BxCxI.dtype),
                    preferred_element_type=jnp.promote_types(f.dtype, jnp.float32))


def is_force(leaf) -> bool:
  """For jax.tree.map over the result of `forces`."""
  return isinstance(leaf, Force)
