"""Self-modifying memories give the arrays of PyTorch code (parity/README.md): as the package reads
and writes them, chunk-parallel, and as the token loop of reference_selfmod.py does.

    python -m pytest tests/test_parity_selfmod.py
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_selfmod as ref
import selfmod_cases as cases
from hope_jax.memory import mlp_memory, self_modifying
from hope_jax.memory.write_rule import Rule
from hope_jax.model import layers

FILES = sorted((pathlib.Path(__file__).parent / "parity").glob("selfmod_*.npz"))
TOLERANCE = 1e-9  # relative to the largest entry of an array


def load(path):
  """-> (arrays, rule, params) in the reference's names."""
  arrays = dict(np.load(path))
  c = json.loads(str(arrays.pop("config_json")))
  rule = ref.Rule(
      factor="input", unit_target=False, objective=c.get("objective", "l2"),
      rank_one=c.get("use_rank1_precond", True),
      alpha=c.get("use_alpha", True), momentum=c.get("momentum", 0.0),
      adaptive_q=c.get("adaptive_q", False),
      target_gradient=not c.get("stopgrad_vhat", True), eta_scale=c["eta_scale"],
      chunk_memory=c["chunk_size_memory"], chunk_generators=c["chunk_size_other"])
  params = {"w_q": jnp.array(arrays["w.w_q.weight"]), "b_eta": jnp.zeros(()),
            "b_alpha": jnp.zeros(())}
  for n in ref.MEMORIES:
    if n != "q" or rule.adaptive_q:
      prefix = f"w.m_{theirs(n)}."
      params[n] = {ours(a.split(".")[2]): jnp.array(w) for a, w in arrays.items()
                   if a.startswith(prefix)}
  return arrays, rule, params


def theirs(memory):
  return "memory" if memory == "mem" else memory


def ours(matrix):
  return "skip" if matrix == "w_skip" else matrix


def conv(arrays, x_BxTxD):
  """Their causal depth-wise convolution, zeros on the left at the start of every call."""
  if "w.local_conv.weight" not in arrays:
    return jnp.array(x_BxTxD)
  w_DxK = arrays["w.local_conv.weight"][:, 0]
  T, K = x_BxTxD.shape[1], w_DxK.shape[1]
  padded = np.pad(x_BxTxD, ((0, 0), (K - 1, 0), (0, 0)))
  return jnp.array(sum(w_DxK[:, i] * padded[:, i:i + T] for i in range(K)))


def close(actual, wanted, name):
  error = np.abs(np.asarray(actual) - wanted).max() / np.abs(wanted).max()
  assert error < TOLERANCE, f"{name}: relative error {error:.1e}"


def check_state(arrays, prefix, state):
  """Compares every array `prefix.<memory>.<matrix>`; -> their names."""
  names = [a for a in arrays if a.startswith(prefix + ".")]
  for a in names:
    _, memory, matrix = a.split(".")
    if memory == "q" and "q" not in state["run"]:  # not adaptive: M_q takes no part
      wanted = np.zeros(()) if matrix.startswith("m_") else arrays[f"w.m_q.{matrix}.weight"]
      np.testing.assert_array_equal(arrays[a], np.broadcast_to(wanted, arrays[a].shape))
      continue
    part = "momentum" if matrix.startswith("m_") else "run"
    close(state[part]["mem" if memory == "memory" else memory][ours(matrix.removeprefix("m_"))],
          arrays[a], a)
  return names


def check(arrays, read, write, named, start, x, x2):
  """Outputs and states of both calls of a file, of what one stream reads and writes.

  read: (state, x) -> y; write: (state, x) -> (y, state); named: state -> as `check_state` has it.
  """
  start = jax.tree.map(lambda w: jnp.broadcast_to(w, (len(x), *jnp.shape(w))), start)
  def one(start, x, x2):
    y, state = write(start, x)
    y2, state2 = write(state, x2)
    return ({"out_read_static": read(start, x), "out_updates": y,
             "out_read_final_state": read(state, x), "out2_updates": y2},
            {"final": named(state), "final2": named(state2)})
  outs, states = jax.vmap(one)(start, x, x2)
  for name, y in outs.items():
    close(y, arrays[name], name)
  for prefix, state in states.items():
    assert check_state(arrays, prefix, state)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem.removeprefix("selfmod_"))
def test_reference_matches_pytorch(path, x64):
  arrays, rule, params = load(path)
  x, x2 = conv(arrays, arrays["x"]), conv(arrays, arrays["x2"])
  if "x_conv" in arrays:
    close(x, arrays["x_conv"], "x_conv")

  def read(state, x_Txd):
    return jax.vmap(lambda x_d: ref.read(rule, params, state["start"], x_d, x_d, x_d).y)(x_Txd)

  def write(state, x_Txd):  # one call of theirs: chunks begin with the call and end with it
    y, state = ref.run(rule, params, dict(state, count=0), x_Txd, x_Txd, x_Txd)
    return y, ref.flush(state)

  check(arrays, read, write, lambda state: state, ref.fresh(params), x, x2)


def stacked(rule, params):
  """The package's parameters: memories of equal shape are one array."""
  def stack(names, matrix):
    return jnp.stack([params[name][matrix] for name in names])
  vectors, gates = mlp_memory.vectors(rule), mlp_memory.GATES
  out = {"v_in": stack(vectors, "w2"), "v_out": stack(vectors, "w1"), "g_in": stack(gates, "w2"),
         "g_out": stack(gates, "w1")}
  if "skip" in params["eta"]:
    out["g_skip"] = stack(gates, "skip")
  return out | {name: params[name] for name in ("w_q", "b_eta", "b_alpha")}


def mixed(arrays, x_BxTxD):
  """The convolution as the package has it."""
  x_BxTxD = jnp.array(x_BxTxD)
  if "w.local_conv.weight" not in arrays:
    return x_BxTxD
  kernel = jnp.array(arrays["w.local_conv.weight"][:, 0, ::-1].T)  # ours: tap 0 is the present
  batch, tokens, width = x_BxTxD.shape
  extended = layers.extend(jnp.zeros((batch, layers.CONV - 1, width)), x_BxTxD,
                           jnp.zeros(batch, int))
  return layers.conv(kernel, extended, jnp.broadcast_to(jnp.arange(tokens), (batch, tokens)))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem.removeprefix("selfmod_"))
def test_package_matches_pytorch(path, x64):
  arrays, their_rule, params = load(path)
  rule, params = Rule(**dataclasses.asdict(their_rule)), stacked(their_rule, params)
  memory = self_modifying.memories(rule)

  @functools.partial(jax.jit, static_argnums=2)
  def run(state, x_Txd, writes):
    position = rule.grid + jnp.arange(len(x_Txd))  # a call begins chunks, and no document
    y, state, _ = self_modifying.run(rule, params, state, x_Txd.T, x_Txd.T, x_Txd.T,
                                     jnp.ones(len(x_Txd), bool), position, writes)
    return y.T, memory.settle(rule, params, state, True, True)

  def named(state):
    return {part: cases.named(rule, memory.weights(rule, params, {"run": state[part]}))
            for part in ("run", "momentum") if part in state}

  check(arrays, lambda state, x_Txd: run(state, x_Txd, False)[0],
        lambda state, x_Txd: run(state, x_Txd, True), named, self_modifying.fresh(rule, params),
        mixed(arrays, arrays["x"]), mixed(arrays, arrays["x2"]))
