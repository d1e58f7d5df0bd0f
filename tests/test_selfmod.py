"""Self-modifying Titans, chunk-parallel, against the token loop of reference_selfmod.py.

    python -m pytest tests/test_selfmod.py -m 'not slow'
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_selfmod as reference
import selfmod_cases as cases
from hope_jax.memory import self_modifying
from hope_jax.memory.write_rule import Rule

TOKENS = 21
# Each option at one pair of chunk sizes (M_mem, generators): all sizes with each kind of memory;
# the rest is slow.
SIZES = [(4, 4), (16, 16), (1, 1), (8, 4), (8, 3), (64, 64), (4, 8), (7, 7), (3, 6), (32, 32),
         (2, 1)]
PAIRS = ({name: SIZES[i // 2 % len(SIZES)] for i, name in enumerate(cases.OPTIONS)}
         | {"input_factor": (16, 16)})
# compiling is most of the time: the backend need not optimise
jit = functools.partial(jax.jit, static_argnums=0)


def make(name, sizes, tokens=TOKENS, dtype=jnp.float64):
  """(rule, (params, x)) of an option."""
  rule = Rule(chunk_memory=sizes[0], chunk_generators=sizes[1], **cases.OPTIONS[name])
  params = cases.parameters(rule, jax.random.key(1), gate_skip=name in ("gate_skip", "everything"))
  return rule, jax.tree.map(lambda a: a.astype(dtype),
                            (params, cases.inputs(jax.random.key(2), tokens)))


def chunked(rule, params, x, from_start=False, **options):
  """Output and every memory's final weights, in the reference's layout."""
  tokens = x[0].shape[0]
  state = None if from_start else self_modifying.fresh(rule, params)
  y, state, _ = self_modifying.run(rule, params, state, *(a.T for a in x), jnp.ones(tokens, bool),
                                   jnp.arange(tokens), **options)
  return y.T, cases.named(rule, self_modifying.memories(rule).weights(rule, params, state))


def token_loop(rule, params, x, sizes=None):
  """By the definition: `reference.run` as a scan over its `step`; `sizes` may be traced."""
  there, their_rule = cases.to_reference(rule, params), cases.reference_rule(rule)
  if sizes is not None:
    their_rule = dataclasses.replace(their_rule, chunk_memory=sizes[0], chunk_generators=sizes[1])
  def step(state, token):
    y, state = reference.step.__wrapped__(their_rule, there, state, *token)
    return state, y
  state, y = jax.lax.scan(step, dict(reference.fresh(there), count=jnp.int32(0)), x)
  return y, state["run"]


def differentiated(function):
  """(f(...), gradient of a fixed linear functional of all that f returns), jitted."""
  def weight(a):
    return jnp.asarray(np.cos(1 + np.arange(a.size)).reshape(a.shape), a.dtype)
  def both(rule, params, x):
    out, pull = jax.vjp(functools.partial(function, rule), params, x)
    return out, pull(jax.tree.map(weight, out))
  return jit(both)


def error(got, want):
  """Largest difference, relative to each array's scale."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(b)) + 1e-3))
  return np.max(jax.tree.leaves(jax.tree.map(relative, got, want)))  # nan if any is


def test_a_scan_over_the_step_is_the_reference(x64):
  rule, (params, x) = make("linear", (3, 2), 7)
  there = cases.to_reference(rule, params)
  y, state = reference.run(cases.reference_rule(rule), there, reference.fresh(there), *x)
  assert error(jit(token_loop)(rule, params, x), (y, state["run"])) < 1e-14


@pytest.mark.parametrize("name", [name if "linear" in name or name in ("mlp", "everything") else
                                  pytest.param(name, marks=pytest.mark.slow)
                                  for name in cases.OPTIONS])
def test_chunked_equals_token_loop(x64, name):
  rule, args = make(name, PAIRS[name])
  assert error(jit(chunked)(rule, *args), jit(token_loop)(rule, *args)) < 1e-10


def test_gradients_equal_those_of_the_token_loop(x64, name="mlp"):
  rule, args = make(name, (4, 4))
  assert error(differentiated(chunked)(rule, *args),
               differentiated(token_loop)(rule, *args)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cases.OPTIONS if name != "mlp"])
