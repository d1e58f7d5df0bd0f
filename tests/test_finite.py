"""Every guarded division, root, norm and logarithm: finite values and finite first and second
derivatives, at zero, at saturated gates and at inputs of 1e6, for cotangents far from 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.memory import delta_rule, level, products, teach_signal, write_rule
from hope_jax.model import attention, lm
from hope_jax.reading import sequences
from hope_jax.training import spikes

TOKENS, WIDTH = 6, 4
SCALES = (0.0, 1e-20, 1e-15, 1e-6, 1.0, 1e6)
GATES = (-1e8, -1e3, -20.0, 0.0, 20.0, 1e3, 1e8)
X = (WIDTH, TOKENS)


def gates(kind, logit_C):
  """(step, alpha, 1 - alpha, log alpha) of gates at this logit."""
  alpha = jax.nn.sigmoid(logit_C)
  return jax.nn.softplus(kind * logit_C), alpha, jax.nn.sigmoid(-logit_C), jax.nn.log_sigmoid(
      logit_C)


def rate(x, f, logit):
  eta, alpha, forget, _ = gates(1, logit)
  step = write_rule.step_size(write_rule.Rule(), eta, x)
  size = write_rule.length(f) * write_rule.length(x)
  return write_rule.rate_size(step, size, x, alpha, forget, 8.0)


def rate_of_padding(x, f, logit):
  """eta 0 and alpha 1, as at a token that writes nothing."""
  zero = 0 * logit
  size = write_rule.length(f) * write_rule.length(x)
  return write_rule.rate_size(zero, size, x, 1 + zero, zero, 8.0)


def written(x, f, logit):
  eta, _, _, log_alpha = gates(1, logit)
  decay, step = delta_rule.decay(log_alpha), write_rule.step_size(write_rule.Rule(), eta, x)
  lower = delta_rule.couple(x, step, decay)
  w = jnp.eye(WIDTH)
  return delta_rule.write(w, x, w @ x, rate(x, f, logit) * f, step, decay, lower,
                          delta_rule.unit_lower_inverse(lower))


def one_level(x, f, logit):
  del logit
  params = level.init(jax.random.key(0), WIDTH, 8, 1)
  return level.apply(params, x.T[None])[0] + level.apply(params, f.T[None])[0]


def attended(x, f, logit):
  """The second query sees no key."""
  q, k = (a.T[None, None] for a in (x, f))
  mask = jnp.ones((1, TOKENS, 2 * TOKENS), bool).at[:, 1].set(False)
  return attention.attend_after(q, k, k, k, k + jnp.mean(logit) * 1e-8, mask)


def judged(x, f, logit):
  del logit
  return spikes.judge(spikes.fresh(), jnp.sum(x), jnp.sqrt(jnp.sum(f * f) + 1), 5.0)[1].norm


FUNCTIONS = {
    "length": lambda x, f, logit: write_rule.length(x),
    "unit": lambda x, f, logit: write_rule.unit(x),
    "rate": rate, "rate of padding": rate_of_padding, "write": written,
    "signal norm": lambda x, f, logit: teach_signal.norm(x.T),
    "clip": lambda x, f, logit: teach_signal.scaled(
        x.T, teach_signal.factor(x.T, jnp.mean(jnp.tanh(logit)), 0.5)),
    "entropy": lambda x, f, logit: teach_signal.surprise(
        "logit_entropy", jnp.zeros((1, 1, TOKENS)), jnp.zeros((1, TOKENS)), x.T[None],
        jnp.zeros((1, TOKENS), bool)),
    "gelu": lambda x, f, logit: products.gelu(x) + products.gelu_and_slope(f)[1],
    "level": one_level, "attention": attended, "judge": judged,
}


@functools.cache
def derivatives(name):
  """(x, f, logit, size of the cotangent) -> value, first and second derivatives."""
  def loss(own, size):
    return jnp.sum(size * FUNCTIONS[name](*own))

  def second(own, size):
    return sum(jnp.sum(jnp.sin(d / (1 + jnp.abs(size))))
               for d in jax.tree.leaves(jax.grad(loss)(own, size)))

  return jax.jit(lambda own, size: (loss(own, 1.0), jax.grad(loss)(own, size),
                                    jax.grad(second)(own, size)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_finite(name):
  rng = np.random.default_rng(0)
  x, f = (rng.standard_normal(X).astype(np.float32) for _ in range(2))
  for scale in SCALES:
    for gate in GATES:
      for size in (1.0, 1e3, 1e6):
        own = scale * x, scale * f, np.full(TOKENS, gate, np.float32)
        for order, tree in enumerate(derivatives(name)(own, size)):
          assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree))), (
              scale, gate, size, order)


@pytest.mark.parametrize("tokens", [64, 1024])
@pytest.mark.parametrize("log_alpha", [-1e-3, -1.0, -1e3, -1e8])
def test_decay_is_at_most_one(log_alpha, tokens):
  """And that of neighbouring tokens, between which nothing fades, is one."""
  rng, error = np.random.default_rng(0), 1e-6 * tokens
  log_C = rng.choice([log_alpha, -0.1], tokens) * rng.uniform(0.5, 1, tokens)
  decay = jax.device_get(delta_rule.decay(jnp.asarray(log_C, jnp.float32)))
  for part in decay:
    assert np.isfinite(part).all() and part.max() <= 1 + error
  np.testing.assert_allclose(np.diagonal(decay.between_CxC, -1), 1, rtol=error)
  np.testing.assert_allclose(decay.after_C, np.exp(np.cumsum(log_C[::-1])[::-1] - log_C),
                             rtol=2 * error, atol=1e-12)


def test_a_model_whose_memories_are_not_written_has_a_finite_gradient():
  """The control of no memory: cotangents of what was not written are large."""
  c = config.base()
  c.model.update(dict(dim=16, layers=2, heads=1, vocab=8))
  c.selfmod.memory, c.teach.paths = "linear", ("none",)
  c.data.update(dict(seq=128, batch=1))
  params = lm.init_params(c, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 128), 0, 8)
  batch = {"tokens": tokens, "labels": jnp.roll(tokens, -1), "segments": jnp.ones_like(tokens)}
  learn = jax.jit(lambda p: sequences.learn(c, p, batch, None, 0))
  for size in (1, 30):
    loss, _, gradient = learn(jax.tree.map(lambda p: size * p, params))
    assert jnp.isfinite(loss) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
