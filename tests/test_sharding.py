"""Laws of meshes: equal losses, a device holds its part and no more, what has no rule is refused.

Programs run in processes of their own, with 8 devices of the host:

    JAX_NUM_CPU_DEVICES=8 python -m tests.test_sharding train hope_hybrid adamw 1,1,1 2,2,2

prints a line of JSON for each mesh.
"""

import json
import os
from pathlib import Path
import socket
import subprocess
import sys

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P
import numpy as np
import pytest

from hope_jax import config
from hope_jax.checkpoints import arrays, sidecar
from hope_jax.model import checks, lm, sharding, state
from hope_jax.reading import study
from hope_jax.training import collectives, loop, optimizer, steps
from tests import test_train

ROOT = Path(__file__).resolve().parents[1]
ONE, MESHES = (1, 1, 1), [(2, 1, 1), (8, 1, 1), (2, 4, 1), (1, 1, 2), (2, 2, 2)]
STREAMS, STEPS = 8, 20


def tiny(kind, optimizer="adamw", mesh=ONE):
  kind, _, memory = kind.partition("/")
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=16, layers=2, heads=2, vocab=32))
  c.data.update(dict(seq=16, align=8, batch=STREAMS))
  c.selfmod.update(dict(memory=memory or "linear", chunk_generators=8, chunk_memory=8))
  if kind == "transformer":
    c.channel.kind = "swiglu"
  else:
    c.channel.in_context = True
    c.channel.levels = (config.Level("fast", 4, lr=0.05),
                      config.Level("slow", 16, rule="momentum", lr=0.05))
    c.teach.update(dict(chunk=8, clip=1.0, through_context="full"))
  c.titan.update(dict(period=8, hidden=1.0))
  c.data.carry = kind == "hope_hybrid"  # the text is read again and again, as one document
  c.optim.update(dict(name=optimizer, warmup=5, lr=3e-3))
  c.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh)))
  return c


def texts():
  """Sequences to learn: each token is a multiple of the one before, now and then another."""
  random = np.random.default_rng(0)
  tokens = random.integers(1, 31, (STREAMS, 17))
  for t in range(1, 17):
    tokens[:, t] = np.where(random.random(STREAMS) < 0.8, tokens[:, t - 1] * 3 % 31, tokens[:, t])
  return tokens.astype(np.int32)


def is_cut(path) -> bool:
  """Whether fsdp and tensor cut a parameter: matrices, and what gates have of stacked rows."""
  return optimizer.kind(path) != "vector" or sharding.path_name(path).endswith(
      ("g_out", "g_skip", "w/eta", "w/alpha"))


def held(tree) -> dict:
  """{"all": bytes of whole arrays, "device": of what each device holds}; matrices, and the rest."""
  out = {"matrices": [0, {}], "rest": [0, {}]}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    try:
      part = out["matrices" if is_cut(path) else "rest"]
    except ValueError:  # a count, a clock: not of a parameter
      part = out["rest"]
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    part[0] += leaf.nbytes
    for shard in leaf.addressable_shards:
      part[1][shard.device.id] = part[1].get(shard.device.id, 0) + shard.data.nbytes
  return {name: [whole, sorted(each.values())] for name, (whole, each) in out.items()}


def train(kind, optimizer, mesh) -> dict:
  """Losses, gradient norms, memory statistics of 20 steps; what devices hold; first parameters."""
  c = tiny(kind, optimizer, mesh)
  devices = sharding.mesh(c, jax.devices()[:np.prod(mesh)])
  init = jax.jit(lambda key: steps.init_state(c, key),
                 out_shardings=steps.state_shardings(c, devices))
  state, tokens = init(jax.random.key(0)), texts()
  batch = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:],
           "segments": np.ones_like(tokens[:, 1:])}
  batch = sharding.place_batch(batch, devices)
  out = {"born": held(state.params), "start": arrays.fingerprint(state.params)}
  step = steps.make_train_step(c, devices).lower(state, batch).compile()
  out["sent"] = sum(collectives.count(step.as_text())[kind] for kind in collectives.KINDS)
  losses, others = [], []
  for _ in range(STEPS):
    state, seen = step(state, batch)
    losses.append(float(seen["loss"]))
    others.append([float(seen["grad_norm"]),
                   *(float(value.mean()) for _, value in sorted(seen["memory"].items()))])
  return out | {"losses": losses, "others": others, "params": held(state.params),
                "optimizer": held(state.opt_state)}


