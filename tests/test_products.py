"""Products with gradients of their own, against those that jax derives.

    python -m pytest tests/test_products.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import products


def derivatives(f, args, toward):
  """Output, gradients, and the gradients of a function of the gradients."""
  def pulled(*args):
    return jax.vjp(f, *args)[1](toward)
  second = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(g)) for g in pulled(*args)), (0, 1))
  return f(*args), pulled(*args), second(*args)


@pytest.mark.parametrize("name, first, second, spelled", [
    ("dense", (2, 3, 4), (4, 5), "bti,io->bto"), ("dense", (1, 1, 4), (4, 1), "bti,io->bto"),
    ("dense", (2, 3, 4), (4, 3, 2, 5), "btd,dnhk->btnhk"), ("dense", (7, 4), (4, 5), "ti,io->to"),
    ("scores", (2, 3, 4), (5, 4), "btd,vd->btv"), ("scores", (1, 1, 4), (1, 4), "btd,vd->btv")])
def test_a_product_and_its_gradients(x64, name, first, second, spelled):
  rng = np.random.default_rng(0)
  args = rng.standard_normal(first), rng.standard_normal(second)
  toward = rng.standard_normal(np.einsum(spelled, *args).shape)
  got, want = jax.jit(lambda: tuple(derivatives(f, args, toward) for f in (
      getattr(products, name), lambda *own: jnp.einsum(spelled, *own))))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)


def test_types_are_those_of_jax():
  """Scores are wide; gradients have the types of what they are gradients of."""
  x, table = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((5, 4), jnp.bfloat16)
  for f, args, wide in ((products.scores, (x, table), jnp.float32),
                        (products.dense, (x, table.T), jnp.bfloat16)):
    out, pull = jax.vjp(f, *args)
    assert out.dtype == wide
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16] * 2
