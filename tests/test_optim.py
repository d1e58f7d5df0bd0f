"""The outer optimizers: which parameter goes where, and when a slow CMS level is stepped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
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


def walk(c, steps, gradients, labels=lambda i: 100):
  """Parameters after each step of a run, for given gradients (of the mean loss of its labels)."""
  params, tx = initial(), optimizer.make(c)
  state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
  out = [params]
  for i in range(steps):
    updates, state = update(gradients(i, params), state, out[-1], labels=labels(i), applied=i,
                            last=i + 1 == c.train.steps)
    out.append(optax.apply_updates(out[-1], updates))
  return out


def noise(i, params):
  drawn = np.random.default_rng(i)
  return jax.tree.map(lambda p: drawn.standard_normal(p.shape, np.float32), params)


def level(params, which):
  return params["blocks"]["cms"][which]["up"]["kernel"]


@pytest.mark.parametrize("name", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_slow_level_moves_once_per_period_by_the_mean_gradient_of_its_labels(name):
  c = small(name=name, clip=1e9)
  labels = (50, 10, 240, 100, 100, 100)
  steps = walk(c, 6, noise, labels.__getitem__)
  moved = [bool((level(a, "slow") != level(b, "slow")).any()) for a, b in zip(steps, steps[1:])]
  assert moved == [False, False, True, False, False, True]
  assert all((level(a, "fast") != level(b, "fast")).any() for a, b in zip(steps, steps[1:]))
  # the same update as one step, of all its labels, on a level without a period
  plain = small(name=name, clip=1e9)
  plain.channel.levels = (config.Level("fast", 0), config.Level("slow", 0))
  def mean(i, params):
    return jax.tree.map(lambda *g: sum(n * a for n, a in zip(labels, g)) / 300,
                        *(noise(j, params) for j in range(3)))
  np.testing.assert_allclose(level(steps[3], "slow"), level(walk(plain, 1, mean)[1], "slow"),
                             atol=1e-6)


def scale_moved(steps, i, which):
  """How far a level's norm scale went in a step."""
  a, b = (s["blocks"]["cms"][which]["norm"]["scale"] for s in (steps[i], steps[i + 1]))
  return float(jnp.abs(b - a).max())


def ones(i, params):
  del i
  return jax.tree.map(jnp.ones_like, params)


def test_slow_level_moves_at_the_rate_of_its_steps():
  """The last of its period, also while the rate still rises from 0."""
  c = small(clip=1e9, warmup=6)
  c.train.steps = 100
  steps = walk(c, 6, ones)
  for i in (2, 5):  # vectors do not decay, and Adam's step of a constant gradient is the rate
    assert scale_moved(steps, i, "fast") > 0
    assert scale_moved(steps, i, "slow") == pytest.approx(scale_moved(steps, i, "fast"), rel=1e-3)


@pytest.mark.parametrize("flush", [True, False])
def test_an_unfinished_period_ends_with_the_run(flush):
  c = small(clip=1e9)
  c.train.steps, c.teach.flush_partial = 5, flush
  steps = walk(c, 5, ones)
  moved = [scale_moved(steps, i, "slow") for i in range(5)]
  assert [m > 0 for m in moved] == [False, False, True, False, flush]
  assert not flush or moved[4] == pytest.approx(scale_moved(steps, 4, "fast"), rel=1e-3)


def test_a_period_is_clipped_once_and_apart_from_what_moves_at_every_step():
  """Steps of opposite sign leave little, which is not cut; nor does it cut the others."""
  c = small(clip=1.0)
  def pulled(i, params):
    size = (100.0, -99.9, 0.0)[i]
    return jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.full_like(p, size if "slow" in sharding.path_name(path) else 1e-3),
        params)
  tx, params = optimizer.make(c), initial()
  seen, state = [], jax.jit(tx.init)(params)
  for i in range(3):
    _, state = jax.jit(tx.update)(pulled(i, params), state, params, labels=1, applied=i, last=False)
    seen.append(state)
  def first(state, clock):
    """Adam's mean gradient of a vector after one step: a tenth of what it was given."""
    inner = state.inner_states[clock].inner_state
    inner = inner.inner if clock else inner
    name = clock or "fast"
    found = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(inner)
             if sharding.path_name(path).endswith(f"mu/blocks/cms/{name}/norm/scale")]
    return float(found[0].max())
  count = sum(p.size for p in jax.tree.leaves(params["blocks"]["cms"]["slow"]))
  mean = 0.1 / 3
  assert mean * count ** 0.5 > 1  # it is cut, as a whole
  assert first(seen[2], "slow") == pytest.approx(0.1 / count ** 0.5, rel=1e-3)
  assert first(seen[0], "") == pytest.approx(1e-4, rel=1e-3)