def read(kind, mesh) -> dict:
  """What streams learn from a text, and what the devices hold of it."""
  c = tiny(kind, mesh=mesh)
  devices = sharding.mesh(c, jax.devices()[:np.prod(mesh)])
  params = jax.jit(lambda key: lm.init_params(c, key))(jax.random.key(0))
  params = jax.device_put(params, sharding.of_params(params, devices))
  fast = sharding.place_fast(lm.init_fast(c, STREAMS), devices)
  out = {"before": streams_held(fast)}
  fast, report = study.memorize(c, params, fast, texts().tolist())
  return out | {"losses": report.loss_B.tolist(), "after": streams_held(fast)}


def streams_held(fast) -> list:
  """[bytes of all streams' state, bytes on each device]."""
  sizes = {}
  for leaf in jax.tree.leaves(fast.layers):
    for shard in leaf.addressable_shards:
      sizes[shard.device.id] = sizes.get(shard.device.id, 0) + shard.data.nbytes
  return [sum(leaf.nbytes for leaf in jax.tree.leaves(fast.layers)), sorted(sizes.values())]


def on_eight(*arguments) -> list[dict]:
  """The JSON lines of this file as a program."""
  meshes = [",".join(map(str, a)) if isinstance(a, tuple) else a for a in arguments]
  done = subprocess.run([sys.executable, "-m", "tests.test_sharding", *meshes], cwd=ROOT,
                        capture_output=True, text=True,
                        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_parts(sizes: dict, mesh):
  """Matrices are cut over fsdp and tensor, to the byte, on every device; vectors are whole."""
  _, fsdp, tensor = mesh
  assert sizes["matrices"][1] == [sizes["matrices"][0] / fsdp / tensor] * int(np.prod(mesh))
  assert sizes["rest"][1] == [sizes["rest"][0]] * int(np.prod(mesh))


def slow(*case):
  return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, optimizer, meshes", [
    ("transformer", "adamw", [(2, 2, 2)]), slow("transformer", "adamw", MESHES),
    slow("hope_selfmod", "adamw", MESHES[1:]),
    slow("hope_hybrid", "adamw", MESHES[1:]), slow("hope_hybrid", "muon", [(2, 2, 2), (1, 8, 1)]),
    pytest.param("hope_selfmod", "muon", [(2, 2, 2)], marks=pytest.mark.nightly),
    pytest.param("hope_selfmod/mlp", "adamw", [(2, 2, 2)], marks=pytest.mark.nightly)])
