"""The token loop of reference_selfmod.py gives the arrays of PyTorch code (parity/README.md).

    python -m pytest tests/test_parity_selfmod.py
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_selfmod as ref

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


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem.removeprefix("selfmod_"))
def test_reference_matches_pytorch(path, x64):
  arrays, rule, params = load(path)
  x, x2 = conv(arrays, arrays["x"]), conv(arrays, arrays["x2"])
  if "x_conv" in arrays:
    close(x, arrays["x_conv"], "x_conv")

  def call(state, x_Txd):  # one call of theirs: chunks begin with the call and end with it
    y, state = ref.run(rule, params, dict(state, count=0), x_Txd, x_Txd, x_Txd)
    return y, ref.flush(state)

  def read(weights, x_Txd):
    return jax.vmap(lambda x_d: ref.read(rule, params, weights, x_d, x_d, x_d).y)(x_Txd)

  start = jax.tree.map(lambda w: jnp.broadcast_to(w, (x.shape[0], *jnp.shape(w))),
                       ref.fresh(params))
  y, state = jax.vmap(call)(start, x)
  y2, state2 = jax.vmap(call)(state, x2)

  close(jax.vmap(read)(start["start"], x), arrays["out_read_static"], "out_read_static")
  close(y, arrays["out_updates"], "out_updates")
  assert check_state(arrays, "final", state)
  close(jax.vmap(read)(state["start"], x), arrays["out_read_final_state"], "out_read_final_state")
  close(y2, arrays["out2_updates"], "out2_updates")
  assert check_state(arrays, "final2", state2)
