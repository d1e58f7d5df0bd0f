"""Laws of checkpoints: what comes back is what went in, a step is whole or not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
import pytest

from hope_jax import config
from hope_jax.checkpoints import sidecar, stored, weights
from hope_jax.checkpoints.checkpoint import PARTIAL, Checkpoints
from hope_jax.reading import conversation

CONFIG = config.base()
CONFIG.data.sources = ()
META = {"config": config.to_json(CONFIG), "tokenizer": "sha256:aaaa", "best_val": 1.25}


@flax.struct.dataclass
class TrainState:
  step: Any
  params: Any
  opt_state: Any
  rng: Any
  fast: Any


@flax.struct.dataclass
class Stream:
  clock: Any
  memory: Any


def optimizer():
  groups = {"adamw": optax.adamw(1e-3, weight_decay=0.1),
            "muon": optax.contrib.muon(1e-2, consistent_rms=0.2)}
  return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(
      groups, lambda params: jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adamw", params)))


def update(state):
  rng = jax.random.fold_in(state.rng, state.step)
  grads = jax.tree.map(lambda p: jax.random.normal(rng, p.shape, p.dtype), state.params)
  updates, opt_state = optimizer().update(grads, state.opt_state, state.params)
  return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates),
                       opt_state=opt_state)


train_step = jax.jit(update, donate_argnums=0)


def initial(dim=8, fast=None):
  params = {"embed": {"table": jnp.ones((16, dim))},
            "block_0": {"kernel": jnp.ones((dim, dim)), "bias": jnp.ones(dim)}}
  return TrainState(jnp.int32(0), params, optimizer().init(params), jax.random.key(0), fast)


def trained(updates=3, **kwargs):
  state = initial(**kwargs)
  for _ in range(updates):
    state = train_step(state)
  return state


def data():
  return iter(grain.MapDataset.range(40).shuffle(seed=3).batch(2).repeat(2).to_iter_dataset())


def host(tree):
  """A copy no later donation can touch, keys as their data."""
  def raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return jax.tree.map(lambda x: np.array(raw(x)), tree)


def assert_same(a, b):
  a, b = host(a), host(b)
  chex.assert_trees_all_equal_dtypes(a, b)
  chex.assert_trees_all_equal(a, b)


def test_restore_is_bit_identical_and_training_goes_on(tmp_path):
  stream = Stream(jnp.int32(5), jax.random.normal(jax.random.key(2), (3, 4)).astype(jnp.bfloat16))
  state, iterator = trained(fast=stream), data()
  for _ in range(7):
    next(iterator)
  with Checkpoints(tmp_path, keep=2) as saved:
    saved.save(3, state, iterator.get_state(), META)
    wanted = host(state)
    # the step donates what is still being written
    later, next_batch = train_step(state), next(iterator)
  with Checkpoints(tmp_path, keep=2) as saved:
    assert saved.latest() == 3 and saved.meta(3) == META
    restored, iterator_state, meta = saved.restore(3, jax.eval_shape(lambda: initial(fast=stream)))
  assert_same(restored, wanted)
  assert jax.tree.structure(restored) == jax.tree.structure(later)  # named tuples, masks and all
  assert jnp.issubdtype(restored.rng.dtype, jax.dtypes.prng_key) and meta == META
  fresh = data()
  fresh.set_state(iterator_state)
  np.testing.assert_array_equal(next(fresh), next_batch)
  assert_same(train_step(restored), later)


def test_a_save_is_of_its_moment_whatever_is_donated_next(tmp_path):
  double = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda p: 2 * p, s.params)),
                   donate_argnums=0)
  state = TrainState(jnp.int32(0), {"w": jnp.ones((1024, 1024))}, (), jax.random.key(0), None)
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, state, {}, META)
    for _ in range(8):
      state = double(state)
  params, _, _ = weights.load(tmp_path)
  assert np.all(params["w"] == 1)


def test_keeps_the_last_and_never_rewrites_a_step(tmp_path):
  state = initial()
  with Checkpoints(tmp_path, keep=2) as saved:
    assert saved.latest() is None
    for step in (2, 9, 10):
      assert saved.save(step, state, {}, META)
    assert not saved.save(10, state, {}, META | {"best_val": 0})
  assert sidecar.steps(tmp_path) == [9, 10]  # by number, not by name
  assert saved.meta(10) == META
  (tmp_path / "tokenizer.model").write_text("beside the steps")
  assert Checkpoints(tmp_path, keep=2).latest() == 10


def test_what_is_saved_may_be_donated_at_once(tmp_path, monkeypatch):
  """A step that donates an array waits for whoever reads it: what is written lies elsewhere."""
  def where(tree):
    return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)
                          if isinstance(x, jax.Array) and x.dtype == jnp.float32}
  given, save = [], ocp.save_checkpointables_async
  monkeypatch.setattr(ocp,
                      "save_checkpointables_async", lambda path, items: (given.append(where(items)),
                                                                         save(path, items))[1])
  states = [initial(), jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, initial())]
  with Checkpoints(tmp_path, keep=2) as saved:
    for step, state in enumerate(states):
      saved.save(step, state, {}, META)
      assert len(given[-1]) == len(where(state)) > 0 and not given[-1] & where(states)
    for step, state in enumerate(states):
      assert_same(saved.restore(step, jax.eval_shape(lambda: state))[0], state)


def test_a_step_loses_its_name_before_its_files(tmp_path, monkeypatch):
  deleted, rmtree = [], shutil.rmtree
  monkeypatch.setattr(shutil,
                      "rmtree", lambda path, **how: (deleted.append(path.name),
                                                     rmtree(path, **how)))
  with Checkpoints(tmp_path, keep=1) as saved:
    for step in (1, 2):
      saved.save(step, initial(), {}, META)
  assert len(deleted) == 1 and PARTIAL in deleted[0] and sidecar.steps(tmp_path) == [2]


def test_keeps_the_best_and_every_kth_besides_the_last(tmp_path):
  losses = {2: 5.0, 4: 1.0, 5: np.nan, 6: 2.0, 8: np.nan, 10: 3.0, 11: np.inf, 12: 4.0,
            13: np.nan, 14: 4.5}
  with Checkpoints(tmp_path, keep=2, keep_best=3, keep_every=5) as saved:
    for step, loss in losses.items():
      saved.save(step, initial(), {}, META)
      saved.rate(step, loss)
      if step == 6:
        assert sidecar.steps(tmp_path) == [2, 4, 5, 6]
  assert sidecar.steps(tmp_path) == [4, 5, 6, 10, 13, 14]
  assert sidecar.read(tmp_path
                      / "6")["metric"] == 2 and sidecar.read(tmp_path / "13")["metric"] is None


def test_parameters_alone(tmp_path):
  state = trained()
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(3, state, {}, META)
  for item in (tmp_path / "3" / "train").rglob("*"):
    item.unlink() if item.is_file() else None  # an evaluation needs none of it
  params, c, meta = weights.load(tmp_path)
  assert_same(params, state.params)
  assert c == CONFIG and meta == META | {"step": 3}
  params, _, _ = weights.load(tmp_path, jax.eval_shape(lambda: state.params), step=3)
  assert_same(params, state.params)


def test_restores_to_the_places_asked_for(tmp_path):
  state = initial()
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(0, state, {}, META)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                        state.params)
    restored, _, _ = saved.restore(0, state.replace(params=like))
  assert all(x.sharding == place for x in jax.tree.leaves(restored.params))
  assert_same(restored, state)


def test_refuses_another_architecture(tmp_path):
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(0, initial(), {}, META)
    with pytest.raises(ValueError) as error:
      saved.restore(0, initial(dim=4))
    assert str(error.value).splitlines() == [
        "checkpoint of another architecture: 3 of 3 arrays differ",
        "  block_0/bias: checkpoint (8,) float32, this configuration (4,) float32",
        "  block_0/kernel: checkpoint (8, 8) float32, this configuration (4, 4) float32",
        "  embed/table: checkpoint (16, 8) float32, this configuration (16, 4) float32",
        "use the checkpoint's own configuration (config.json beside it) or another workdir"]
    more = initial().params | {"block_1": {"bias": jnp.ones(8)}}
    with pytest.raises(ValueError,
                       match=r"1 of 4 .*\n  block_1/bias: checkpoint has none, .* \(8,\) float32"):
      weights.load(tmp_path, more)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), initial().params)
    with pytest.raises(ValueError, match="checkpoint .* float32, this configuration .* bfloat16"):
      weights.load(tmp_path, half)  # Orbax alone would convert in silence
    other = initial().replace(opt_state=optax.sgd(1.0, momentum=0.9).init(initial().params))
    with pytest.raises(ValueError, match="checkpoint of another optimizer or state"):
      saved.restore(0, other)


def test_refuses_another_tokenizer_and_incomplete_meta(tmp_path):
  stored.check_tokenizer(META, "sha256:aaaa")
  with pytest.raises(ValueError,
                     match="sha256:aaaa, this one is sha256:bbbb; use the tokenizer kept "
                           "beside"):
    stored.check_tokenizer(META, "sha256:bbbb")
  saved = Checkpoints(tmp_path, keep=1)
  with pytest.raises(ValueError, match=r"meta has no \['tokenizer'\]"):
    saved.save(0, initial(), {}, {"config": ""})
  with pytest.raises(TypeError, match="the iterator's state changes when written as JSON"):
    saved.save(0, initial(), {"next": (1, 2)}, META)


def test_missing_checkpoint_names_the_place_what_is_there_and_the_command(tmp_path):
  with pytest.raises(FileNotFoundError,
                     match=f"{tmp_path}/no .there: no such directory.*python -m hope_jax.launch"):
    weights.load(tmp_path / "no")
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "7.orbax-checkpoint-tmp").mkdir()  # never finished
  with pytest.raises(FileNotFoundError, match="there: 7.orbax-checkpoint-tmp, config.json"):
    weights.load(tmp_path)
  with Checkpoints(tmp_path, keep=1) as saved:
    saved.save(4, initial(), {}, META)
    with pytest.raises(FileNotFoundError,
                       match=f"no checkpoint of step 5 in {tmp_path} .there: steps 4"):
      saved.restore(5, initial())


def test_a_directory_that_cannot_be_written_fails_at_once(tmp_path):
  (tmp_path / "file").write_text("")
  for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null/below")):
    with pytest.raises(OSError,
                       match=f"checkpoints cannot be written in {directory}: .*; choose another "
                             "--workdir"):
      Checkpoints(directory, keep=1)


def test_a_failed_save_surfaces_whatever_the_reason(tmp_path):
  saved = Checkpoints(tmp_path / "checkpoints", keep=1)
  with pytest.raises(RuntimeError,
                     match="saving step 1 in .*/checkpoints failed .no step is whole yet.: "):
    saved.save(1, initial().replace(fast=object()), {}, META)
  shutil.rmtree(saved.directory)
  saved.directory.write_text("")
  with pytest.raises(RuntimeError, match="saving step 2 in .*Not a directory"):
    saved.save(2, initial(), {}, META)


def test_training_may_go_on_when_a_save_fails(tmp_path, capsys):
  with Checkpoints(tmp_path / "checkpoints", keep=1) as saved:
    saved.save(1, initial(), {}, META)
    assert not saved.save(2, initial().replace(fast=object()), {}, META, on_error="warn")  # at once
    saved.wait()
    saved.directory.joinpath("3").write_text("in the way")  # behind
    assert saved.save(3, initial(), {}, META, on_error="warn")
    assert saved.latest() == 1 and saved.failures == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "saving step 2 in" in said[
        0] and "training goes on without it (1 failed so far)" in said[0]
    assert "saving step 3 in" in said[
        1] and "step 1 is whole and a restart goes on from it" in said[1]
    assert saved.save(4, initial(), {}, META, on_error="warn")
  assert sidecar.steps(saved.directory) == [4] and not list(saved.directory.glob("*.partial*"))


@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_directory_deleted_during_a_save_is_said_and_the_next_save_works(tmp_path, all_of_it,
                                                                           monkeypatch):
  def gone(folder, facts):
    shutil.rmtree(folder.parent if all_of_it else folder)
    seal(folder, facts)

  seal = sidecar.seal
  with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
    saved.save(1, initial(), {}, META)
    saved.wait()
    monkeypatch.setattr(sidecar, "seal", gone)
    saved.save(2, initial(), {}, META)
    left = "no step is whole yet" if all_of_it else "step 1 is whole"
    with pytest.raises(RuntimeError,
                       match=f"saving step 2 in .*/checkpoints failed .{left}.*No such file or "
                             "directory"):
      saved.wait()
    monkeypatch.setattr(sidecar, "seal", seal)
    saved.save(3, initial(), {}, META)
  assert sidecar.steps(saved.directory) == ([3] if all_of_it else [1, 3])
  assert saved.newest_good() == 3


FULL_DISK = """
import errno, json, resource, signal, sys
from pathlib import Path
import jax, jax.numpy as jnp
sys.path[:0] = json.loads(sys.argv[2])
from test_checkpoint import META, TrainState
from hope_jax.checkpoints.checkpoint import Checkpoints