def test_every_mesh_trains_as_one_device(kind, optimizer, meshes):
  one, *others = on_eight("train", kind, optimizer, ONE, *meshes)
  assert one["losses"][-1] < one["losses"][0] - 0.1
  for mesh, out in zip(meshes, others):
    assert out["start"] == one["start"]
    np.testing.assert_allclose(out["losses"], one["losses"], rtol=0, atol=1e-5, err_msg=str(mesh))
    # adam hides a factor
    np.testing.assert_allclose(out["others"], one["others"], rtol=1e-3, atol=1e-5,
                               err_msg=str(mesh))
    for part in ("born", "params", "optimizer"):
      check_parts(out[part], mesh)
    # Muon: once each way, not in each product
    assert mesh != (1, 8, 1) or out["sent"] < 6 * out["params"]["matrices"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hope_selfmod", "hope_hybrid"])
def test_fast_state_is_cut_by_stream_and_head(kind):
  meshes = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
  one, *others = on_eight("read", kind, ONE, *meshes)
  for mesh, out in zip(meshes, others):
    np.testing.assert_allclose(out["losses"], one["losses"], atol=1e-5)
    data, fsdp, tensor = mesh
    for whole, each in (out["before"], out["after"]):
      # vectors and clocks are not cut by tensor
      assert len(each) == 8 and max(each) <= 1.2 * whole / 8
      assert tensor > 1 or each == [whole / 8] * 8


def abstract(*shape):
  return AbstractMesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("kind", ["transformer", "hope_selfmod", "hope_hybrid"])
@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_every_parameter_has_a_rule_and_its_optimizer_follows(kind, memory):
  c = tiny(kind, "muon")
  c.selfmod.update(dict(memory=memory, adaptive_q=memory == "mlp", gate_skip=True))
  if kind != "transformer":
    # slow: accumulated, MultiSteps
    c.channel.levels = (config.Level("fast", 16, "dmgd"), config.Level("slow", 64))
    c.channel.update(dict(in_context=False, connection="independent", activation="swiglu",
                        norm="layer"))
  state = jax.eval_shape(lambda: steps.init_state(c, jax.random.key(0)))
  places = sharding.of_state(state, abstract(2, 2, 2))
  own = {sharding.path_name(path): place
         for path, place in jax.tree_util.tree_leaves_with_path(places.params)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    cut = {"fsdp", "tensor"} <= set(own[sharding.path_name(path)].spec)
    assert cut == is_cut(path), sharding.path_name(path)
  followers = 0
  for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state):
    path = sharding.path_name(path)
    name = next((n for n in own if f"/{n}/" in path + "/"), None)
    if name is None or path.endswith(name):
      assert place.spec == (own[name].spec if name else P())
    else:  # a part of a parameter, cut as it is
      assert set(place.spec) - {None} == set(own[name].spec) - {None}, path
    followers += name is not None
  assert followers >= len(own)


def test_what_no_rule_names_is_refused():
  def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)
  with pytest.raises(ValueError, match="no row for parameter blocks/new/thing: add one"):
    sharding.of_params({"blocks": {"new": {"thing": leaf(2, 8, 8)}}}, abstract(1, 1, 1))
  with pytest.raises(ValueError, match="no row for parameter blocks/mlp/startup"):
    sharding.of_params({"blocks": {"mlp": {"startup": leaf(2, 8, 8)}}}, abstract(1, 1, 1))
  params = {"blocks": {"mlp": {"up": {"kernel": leaf(2, 8, 8)}}}}
  whole = state.TrainState(leaf(), params, {"factor": leaf(8, 8)}, leaf())
  with pytest.raises(ValueError,
                     match=r"optimizer state factor of shape \(8, 8\) belongs to no parameter"):
    sharding.of_state(whole, abstract(1, 2, 1))


def test_what_cannot_be_cut_is_refused():
  params = jax.eval_shape(lambda: lm.init_params(tiny("transformer"), jax.random.key(0)))
  with pytest.raises(ValueError,
                     match=r"parameter blocks/attention/out/kernel of shape \(2, 16, 16\): axis 2 "
                           r"\(model\) of size "
                                       r"16 is not divisible by mesh.fsdp = 3: set mesh.fsdp to a "
                                       r"divisor of 16"):
    sharding.of_params(params, abstract(1, 3, 1))
  fast = jax.eval_shape(lambda: lm.init_fast(tiny("hope_hybrid"), 3))
  with pytest.raises(ValueError,
                     match=r"fast state .*\(streams\) of size 3 is not divisible by mesh.data x "
                           r"mesh.fsdp = 2"):
    sharding.of_fast(fast, abstract(2, 1, 1))


@pytest.mark.parametrize("mesh, devices, message", [
    ((2, 4, 1), 4, "mesh.data=2, mesh.fsdp=4, mesh.tensor=1 do not fit 4 "
                   "devices.*JAX_NUM_CPU_DEVICES=8"),
    ((0, 3, 1), 8, "do not fit 8 devices: their product must be 8"),
    ((3, 1, 1), 3, "data.batch=8 is not divisible by 3 devices"),
    ((2, 1, 4), 8, "model.heads=2 is not divisible by mesh.tensor=4"),
    ((-1, 1, 1), 1, "mesh.data=-1: set it to 0"),
    ((1, 0, 1), 1, "mesh.fsdp=0: set it to 1 or more")])
