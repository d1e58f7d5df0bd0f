"""Self-modifying Titans, chunk-parallel, against the token loop of reference_selfmod.py."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_selfmod as reference
import selfmod_cases as cases
from hope_jax import selfmod
from hope_jax.rule import Rule

TOKENS = 21


def run(rule, params, state, x, start=0, **options):
  tokens = x[0].shape[0]
  return selfmod.run(rule, params, state, *x, jnp.ones(tokens, bool), start + jnp.arange(tokens), **options)


def case(name, chunk=4, chunk_memory=None):
  options = cases.OPTIONS[name]
  rule = Rule(chunk_generators=chunk, chunk_memory=chunk_memory or chunk, **options)
  params = cases.parameters(rule, jax.random.key(1), gate_skip=name in ("gate_skip", "everything"))
  return rule, params


def outcome(rule, params, x):
  """Output and every memory's final weights, in the reference's layout."""
  y, state, _ = run(rule, params, selfmod.fresh(rule, params), x)
  return y, cases.named(rule, selfmod.memories(rule).weights(rule, params, state))


def reference_outcome(rule, params, x):
  there = cases.to_reference(rule, params)
  y, state = reference.run(cases.reference_rule(rule), there, reference.fresh(there), *x)
  return y, state["run"]


def drop_alpha(rule, weights):
  """Without retention M_alpha is never read, and the two forms may differ in it."""
  return weights if rule.alpha else {k: v for k, v in weights.items() if k != "alpha"}


def assert_same(rule, got, want, **tolerance):
  chex.assert_trees_all_close(got[0], want[0], **tolerance)
  chex.assert_trees_all_close(drop_alpha(rule, got[1]), drop_alpha(rule, want[1]), **tolerance)


@pytest.mark.parametrize("name", cases.OPTIONS)
def test_chunked_equals_token_loop(x64, name):
  rule, params = case(name)
  params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
  x = tuple(a.astype(jnp.float64) for a in cases.inputs(jax.random.key(2), TOKENS))
  assert_same(rule, jax.jit(outcome, static_argnums=0)(rule, params, x), reference_outcome(rule, params, x),
              atol=1e-10, rtol=1e-10)
