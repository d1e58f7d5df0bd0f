"""The bound stated in hope_jax/memory/write_rule.py: no spectral norm grows beyond it, for any
input, width and number of tokens.

    python -m pytest tests/test_stability.py -m 'not slow'
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import selfmod_cases as cases
from hope_jax.memory import self_modifying
from hope_jax.memory.write_rule import Rule

BOUND, CHUNK = 3.0, 32
GATES = ((-1.0, 2.0), (20.0, 20.0), (20.0, -20.0), (-20.0, 20.0), (20.0, 2.0))  # b_eta, b_alpha
INPUTS = ("random", "constant", "constant x100", "alternating x100", "random x100",
          "alternating sizes")
ROUNDING = 1 + 1e-3


def tokens(kind, i, width, chunk):
  """(xk, xv, xq) of chunk i, each (width, chunk)."""
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), i), (3, width, chunk))
  fixed = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (3, width, 1)), noise.shape)
  flip = jnp.where(jnp.arange(chunk) % 2, 1.0, -1.0)
  return jnp.stack([noise, fixed, 100 * fixed, 100 * flip * fixed, 100 * noise,
                    noise * 10 ** (2 * flip)])[kind]


def spectral(w):
  """Spectral norms, (..., O, I) -> (...), from the smaller Gram matrix."""
  w = w if w.shape[-2] <= w.shape[-1] else w.mT
  return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(w @ w.mT)[..., -1], 0))


def norms(rule, params, state):
  """{memory: {matrix: spectral norm}}, the open chunk's writes included."""
  weights = cases.named(rule, self_modifying.memories(rule).weights(rule, params, state))
  return jax.tree.map(spectral, weights)


def initial_norms(rule, params):
  return norms(rule, params, self_modifying.fresh(rule, params))


def run(rule, params, state, kind, first, chunks, every):
  """The state after `chunks` chunks, the norms after every `every` of them."""
  width, chunk = params["w" if rule.memory == "linear" else "v_in"].shape[-1], rule.chunk
  def one(state, i):
    position = i * chunk + jnp.arange(chunk)
    return self_modifying.run(rule, params, state, *tokens(kind, i, width, chunk), position >= 0,
                              position)[1], None
  def some(state, i):
    state, _ = jax.lax.scan(one, state, i)
    return state, norms(rule, params, state)
  return jax.lax.scan(some, state, first + jnp.arange(chunks).reshape(-1, every))


def extremes(rule, total):
  """Largest norms over `total` tokens, of every pair of inputs and gates: leaves (pairs,)."""
  params = cases.parameters(rule, jax.random.key(0))
  kinds, gates = zip(*itertools.product(range(len(INPUTS)), GATES))
  @jax.jit
  @jax.vmap
  def largest(kind, gate):
    p = params | {"b_eta": gate[0], "b_alpha": gate[1]}
    state, chunks = self_modifying.fresh(rule, p), total // (5 * rule.chunk) * 5
    _, seen = run(rule, p, state, kind, 0, chunks, every=5)
    return jax.tree.map(lambda a: jnp.max(jnp.where(jnp.isfinite(a), a, jnp.inf)), seen)
  return initial_norms(rule, params), largest(jnp.array(kinds), jnp.array(gates))


def assert_bounded(rule, before, largest):
  for (path, limit), found in zip(jax.tree_util.tree_leaves_with_path(before),
                                  jax.tree.leaves(largest)):
    limit = limit if rule.memory == "linear" else max(rule.bound, limit)
    worst = int(np.argmax(found))
    kind, gate = divmod(worst, len(GATES))
    where = f"{jax.tree_util.keystr(path)}, {INPUTS[kind]}, gates {GATES[gate]}"
    assert found[worst] <= ROUNDING * limit, f"{where}: {found[worst]} > {limit}"


@pytest.mark.parametrize("options", [pytest.param(dict(momentum=0.9), marks=pytest.mark.slow),
                                     dict(memory="linear", momentum=0.9), dict(memory="linear")],
                         ids=str)
def test_norms_stay_below_the_bound(options):
  rule = Rule(bound=BOUND, chunk_memory=CHUNK, chunk_generators=CHUNK, **options)
  assert_bounded(rule, *extremes(rule, 20_000))


OTHERS = [
    dict(objective="dot"), dict(momentum=0.9, target_gradient=True),
    dict(rank_one=False, unit_target=False),
    dict(alpha=False), dict(factor="input", rank_one=False), dict(momentum=0.9, chunk_memory=8),
    dict(memory="linear", objective="dot"), dict(memory="linear", rank_one=False, momentum=0.9),
    dict(memory="linear", target_gradient=True),
    dict(memory="linear", target_gradient=True, momentum=0.9),
    dict(memory="linear", adaptive_q=True, momentum=0.9, chunk_memory=64)]


@pytest.mark.slow
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_norms_stay_below_the_bound_with_every_option(options):
  rule = Rule(**dict(bound=BOUND, chunk_memory=CHUNK, chunk_generators=CHUNK) | options)
  assert_bounded(rule, *extremes(rule, 5_000))


def test_without_the_bound_constant_tokens_exceed_it():
  rule = Rule(bound=0.0, factor="input", unit_target=False, chunk_memory=CHUNK,
              chunk_generators=CHUNK)
  before, largest = extremes(rule, 800)
  with pytest.raises(AssertionError, match="constant|alternating|random"):
    assert_bounded(Rule(bound=BOUND), before, largest)
  constant = jax.tree.map(lambda a: a[len(GATES):2 * len(GATES)].max(), largest)
  assert max(jax.tree.leaves(constant)) > 10 * BOUND


def test_what_cannot_be_bounded_is_refused():
  with pytest.raises(ValueError, match="set selfmod.bound to 0"):
    Rule(bound=BOUND, factor="input")


@pytest.mark.slow
@pytest.mark.parametrize("memory, chunk", [("mlp", 64), ("linear", 256)])
def test_norms_stay_below_the_bound_at_width_1024(memory, chunk):
  """12 500 tokens; every eighth part of them is of another kind."""
  rule = Rule(memory=memory, bound=BOUND, chunk_memory=chunk, chunk_generators=chunk)
  params = cases.parameters(rule, jax.random.key(0), width=1024, hidden=64)
  scale = dict(w=0.05, v_in=0.1, v_out=0.1, g_in=0.1)
  params = {name: p * scale.get(name, 1.0) for name, p in params.items()}
  parts = ((0, 0), (1, 0), (2, 1), (3, 4), (4, 4), (5, 0), (3, 1), (1, 2))  # inputs, gates
  each = 12_500 // len(parts) // chunk + 1
  state, before = self_modifying.fresh(rule, params), initial_norms(rule, params)
  # optimised code: the run time counts here
  advance = jax.jit(lambda p, state, kind, first: run(rule, p, state, kind, first, each, each))
  for part, (kind, gate) in enumerate(parts):
    p = params | dict(b_eta=jnp.float32(GATES[gate][0]), b_alpha=jnp.float32(GATES[gate][1]))
    state, seen = advance(p, state, jnp.int32(kind), jnp.int32(part * each))
    for (path, limit), found in zip(jax.tree_util.tree_leaves_with_path(before),
                                    jax.tree.leaves(seen)):
      limit = limit if memory == "linear" else max(BOUND, limit)
      where = f"{jax.tree_util.keystr(path)} after part {part}"
      assert found[-1] <= ROUNDING * limit, f"{where}: {found[-1]} > {limit}"
