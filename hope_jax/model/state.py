"""What is remembered: between a stream's calls (FastState) and optimizer steps (TrainState).

FastState is laid out for everything that a model keeps per stream: a stream is a document or a
conversation, and every leaf has a stream axis, so streams can be batched, split, sharded and saved.
Layers are stacked on a leading axis.
"""

from typing import Any

from flax import struct
import jax


@struct.dataclass
class LayerState:
  """The blocks' fast state; of levels with the axes (L, B) in front."""
  tokens: dict  # {token mixer: its state, with the axes (N, B) in front, N the layers that have it}
  # {"titan" or a CMS level: write.LevelState}, what is written by the teach signal
  levels: Any = None


@struct.dataclass
class FastState:
  """All that a model remembers of B streams."""
  segment_B: jax.Array  # id of the document each stream is in, 0 before the first
  count_B: jax.Array  # tokens read of it
  layers: LayerState  # leaves (L, B, ...)
  # tokens given to study.py that wait for the rest of their chunk, then -1
  held_BxC: jax.Array | None = None


@struct.dataclass
class TrainState:
  """All that a run needs tomorrow, with the data iterator and the config."""
  step: jax.Array
  params: Any
  opt_state: Any
  rng: jax.Array  # typed key; folded with the step where randomness is needed
  fast: Any = None  # FastState where streams outlive a batch
  guard: Any = None  # guard.Guard


def select(fast: FastState, streams) -> FastState:
  """The state of some streams: an index array, in its order."""
  held = None if fast.held_BxC is None else fast.held_BxC[streams]
  return FastState(fast.segment_B[streams], fast.count_B[streams],
                   jax.tree.map(lambda a: a[:, streams], fast.layers), held)


def by_stream(change, fast: FastState | None) -> FastState | None:
  """change(leaf, its stream axis) of every leaf; None stays None."""
  if fast is None:
    return None
  def leaf(path, a):
    return change(a, int(path[0].name == "layers"))
  return jax.tree_util.tree_map_with_path(leaf, fast)


def fast_bytes(fast: FastState) -> int:
  """Bytes per stream."""
  total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(fast))
  return total // fast.segment_B.shape[0]