def test_a_mesh_that_does_not_fit_is_refused(mesh, devices, message):
  with pytest.raises(ValueError, match=message):
    checks.validate(tiny("transformer", mesh=mesh), devices)


def test_all_devices_that_are_left():
  assert sharding.mesh_shape(tiny("transformer", mesh=(0, 2, 2)), 8) == (2, 2, 2)
  assert sharding.mesh_shape(tiny("transformer", mesh=(0, 1, 1)), 1) == (1, 1, 1)


PROCESS = """
import sys
import jax
from hope_jax import config
from hope_jax.training import loop
config_file, workdir, address, count, number = sys.argv[1:]
if int(count) > 1:
  jax.distributed.initialize(address, int(count), int(number))
print(loop.train(config.load(config_file), workdir, allow_changes=True)["bpb"])
"""


def processes(config_file, workdir, count: int) -> list[subprocess.CompletedProcess]:
  """A run in this many processes of one device each."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  started = [subprocess.Popen(
      [sys.executable, "-c", PROCESS, config_file, workdir, address, str(count), str(i)], cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
             for i in range(count)]
  done = [(p.communicate(timeout=300), p.returncode) for p in started]
  assert not any(code for _, code in done), done
  return [(out.splitlines()[-1], error) for (out, error), _ in done]  # before it, Gloo speaks


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  """Matrices and batch in two processes, stopped and resumed; only the first process writes."""
  c = test_train.small(tmp_path, model__pattern=("attention",), channel__kind="swiglu",
                       model__dropout=0.0, train__save_every=2,
                       train__eval_every=4, optim__warmup=2)
  runs = {}
  for count in (1, 2):
    for steps_ in (4, STEPS):
      c.train.steps, c.mesh.fsdp = steps_, count
      (tmp_path / "config.json").write_text(config.to_json(c))
      outs = processes(tmp_path / "config.json", tmp_path / str(count), count)
    rows = [json.loads(line)
            for line in (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()]
    runs[count] = [row["train/loss"] for row in rows if "train/loss" in row]
    assert [row["train/bpb"] > 0 for row in rows if "train/loss" in row] == [True] * STEPS
    assert len({out for out, _ in outs}) == 1 and all("step" not in error for _, error in outs[1:])
    assert sidecar.steps(tmp_path / str(count) / "checkpoints") == [STEPS - 2, STEPS]
  np.testing.assert_allclose(runs[2], runs[1], rtol=0, atol=1e-5)


ELSEWHERE = """
import contextlib, os, signal, sys
from hope_jax.training import loop
from tests import test_sharding
draw = loop._Run.draw
def drawing(self, i, before):
  if i == stop:
    os.kill(os.getpid(), signal.SIGTERM)
  return draw(self, i, before)
loop._Run.draw = drawing
for stop, mesh in ((3, (8, 1, 1)), (6, (2, 4, 1)), (9, (2, 2, 2)), (12, (1, 8, 1))):
  with contextlib.suppress(SystemExit):
    loop.train(test_sharding.elsewhere(mesh), sys.argv[1])
"""


def elsewhere(mesh):
  c = tiny("hope_hybrid", mesh=mesh)
  c.data.update(dict(carry=False, task="recall", recall_pairs=4, recall_keys=15))
  c.train.update(dict(steps=12, log_every=1, eval_every=12, eval_batches=1, save_every=100))
  return c


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path):
  """Parameters, optimizer, random key and position of the data, by the trainer's own rules."""
  done = subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path / "moved"], cwd=ROOT,
                        capture_output=True, text=True,
                        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"})
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("resuming at step") == 3
  loop.train(elsewhere(ONE), tmp_path / "stayed")
  moved, stayed = (test_train.losses(tmp_path / name) for name in ("moved", "stayed"))
  assert set(moved) == set(range(1, 13))
  np.testing.assert_allclose([moved[i] for i in stayed], list(stayed.values()), rtol=0, atol=1e-5)


if __name__ == "__main__":
  what, kind, *rest = sys.argv[1:]
  for mesh in [tuple(map(int, a.split(","))) for a in rest if "," in a]:
    print(json.dumps(train(kind, rest[0], mesh) if what == "train" else read(kind, mesh)),
          flush=True)
