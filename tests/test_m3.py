"""M3 and its Newton-Schulz against the arrays of PyTorch code (parity/README.md); full Muon; the
schedules; one group for every parameter.

    python -m pytest tests/test_m3.py
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import contract, lm, parameters, sharding
from hope_jax.optimizers import m3
from hope_jax.training import optimizer

PARITY = pathlib.Path(__file__).parent / "parity"


def test_newton_schulz_is_pytorchs_of_every_matrix_by_itself(x64):
  arrays = dict(np.load(PARITY / "newton_schulz.npz"))
  for name, start in (("a", arrays["a_6x4"]), ("b", arrays["b_4x6"])):
    for iterations in (1, 3, 5):
      many = m3.newton_schulz(jnp.stack([jnp.asarray(start), -2 * start]), iterations, 1e-6)
      np.testing.assert_allclose(many[0], arrays[f"{name}_ns{iterations}"], atol=1e-12)
      np.testing.assert_allclose(many[1], -many[0], atol=1e-6)


def test_m3_is_pytorchs(x64):
  arrays = dict(np.load(PARITY / "m3_6x4.npz"))
  c = json.loads(str(arrays["config_json"]))
  tx = m3.scale(c["beta1"], c["beta2"], c["beta3"], c["alpha"], c["slow_chunk"], c["ns_steps"],
                c["eps"])
  params = jnp.asarray(arrays["p0"])
  state, update = tx.init(params), jax.jit(tx.update)
  for t, gradient in enumerate(arrays["grads"]):
    updates, state = update(gradient, state)
    params = params - c["lr"] * updates
    np.testing.assert_allclose(params, arrays["p_traj"][t], atol=1e-12)
    for name, theirs in (("direction", "o2"), ("fast", "m1"), ("squares", "v")):
      np.testing.assert_allclose(state[name], arrays[f"{theirs}_traj"][t], atol=1e-12)
  np.testing.assert_allclose(state["slow"], arrays["m2_final"], atol=1e-12)


def small(**fields):
  c = config.base()
  c.model.update(dict(pattern=("gru",), dim=8, layers=1, heads=2, vocab=11))
  c.optim.update(dict(warmup=0, clip=1e9, weight_decay=0.0) | fields)
  return c


@functools.cache
def initial():
  return jax.jit(lambda key: lm.init_params(small(), key))(jax.random.key(0))


def moved(c):
  """One step's change of every parameter, by path, for a gradient of noise."""
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), initial())
  tx = optimizer.make(c)
  updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(gradients, initial())
  return {sharding.path_name(path): np.asarray(u)
          for path, u in jax.tree_util.tree_leaves_with_path(updates)}


def test_what_is_no_matrix_is_stepped_as_by_adamw():
  by_m3, adamw, full, muon = (moved(small(name=name)) for name in ("m3", "adamw", "full_muon",
                                                                   "muon"))
  for path in adamw:
    group = parameters.row(path).group
    assert np.allclose(by_m3[path], adamw[path], atol=1e-7) == (group != "matrix"), path
    assert np.allclose(full[path], muon[path], atol=1e-7) == (group != "embedding"), path
  singular = np.linalg.svd(full["embed/embedding"], compute_uv=False)
  assert singular.max() / singular.min() < 2.5


def test_a_schedule_is_stable_until_its_end():
  c = small(schedule="wsd", warmup=10, decay=0.2, final_lr=0.1)
  c.train.steps = 100
  factor = optimizer.schedule(c)
  for step, want in ((0, 0.0), (5, 0.5), (10, 1.0), (80, 1.0), (90, 0.55), (100, 0.1), (200, 0.1)):
    assert float(factor(step)) == pytest.approx(want), step


def test_a_parameter_of_two_groups_is_named_at_the_start(monkeypatch):
  more = (*parameters.table(), ("blocks/gru/.*/kernel", contract.Parameter("x", (), "vector", "y")))
  monkeypatch.setattr(parameters, "table", lambda: more)
  parameters.row.cache_clear()
  with pytest.raises(ValueError, match="parameter blocks/gru/in/kernel has rows in/kernel, x"):
    optimizer.matrices({"blocks": {"gru": {"in": {"kernel": 0}}}})
  parameters.row.cache_clear()
