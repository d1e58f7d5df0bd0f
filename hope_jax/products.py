"""Matrix products whose gradients leave their operands as they lie in memory.

Autodiff puts the cotangent first in every product; where the contraction runs over its first axis, XLA then transposes it,
and on a CPU recomputes all that leads to it in the other order. These say which operand is turned instead: the weights.
"""

import jax


def _turned(w_OxI, y_OxC):
  return jax.lax.dot_general(w_OxI, y_OxC, (((0,), (0,)), ((), ())))


@jax.custom_vjp
def apply(w_OxI: jax.Array, x_IxC: jax.Array) -> jax.Array:
  """W x."""
  return w_OxI @ x_IxC


@jax.custom_vjp
def apply_transposed(w_OxI: jax.Array, y_OxC: jax.Array) -> jax.Array:
  """W^T y."""
  return _turned(w_OxI, y_OxC)


@jax.custom_vjp
def gram(x_IxC: jax.Array) -> jax.Array:
  """x^T x."""
  return _turned(x_IxC, x_IxC)


apply.defvjp(lambda w, x: (apply(w, x), (w, x)), lambda saved, grad: (grad @ saved[1].T, apply_transposed(saved[0], grad)))
apply_transposed.defvjp(lambda w, y: (apply_transposed(w, y), (w, y)),
                        lambda saved, grad: (saved[1] @ grad.T, apply(saved[0], grad)))
gram.defvjp(lambda x: (gram(x), x), lambda x, grad: (x @ (grad + grad.T),))
