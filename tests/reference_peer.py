"""The PyTorch implementation behind parity/{cms,model,titan}_*.npz, in JAX: how it differs.

Attention has no positions and is normed after its residual. The Titan memory is normed after its
MLP, not before. In training what a level adds, and the MLP of a Titan memory, is divided by
max(norm, 1) token by token, a constant for gradients. Weights keep its names and layout,
w["qkv.weight"] is (out, in); `ours` and `theirs` are the way to a level of this package.

Letters: L blocks, B streams, T tokens, D width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.memory import level

HEADS = 2
NORM_EPSILON = level.EPSILON["layer"]
PARTS = {"norm": "net.0", "up": "net.1", "down": "net.3"}
LEVELS = ("cms_fast", "cms_mid")  # of the whole models


class Seen(NamedTuple):
  """What a block computes on the way."""
  attention_BxTxD: jax.Array
  memory_BxTxD: jax.Array | None
  out_BxTxD: jax.Array


def under(arrays: dict, prefix: str) -> dict:
  """The arrays whose names begin with the prefix, by the rest of their names."""
  return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def ours(w: dict) -> dict:
  """Parameters of a level."""
  first = {part: "scale" if part == "norm" else "kernel" for part in PARTS}
  return {part: {first[part]: w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}
          for part, name in PARTS.items()}


def theirs(params: dict) -> dict:
  """Inverse of `ours`."""
  return {f"{PARTS[part]}.{'bias' if name == 'bias' else 'weight'}": p.T
          for part, leaves in params.items() for name, p in leaves.items()}


def modifier(w: dict) -> dict:
  """Parameters of a self-modifier."""
  names = {"in": "net.0", "mid": "net.2", "out": "net.4"}
  parts = {part: {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}
           for part, name in names.items()}
  return parts | {"skip": np.zeros(())}


def clip(y_BxTxD):
  """1 / max(norm, 1), (B, T, 1)."""
  return jax.lax.stop_gradient(1 / jnp.maximum(jnp.linalg.norm(y_BxTxD, axis=-1, keepdims=True), 1))


@functools.partial(jax.jit, static_argnames="train")
def read(params: dict, x_BxTxD, delta: dict | None = None, train: bool = False):
  """(what a level of this package adds to x, the factor of their clip)."""
  y, _ = level.apply(params, x_BxTxD, delta and level.current(params, delta))
  scale = clip(y) if train else jnp.ones_like(y[..., :1])
  return y * scale, scale


@jax.jit
def layer_norm(x, scale, bias):
  x = x - jnp.mean(x, -1, keepdims=True)
  return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPSILON) * scale + bias


@jax.jit
def attention(w: dict, x_BxTxD):
  """norm(x + attention(x)), causal."""
  B, T, D = x_BxTxD.shape
  def split(a):
    return a.reshape(B, T, HEADS, -1)
  q, k, v = map(split, jnp.split(x_BxTxD @ w["qkv.weight"].T, 3, -1))
  scores = jnp.einsum("bihd,bjhd->bhij", q, k) * (D // HEADS) ** -0.5
  past = jnp.tril(jnp.ones((T, T), bool))
  y = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(jnp.where(past, scores, -jnp.inf)),
                 v).reshape(B, T, D)
  return layer_norm(x_BxTxD + y @ w["out_proj.weight"].T, w["norm.weight"], w["norm.bias"])


@functools.partial(jax.jit, static_argnames="train")
def titan(w: dict, x_BxTxD, train: bool = False):
  """norm(MLP(x)); a level of this package is MLP(norm(x))."""
  h = jax.nn.gelu(x_BxTxD @ w["net.0.weight"].T + w["net.0.bias"], approximate=False)
  h = h @ w["net.2.weight"].T + w["net.2.bias"]
  return layer_norm(h * clip(h) if train else h, w["norm.weight"], w["norm.bias"])


def forward(arrays: dict, train: bool, mixer=None, probe_LxBxTxD=None):
  """(logits (B, T, V), [Seen of each block]).

  Args:
    mixer: (block, x) -> x plus what the levels add, instead of reading them in turn.
    probe_LxBxTxD: added to the blocks' outputs; its gradient is the teach signal.
  """
  def read_levels(i, x):
    for name in LEVELS:
      x = x + read(ours(under(arrays, f"w.blocks.{i}.cms.blocks.{name}.")), x, train=train)[0]
    return x

  x, seen, i = arrays["w.embed.weight"][arrays["tokens"]], [], 0
  while f"w.blocks.{i}.attn.qkv.weight" in arrays:
    attended = x = attention(under(arrays, f"w.blocks.{i}.attn."), x)
    memory = under(arrays, f"w.blocks.{i}.titan_memory.")
    remembered = titan(memory, attended, train) if memory else None
    x = (mixer or read_levels)(i, x if remembered is None else x + remembered)
    x = x if probe_LxBxTxD is None else x + probe_LxBxTxD[i]
    seen.append(Seen(attended, remembered, x))
    i += 1
  return layer_norm(x, arrays["w.norm.weight"],
                    arrays["w.norm.bias"]) @ arrays["w.embed.weight"].T, seen
