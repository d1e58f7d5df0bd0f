"""Laws of checkpoints: the same on other devices, in several processes, or as another type."""

import os
from pathlib import Path
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import config
from hope_jax.checkpoints import sidecar, weights
from hope_jax.checkpoints.checkpoint import Checkpoints
from hope_jax.model import lm
from tests.test_checkpoint import TrainState, assert_same, initial
ROOT = Path(__file__).resolve().parents[1]


def tiny(kind):
  """(configuration, parameters, tokens) of a language model."""
  c = config.base()
  c.data.sources = ()
  c.model.update(dict(config.PRESETS[kind], dim=16, layers=1, heads=2, vocab=32))
  c.channel.update(dict(hidden=1.0, levels=(config.Level("fast", 4), config.Level("slow", 8)),
                      in_context=kind == "hope_hybrid"))
  c.selfmod.update(dict(chunk_generators=4, chunk_memory=4))
  return c, jax.jit(lambda: lm.init_params(c, jax.random.key(3)))(), jnp.arange(16).reshape(2, 8)


def logits(kind, params):
  c, _, tokens = tiny(kind)
  return np.asarray(jax.jit(lm.build(c).apply)({"params": params}, tokens)[0], np.float32)


def spread(tree, *axes):
  """Arrays split along their last axis over the last of a mesh; what does not divide is copied."""
  mesh = jax.make_mesh(axes, ("data", "fsdp")[:len(axes)],
                       axis_types=(jax.sharding.AxisType.Auto,) * len(axes))

  def leaf(x):
    divides = (x.ndim and x.shape[-1] % axes[-1] == 0
               and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
    spec = (jax.sharding.PartitionSpec(*(None,) * (x.ndim - 1), mesh.axis_names[-1]) if divides
            else jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

  return jax.tree.map(leaf, tree)


EIGHT = """
import sys
from pathlib import Path
import jax, numpy as np
from tests import test_checkpoint_devices as t
from hope_jax.checkpoints.checkpoint import Checkpoints
folder, kind = Path(sys.argv[1]), sys.argv[2]
like = jax.eval_shape(lambda: t.whole_state(t.tiny(kind)[1]))
with Checkpoints(folder / "one", keep=1) as saved, Checkpoints(folder / "eight", keep=2) as again:
  for step, axes in enumerate(((8,), (2, 2))):
    state, _, meta = saved.restore(1, t.spread(like, *axes))
    table = state.params["embed"]["embedding"]
    sizes = {s.data.size for s in table.addressable_shards}
    assert sizes == {table.size // axes[-1]}, "not sharded"
    assert len(table.sharding.device_set) == np.prod(axes)
    np.save(folder / f"logits_{step}.npy", t.logits(kind, state.params))
    again.save(step, state, {}, meta)
"""


def whole_state(params):
  return TrainState(jnp.int32(1), params, optax.adamw(1e-3).init(params), jax.random.key(0), None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hope_hybrid",
                                  pytest.param("hope_selfmod", marks=pytest.mark.nightly)])
def test_saved_by_one_device_restored_by_eight_and_back(kind, tmp_path):
  c, params, _ = tiny(kind)
  state = whole_state(params)
  with Checkpoints(tmp_path / "one", keep=1) as saved:
    saved.save(1, state, {}, {"config": config.to_json(c), "tokenizer": "none"})
  child = subprocess.run([sys.executable, "-c", EIGHT, tmp_path, kind], cwd=ROOT,
                         capture_output=True, text=True,
                         env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
  assert child.returncode == 0, child.stderr
  for step in range(2):
    np.testing.assert_allclose(np.load(tmp_path / f"logits_{step}.npy"), logits(kind, params),
                               atol=1e-5)
    assert_same(Checkpoints(tmp_path / "eight",
                            keep=2).restore(step, jax.eval_shape(lambda: state))[0], state)
    assert_same(weights.load(tmp_path / "eight", step=step)[0], params)


TWO = """
import errno, os, sys
import jax
from hope_jax.runtime import hosts
hosts.connect()
from hope_jax.checkpoints import sidecar
from tests import test_checkpoint_devices as t
from tests.test_checkpoint import META, initial
from hope_jax.checkpoints.checkpoint import Checkpoints
from pathlib import Path
folder, first = Path(sys.argv[1]), jax.process_index() == 0
like = t.spread(jax.eval_shape(initial), 2)
state = jax.jit(initial, out_shardings=jax.tree.map(lambda x: x.sharding, like))()
with Checkpoints(folder, keep=2) as saved:
  assert saved.newest_good() is None
  for step in (1, 2, 3):
    saved.save(step, state, {}, META)
  saved.wait()
  if first:
    (folder / "3" / "params" / "_METADATA").unlink()
  assert saved.newest_good() == 2
  restored, _, _ = saved.restore(2, like)
  kernel = restored.params["block_0"]["kernel"]
  assert [s.data.shape for s in kernel.addressable_shards] == [(8, 4)], "not shared out"
  assert saved.save(3, restored, {}, META)
  saved.wait()
  if first:
    def full(*_):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sidecar.seal = full
  saved.save(4, restored, {}, META, on_error="warn")  # not where others wait for what is missing
  try:
    saved.wait()
  except OSError as error:
    hosts.fail(error)
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_is_good_and_what_failed(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  def who(i):
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
  first, second = (subprocess.Popen([sys.executable, "-c", TWO, tmp_path], cwd=ROOT, text=True,
                                    stderr=subprocess.PIPE,
                                    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | who(i))
                   for i in range(2))
  said = first.communicate(timeout=120)[1]
  second.kill()
  assert first.returncode == 1, said
  assert "process 0 of 2: OSError" in said and "no space left" in said
  assert "step 3 is damaged" in said and "step 3 is damaged" not in second.communicate()[1]
  assert sidecar.steps(tmp_path) == [2, 3]
  assert_same(Checkpoints(tmp_path, keep=2).restore(3, jax.eval_shape(initial))[0], initial())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hope_hybrid", "hope_selfmod"])
def test_another_type_is_converted_when_asked_for(kind, tmp_path):
  c, params, _ = tiny(kind)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  for name, tree in (("full", params), ("half", half)):
    with Checkpoints(tmp_path / name, keep=1) as saved:
      saved.save(1, whole_state(tree | {"count": jnp.int32(3)}), {},
                 {"config": config.to_json(c), "tokenizer": "none"})
  to_half, to_full = (weights.load(tmp_path / "full", dtype=jnp.bfloat16)[0],
                      weights.load(tmp_path / "half", dtype=jnp.float32)[0])
  assert to_half.pop("count").dtype == to_full.pop("count").dtype == jnp.int32
  assert_same(to_half, half)
  assert_same(to_full, jax.tree.map(lambda x: x.astype(jnp.float32), half))
  np.testing.assert_allclose(logits(kind, to_full), logits(kind, params),
                             atol=0.02 * np.abs(logits(kind, params)).max())
  placed = spread(params | {"count": jnp.int32(3)}, 1)
  assert weights.load(tmp_path / "full", placed,
                      dtype=jnp.bfloat16)[0]["count"].sharding == placed["count"].sharding
