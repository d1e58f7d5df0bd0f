"""The outer optimizers: which parameter goes where, and when a slow CMS level is stepped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import config
from hope_jax.model import lm, sharding
from hope_jax.training import optimizer


def small(**optimizer):
  c = config.base()
  c.model.dim, c.model.layers, c.model.heads, c.model.vocab = 16, 2, 2, 23
  c.data.seq = c.data.align = 64
  c.channel.levels = (config.Level("fast", 0), config.Level("slow", 192))
  c.optim.warmup = 0
  for name, value in optimizer.items():
    c.optim[name] = value
  return c


@functools.cache
def initial():
  return jax.jit(lambda key: lm.init_params(small(), key))(jax.random.key(0))


def walk(c, steps, gradients):
  """Parameters after each step, for given gradients."""
  params, tx = initial(), optimizer.make(c)
  state, update = tx.init(params), jax.jit(tx.update)
  out = [params]
  for i in range(steps):
    updates, state = update(gradients(i, params), state, out[-1])
    out.append(optax.apply_updates(out[-1], updates))
  return out


@pytest.mark.parametrize("name", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_slow_level_moves_once_per_period_by_its_mean_gradient(name):
  c = small(name=name, clip=1e9)
  def noise(i, params):
    return jax.tree.map(
        lambda p: jax.random.normal(jax.random.fold_in(jax.random.key(7), i), p.shape), params)
  steps = walk(c, 6, noise)
  def level(params, which):
    return params["blocks"]["cms"][which]["up"]["kernel"]
  moved = [bool((level(a, "slow") != level(b, "slow")).any()) for a, b in zip(steps, steps[1:])]
  assert moved == [False, False, True, False, False, True]
  assert all((level(a, "fast") != level(b, "fast")).any() for a, b in zip(steps, steps[1:]))
  # the same update as one step of the mean gradient on a level without a period
  plain = small(name=name, clip=1e9)
  plain.channel.levels = (config.Level("fast", 0), config.Level("slow", 0))
  def mean(i, params):
    return jax.tree.map(lambda *g: sum(g) / 3, *(noise(j, params) for j in range(3)))
  np.testing.assert_allclose(level(steps[3], "slow"), level(walk(plain, 1, mean)[1], "slow"),
                             atol=1e-6)


def test_muon_orthogonalises_every_matrix_by_itself():
  c = small(name="muon", clip=1e9, weight_decay=0.0)
  def noise(i, params):
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(3), p.shape), params)
  before, after = walk(c, 1, noise)
  for path in (("cms", "fast", "up", "kernel"), ("selfmod", "v_in"), ("selfmod", "w_q")):
    a, b = before["blocks"], after["blocks"]
    for name in path:
      a, b = a[name], b[name]
    # one spectrum a layer, head and memory
    singular = np.linalg.svd(np.asarray(b - a), compute_uv=False)
    assert (singular.max(-1) / singular.min(-1)).max() < 2.5, path


def test_only_matrices_decay():
  c = small(clip=1e9, weight_decay=0.5)
  before, after = walk(c, 1, lambda i, params: jax.tree.map(jnp.zeros_like, params))
  changed = jax.tree_util.tree_map_with_path(
      lambda path, a, b: (optimizer.kind(path), bool((a != b).any()),
                          "slow" in sharding.path_name(path)), before, after)
  for label, moved, slow in jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, tuple)):
    assert moved == (label == "matrix" and not slow)


def test_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="no row for parameter blocks/new_thing"):
    optimizer.kind((jax.tree_util.DictKey("blocks"), jax.tree_util.DictKey("new_thing")))


def test_schedule_warms_up_then_decays_to_the_final_rate():
  c = small(warmup=10, final_lr=0.1)
  c.train.steps = 100
  factor = optimizer.schedule(c)
  assert float(factor(0)) == 0 and float(factor(10)) == pytest.approx(1)
  assert float(factor(100)) == pytest.approx(0.1) and float(factor(55)) == pytest.approx(0.55,
                                                                                         abs=0.01)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_levels_alone_are_trained_as_if_nothing_else_had_a_gradient(name):
  def noise(i, params):
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(i), p.shape), params)
  def of_levels(i, params):
    return jax.tree_util.tree_map_with_path(
        lambda path, g: g if "cms/" in sharding.path_name(path) else 0 * g, noise(i, params))
  def state_size(c):
    return sum(leaf.size for leaf in jax.tree.leaves(optimizer.make(c).init(initial())))
  c, every = small(name=name, clip=0.1, train="levels"), small(name=name, clip=0.1)
  before, *_, after = walk(c, 3, noise)
  *_, want = walk(every, 3, of_levels)
  for path, leaf in jax.tree_util.tree_leaves_with_path(after):
    old, other = (functools.reduce(lambda tree, key: tree[key.key], path, tree)
                  for tree in (before, want))
    if "cms/" in sharding.path_name(path):
      np.testing.assert_allclose(leaf, other, atol=1e-7)
      assert (leaf != old).any()
    else:
      np.testing.assert_array_equal(leaf, old)
  assert state_size(c) < state_size(every)
