"""Products whose gradients leave operands as they lie in memory; a gelu, its gradient one product.

Autodiff puts the cotangent first in every product; where the contraction runs over its first axis,
XLA then transposes it, and on a CPU recomputes all that leads to it in the other order. These say
which operand is turned instead: the weights, or what was read. What they keep is a plain product,
which a policy of recomputation (`model.remat=dots`) can see.
"""

import jax
import jax.numpy as jnp


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


apply.defvjp(lambda w, x: (w @ x, (w, x)),
             lambda saved, grad: (grad @ saved[1].T, apply_transposed(saved[0], grad)))
apply_transposed.defvjp(lambda w, y: (_turned(w, y), (w, y)),
                        lambda saved, grad: (saved[1] @ grad.T, apply(saved[0], grad)))
gram.defvjp(lambda x: (_turned(x, x), x), lambda x, grad: (x @ (grad + grad.T),))


def _contract(a, b, axes_a, axes_b, dtype=None):
  return jax.lax.dot_general(a, b, ((tuple(axes_a), tuple(axes_b)), ((), ())),
                             preferred_element_type=dtype)


def _dense(x, kernel):
  return _contract(x, kernel, (x.ndim - 1,), (0,))


@jax.custom_vjp
def dense(x_xI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
  """x W for any number of leading axes, and of output axes."""
  return _dense(x_xI, kernel_IxO)


def _dense_backward(saved, grad_xO):
  x, kernel = saved
  leading, outputs = range(x.ndim - 1), range(1, kernel.ndim)
  return (_contract(grad_xO, kernel, range(x.ndim - 1, grad_xO.ndim), outputs),
          _contract(x, grad_xO, leading, leading))


dense.defvjp(lambda *args: (_dense(*args), args), _dense_backward)


def _scores(x, table):
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return _contract(x, table, (2,), (1,), wide)


@jax.custom_vjp
def scores(x_BxTxD: jax.Array, table_VxD: jax.Array) -> jax.Array:
  """x W^T in float32 or better: of each token with each row of a table."""
  return _scores(x_BxTxD, table_VxD)


def _scores_backward(saved, grad_BxTxV):
  x, table = saved
  return (_contract(grad_BxTxV, table, (2,), (0,), x.dtype),
          _contract(x, grad_BxTxV, (0, 1), (0, 1), table.dtype).T)


scores.defvjp(lambda *args: (_scores(*args), args), _scores_backward)


def _stream(x, kernel, weights):
  del kernel
  return x @ weights.astype(x.dtype)


@jax.custom_vjp
def stream_product(x_BxCxI: jax.Array, kernel_IxO: jax.Array,
                   weights_BxIxO: jax.Array) -> jax.Array:
  """x weights. Their gradient, summed over streams, also goes to the kernel they come from."""
  return _stream(x_BxCxI, kernel_IxO, weights_BxIxO)


def _stream_backward(saved, grad_BxCxO):
  x, kernel, weights = saved
  return (jnp.einsum("bco,bio->bci", grad_BxCxO, weights.astype(grad_BxCxO.dtype)),
          jnp.einsum("bci,bco->io", x, grad_BxCxO).astype(kernel.dtype),
          jnp.einsum("bci,bco->bio", x, grad_BxCxO).astype(weights.dtype))


stream_product.defvjp(lambda *args: (_stream(*args), args), _stream_backward)


def _bell(a):
  """Phi(a) and phi(a) of the normal distribution."""
  return 0.5 * (1 + jax.lax.erf(a * 0.5 ** 0.5)), jnp.exp(-0.5 * a * a) * (2 * jnp.pi) ** -0.5


@jax.custom_vjp
def gelu(a: jax.Array) -> jax.Array:
  """a Phi(a), exact; the slope is kept for the backward pass instead of an erf."""
  return a * _bell(a)[0]


def _gelu_forward(a):
  below, density = _bell(a)
  return a * below, below + a * density


gelu.defvjp(_gelu_forward, lambda slope, grad: (grad * slope,))


@jax.custom_vjp
def gelu_and_slope(a: jax.Array) -> tuple[jax.Array, jax.Array]:
  """gelu(a) and gelu'(a), from one erf and one exp, the gradient included."""
  return _gelu_forward(a)


def _slope_forward(a):
  below, density = _bell(a)
  slope = below + a * density
  return (a * below, slope), (slope, density * (2 - a * a))


gelu_and_slope.defvjp(_slope_forward, lambda saved, grads: (grads[0] * saved[0] + grads[1]
                                                            * saved[1],))