def test_gradients_of_every_option_equal_those_of_the_token_loop(x64, name):
  rule, args = make(name, PAIRS[name])
  assert error(differentiated(chunked)(rule, *args),
               differentiated(token_loop)(rule, *args)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "linear_bound", "everything"])
def test_every_chunk_size_equals_the_token_loop(x64, name):
  rule, args = make(name, (4, 4), 35)
  want = jit(token_loop)
  for sizes in [(1, 1), (2, 2), (7, 7), (16, 16), (64, 64), (16, 4), (4, 16), (8, 3), (4, 6)]:
    got = jit(chunked)(make(name, sizes)[0], *args)
    assert error(got, want(rule, *args, jnp.array(sizes))) < 1e-10, sizes


@pytest.mark.parametrize("name", ["linear_bound", "mlp"])
def test_float32_is_as_exact_as_it_can_be(x64, name):
  rule, args = make(name, (64, 64), 150)
  single = jax.tree.map(lambda a: a.astype(jnp.float32), args)
  got = jit(chunked)(rule, *single)
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(got))
  assert error(got, jit(token_loop)(rule, *args)) < 1e-5


def test_float32_gradients_are_finite_where_a_chunk_is_not_full():
  rule, args = make("linear_bound", (4, 4), 6, jnp.float32)
  assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(differentiated(chunked)(rule, *args)))


def check_through_writes(name, truncate, remat):
  rule, args = make(name, (4, 4), 14)  # four chunks
  def run(**options):
    return differentiated(functools.partial(chunked, **options))(rule, *args)
  def values_equal(got):
    return jax.tree.all(jax.tree.map(np.array_equal, got, values))
  values, whole = run()
  got, gradient = run(truncate=4)
  assert values_equal(got) and error(gradient, whole) < 1e-14
  gradients = [whole]
  for n in truncate:
    got, gradient = run(truncate=n)
    assert values_equal(got) and all(jnp.isfinite(a).all() for a in jax.tree.leaves(gradient))
    assert all(error(gradient, other) > 1e-3 for other in gradients)
    gradients.append(gradient)
  for n in remat:
    assert error(run(remat=n), (values, whole)) < 1e-13


def test_through_writes_and_remat_change_no_value_and_only_the_gradients_they_should(x64):
  check_through_writes("linear_no_rank_one", truncate=(1,), remat=(3,))


@pytest.mark.slow
def test_the_same_with_mlp_memories(x64):
  check_through_writes("mlp", truncate=(2, 1), remat=(2, 3))


def test_one_chunk_of_gradient_is_that_of_one_chunk(x64):
  rule, (params, x) = make("linear", (4, 4), 8)
  def tail(x, **options):
    return chunked(rule, params, x, **options)[0][4:].sum()
  cut = jit(lambda _, x: jax.grad(lambda x: tail(x, truncate=1))(x))(0, x)
  assert all(not a[:4].any() for a in cut) and cut[2][4:].any()


@pytest.mark.parametrize("name", ["mlp", "linear_bound_momentum"])
def test_no_state_is_a_fresh_state(x64, name):
  rule, args = make(name, (4, 4))
  assert error(jit(functools.partial(chunked, from_start=True))(rule, *args),
               jit(chunked)(rule, *args)) < 1e-14
  uneven = dataclasses.replace(rule, chunk_memory=8)
  assert error(jit(functools.partial(chunked, from_start=True))(uneven, *args),
               jit(chunked)(uneven, *args)) < 1e-14


def test_padding_writes_nothing_wherever_it_lies(x64):
  rule, (params, x) = make("linear_bound_momentum", (4, 4), 13)
  keep = np.array([0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1], bool)
  def run(rule, junk):
    filled = jax.tree.map(lambda a: jnp.where(keep, a.T, junk), x)
    state = self_modifying.fresh(rule, params)
    y, state, _ = self_modifying.run(rule, params, state, *filled, jnp.asarray(keep),
                                     jnp.arange(13))
    return y[:, keep], self_modifying.memories(rule).weights(rule, params, state)
  run = jit(run)
  assert error(run(rule, 7.0), run(rule, 0.0)) == 0