def limit(size):  # of one file: beyond it the kernel refuses the write, as a full disk does
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = TrainState(jnp.int32(0), {"w": jnp.ones((256, 256))}, (), jax.random.key(0), None)
saved = Checkpoints(Path(sys.argv[1]), keep=1)
saved.save(1, state, {}, META)
saved.wait()
limit(50_000)
said = []
saved.save(2, state, {}, META)  # fails behind: nothing to say yet
for step in (3, 4):
  for attempt in (lambda: saved.save(step, state, {}, META), saved.wait):
    try:
      attempt()
      said.append(None)
    except OSError as error:
      assert error.errno == errno.EFBIG
      said.append(str(error))
limit(resource.RLIM_INFINITY)
print(json.dumps(said))
"""


def test_full_disk_says_so_and_the_last_step_stays_good(tmp_path):
  here = Path(__file__).resolve().parent
  child = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path,
                          json.dumps([str(here), str(here.parent)])],
                         capture_output=True, text=True, timeout=120, check=False)
  assert child.returncode == 0, child.stderr
  said = json.loads(child.stdout)
  for step, message in ((2, said[0]), (4, said[3])):  # by the next save, and by wait
    assert re.search(rf"saving step {step} failed: file too large in {tmp_path} \([\d,]+ MiB "
                     r"free\); "
                     "step 1 is whole and a restart goes on from it; free some space", message)
  assert said[1:3] == [None, None]  # an error is told once
  assert "Traceback" not in child.stderr
  left = set(os.listdir(tmp_path))
  assert "1" in left and not {"2", "3", "4"} & left and left != {"1"}  # there is debris to ignore
  assert weights.load(tmp_path)[0]["w"].shape == (256, 256)  # beside the debris
  saved = Checkpoints(tmp_path, keep=1)
  assert saved.latest() == 1 and os.listdir(tmp_path) == ["1"]
  like = TrainState(jnp.int32(0), {"w": jnp.ones((256, 256))}, (), jax.random.key(1), None)
  assert_same(saved.restore(1, like)[0], like.replace(rng=jax.random.key(0)))


def test_fast_state_comes_back_replaces_and_refuses_another_model(tmp_path):
  params = initial().params
  def whose(params):
    return conversation.owner(CONFIG, params)
  mine, other = whose(params), whose(jax.tree.map(lambda x: x * 1.01, params))
  assert mine == whose(initial().params) != other
  first, second = (Stream(jnp.int32(n), {"layer_0": jnp.full((2, 3), n / 3)}) for n in (1, 2))
  for fast in (first, second):
    conversation.save(tmp_path / "talk", fast, mine | {"note": int(fast.clock)})
    restored, meta = conversation.load(tmp_path / "talk", jax.eval_shape(lambda: first), mine)
    assert_same(restored, fast)
    assert isinstance(restored, Stream) and meta["note"] == fast.clock
  assert len(os.listdir(tmp_path / "talk")) == 1
  with pytest.raises(ValueError,
                     match="another model: it was written by {}, these parameters are {}".format(
      mine["fingerprint"], other["fingerprint"])):
    conversation.load(tmp_path / "talk", first, other)
  with pytest.raises(ValueError, match="checkpoint of another fast state"):
    conversation.load(tmp_path / "talk", first.replace(memory=None), mine)
  with pytest.raises(ValueError, match="no fingerprint and no levels: add conversation.owner"):
    conversation.save(tmp_path / "talk", first, {})
  with pytest.raises(FileNotFoundError):
    conversation.load(tmp_path / "none", first, mine)