MODELS = {
    "linear": dict(model__pattern=("selfmod", "gru", "attention"), model__layers=3,
                   model__titan="modified", selfmod__memory="linear", selfmod__adaptive_q=True,
                   channel__activation="swiglu", channel__connection="independent"),
    "mlp": dict(model__pattern=("selfmod",), selfmod__gate_skip=True, channel__kind="swiglu"),
}


def model(kind, **optimizer_fields):
  c = small(warmup=0, **optimizer_fields)
  c.channel.levels = (config.Level("fast", 0),)
  for field, value in MODELS[kind].items():
    section, field = field.split("__")
    c[section][field] = value
  return c


def apart(c, name, array):
  """[(place in the array, is it a matrix)], by hand: every matrix, every vector."""
  width, rows, columns = c.model.dim // c.model.heads, *array.shape[-2:]
  if name.endswith(("qkv/kernel", "selfmod/in/kernel", "gru/in/kernel")):
    return [((i, slice(None), slice(at, at + width)), True)
            for i in range(len(array)) for at in range(0, columns, width)]
  if name.endswith(("attention/out/kernel", "selfmod/out/kernel", "gru/out/kernel")):
    return [((i, slice(at, at + width)), True)
            for i in range(len(array)) for at in range(0, rows, width)]
  batch = list(np.ndindex(array.shape[:-2]))
  if name.endswith("selfmod/w"):
    whole = 3 if c.selfmod.adaptive_q else 2  # k, v, (q), eta, alpha, mem
    gates = whole * width
    starts = [*range(0, gates, width), gates + 2]
    return ([((*at, slice(start, start + width)), True) for at in batch for start in starts]
            + [((*at, gates + i), False) for at in batch for i in range(2)])
  return [(at, True) for at in batch]


@functools.partial(jax.jit, static_argnums=(0, 1))
def alone(matrix, rates, start_N, gradients):
  """N arrays of a shape after some steps of Muon, each by itself; not a matrix: of its AdamW."""
  def one(p, *gradients):
    axes = contrib.MuonDimensionNumbers() if matrix else None
    tx = contrib.muon(rates[0], consistent_rms=0.2, weight_decay=0.1, adam_b1=0.9, adam_b2=0.95,
                      adam_learning_rate=rates[1],
                      muon_weight_dimension_numbers=lambda params: [axes])
    state = tx.init([p])
    for g in gradients:
      updates, state = tx.update([g], state, [p])
      p = p + updates[0]
    return p
  return jax.vmap(one)(start_N, *gradients)


@pytest.mark.parametrize("name", MODELS)
def test_muon_takes_every_matrix_by_itself(name):
  """Heads, q, k and v, memories; gates of linear memories are vectors."""
  c = model(name, name="muon", clip=1e9, final_lr=1.0)
  tx = optimizer.make(c)
  start = params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  state, update, gradients = jax.jit(tx.init)(params), jax.jit(tx.update), []
  for i in range(2):
    gradients.append(noise(i, params))
    updates, state = update(gradients[-1], state, params)
    params = optax.apply_updates(params, updates)
  seen = {}
  for (path, a), b, *g in zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(params),
                              *map(jax.tree.leaves, gradients)):
    place = sharding.path_name(path)
    parts = [((), False)] if optimizer.kind(path) != "matrix" else apart(c, place, a)
    assert sum(a[at].size for at, _ in parts) == a.size, place
    for at, matrix in parts:
      seen.setdefault((matrix, a[at].shape), []).append((place, *(x[at] for x in (a, b, *g))))
  for (matrix, _), rows in seen.items():
    places, *arrays = zip(*rows)
    before, after, *g = map(np.stack, arrays)
    want = alone(matrix, (c.muon.lr, c.optim.lr), before, g)
    for place, got, wanted, old in zip(places, after, want, before):
      np.testing.assert_allclose(got - old, wanted - old, atol=2e-5, err_msg=place)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rows_of_gates_do_not_decay(name):
  c = model("linear", name=name, weight_decay=0.5)
  params, tx = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0)), optimizer.make(c)
  updates = jax.jit(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)[0])(params)
  w, change = (tree["blocks"]["selfmod"]["w"] for tree in (params, updates))
  rate = {"adamw": c.optim.lr, "muon": c.muon.lr}[name]
  gates = slice(3 * 8, 3 * 8 + 2)  # after k, v and q
  assert not change[..., gates, :].any() and w[..., gates, :].any()
  np.testing.assert_allclose(change, -0.5 * rate * w.at[..., gates, :].set(0), rtol=1e-5)


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
