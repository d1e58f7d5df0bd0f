"""The chunked scan of linear memories against a loop over tokens: outputs, state, gradients.

    python -m pytest tests/test_recurrence.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import recurrence

KEYS, VALUES, TOKENS = 4, 3, 11


def case(steps: bool, seed=0):
  """(w, q, k, v, log alpha, step); the sixth token begins a document, the third is padding."""
  rng = np.random.default_rng(seed)
  k = rng.standard_normal((KEYS, TOKENS))
  k /= np.linalg.norm(k, axis=0)
  alpha, beta = 0.5 + 0.5 * rng.random(TOKENS), 2 * rng.random(TOKENS)
  real = np.arange(TOKENS) != 2
  log_alpha = np.where(real, np.log(alpha), 0.0)
  log_alpha[5] = recurrence.CLEARED
  step = np.where(real, np.exp(log_alpha) * beta, 0.0) if steps else None
  v = np.where(real, beta * rng.standard_normal((VALUES, TOKENS)), 0.0)
  return (rng.standard_normal((VALUES, KEYS)), rng.standard_normal((KEYS, TOKENS)), k, v, log_alpha,
          step)


def loop(w, q, k, v, log_alpha, step=None):
  """The definition, token by token."""
  out = []
  for t in range(q.shape[1]):
    seen = 0.0 if step is None else step[t] * (w @ k[:, t])
    w = jnp.exp(log_alpha[t]) * w + jnp.outer(v[:, t] - seen, k[:, t])
    out.append(w @ q[:, t])
  return w, jnp.stack(out, 1)


def everything(run, args):
  """(outputs, gradients of a loss that hears of all of them)."""
  weight = np.random.default_rng(9).standard_normal((VALUES, TOKENS))
  def loss(args):
    w, y = run(*args)
    return jnp.sum(weight * y) + jnp.sum(jnp.sin(w)), (w, y)
  (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(args)
  return out, gradients


def compare(args, size, **tolerance):
  chunked = functools.partial(recurrence.run, size=size)
  got, want = jax.jit(lambda args: (everything(chunked, args), everything(loop, args)))(args)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


@pytest.mark.parametrize("steps", [True, False])
def test_chunked_is_the_loop_in_outputs_state_and_gradients(x64, steps):
  for size in (1, 4, 16):
    compare(jax.tree.map(jnp.asarray, case(steps)), size, atol=1e-10)


def test_and_in_float32():
  compare(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), case(True)), 4, atol=2e-5)


def test_a_call_of_one_token_after_the_other_is_the_loop(x64):
  w, *tokens = map(jnp.asarray, case(True))
  one, out = jax.jit(functools.partial(recurrence.run, size=1)), []
  want = loop(w, *tokens)
  for t in range(TOKENS):
    w, y = one(w, *(a[..., t:t + 1] for a in tokens))
    out.append(y)
  np.testing.assert_allclose(w, want[0], atol=1e-12)
  np.testing.assert_allclose(jnp.concatenate(out, 1), want[1], atol=1e-12)


def test_a_document_forgets_what_was_before(x64):
  w, *tokens = map(jnp.asarray, case(True))
  run = jax.jit(functools.partial(recurrence.run, size=4))
  whole, alone = run(w, *tokens)[1], run(jnp.zeros_like(w), *(a[..., 5:] for a in tokens))[1]
  np.testing.assert_allclose(whole[:, 5:], alone, atol=1e-11)
