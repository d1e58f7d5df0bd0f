"""Inner optimizers, as optax transforms: how a CMS level steps itself within a stream (NL s. 4).

A level's parameters are those of one stream: kernels (I, O), y = x @ kernel, and vectors; the
caller vmaps over streams and layers. m <- beta m + (1 - beta) u, and the update, which is added to
the parameters, is -lr m:

    sgd              m = g, no state
    momentum         u = g
    preconditioned   u = g / (sqrt(v) + eps),  v <- beta2 v + (1 - beta2) g^2
    adagrad          m = g / (sqrt(v) + eps),  v <- v + g^2
    dmgd             u = tanh(g)
    nl_l2_precond    m = (g + X^T X W) / (1 + lr ||X||^2), no state: DGD (NL Eq. 56-57)
    nl_l2_projector  u = g - c c^T g,  c the mean input by its norm
    delta_momentum   m <- beta (I - s g g^T) m + (1 - beta) g,  s = 1 / (1 + ||g||^2)   (NL Eq. 49)
    muon             u = g, then the orthogonal factor of m by Newton-Schulz

A rule that needs inputs or a matrix takes u = g where there are none. Every state is zeros at the
start; derivatives, the second too, are finite at zero. The moving average, where there is one, is
`optax.tree.get(state, "trace")`. Letters: N tokens of a period, I and O a kernel's input and output
widths, G groups of tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax
from optax.contrib import scale_by_muon

# of sqrt(v), 1 % of the default eps: second derivatives of the update in v are still float32
ROOT_FLOOR = 1e-10
NORM_FLOOR = 1e-6  # of the summed inputs
DEAD = 1e-15  # a momentum below this norm is 0: Newton-Schulz would make less than 1e-4 of it


@struct.dataclass
class Inputs:
  """What a rule may need to know of a kernel W_IxO's inputs X_NxI in a period: sums over tokens."""
  total_I: jax.Array  # sum of x
  square: jax.Array  # sum of ||x||^2
  recall_IxO: jax.Array  # X^T X W, with W the kernel at the start of the period


def summarise(x_NxI: jax.Array, kernel_IxO: jax.Array, weight_N: jax.Array | None = None) -> Inputs:
  """Of N tokens, in the kernel's precision, by two products; `weight` 0 leaves a token out."""
  x_NxI = x_NxI.astype(kernel_IxO.dtype)
  if weight_N is not None:
    x_NxI = jnp.where(weight_N[:, None] > 0, x_NxI, 0)
  return Inputs(jnp.sum(x_NxI, 0), jnp.sum(x_NxI * x_NxI), x_NxI.T @ (x_NxI @ kernel_IxO))


def make(name: str, lr, *options, **named) -> optax.GradientTransformationExtraArgs:
  """The rule `name` with `Options`; its updates are added to the parameters.

  update(gradients, state, params=None, inputs=None): `inputs` has the structure of the gradients,
  its leaves Inputs for kernels and None for vectors; or it is None altogether. lr may be traced.
  ValueError for an unknown name.
  """
  if name not in RULES:
    raise ValueError(f"no inner optimizer {name!r}; choose one of {', '.join(RULES)}")
  return optax.chain(*RULES[name].transforms(Options(lr, *options, **named)), optax.scale(-lr))


def ema_weights(beta, happens_G: jax.Array):
  """Successive updates of a moving average of the gradients g_j, those that happen (bool), as sums.

  -> (weight_G, keep_G, carry, decay): the updates add up to -lr (carry m_0 + sum_j weight_j g_j),
  and the average ends as decay m_0 + sum_j keep_j g_j. beta = 0 is sgd.
  """
  happens_G = happens_G.astype(jnp.int32)
  left_G = jnp.cumsum(happens_G[::-1])[::-1] * happens_G  # updates that g_j takes part in
  power_G = jnp.power(beta, left_G)
  keep_G = jnp.where(left_G > 0, (1 - beta) * jnp.power(beta, jnp.maximum(left_G - 1, 0)), 0)
  return (1 - power_G, keep_G, jnp.sum(jnp.where(left_G > 0, power_G, 0)),
          jnp.power(beta, jnp.sum(happens_G)))


def _stateless(function):
  """u = function(g, inputs of that leaf or None)."""
  def update(gradients, state, params=None, *, inputs: Any = None, **_):
    if inputs is None:
      inputs = jax.tree.map(lambda _: None, gradients)
    return jax.tree.map(function, gradients, inputs), state
  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _precondition(beta2, eps):
  """g / (sqrt(v) + eps), v the moving average of g^2, not debiased:
  optax.scale_by_rms with finite derivatives at 0.
  """
  def update(gradients, state, params=None):
    v = optax.tree.update_moment(gradients, state.nu, beta2, 2)
    scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(jnp.maximum(v, ROOT_FLOOR ** 2)) + eps),
                          gradients, v)
    return scaled, optax.ScaleByRmsState(v)
  return optax.GradientTransformation(optax.scale_by_rms(initial_scale=0.0).init, update)


def _divide_by_all(eps):
  """g / (sqrt(v) + eps), v the sum of all g^2; finite derivatives at 0."""
  def update(gradients, state, params=None):
    v = jax.tree.map(lambda v, g: v + g * g, state.nu, gradients)
    return jax.tree.map(lambda g, v: g / (jnp.sqrt(jnp.maximum(v, ROOT_FLOOR ** 2)) + eps),
                        gradients, v), optax.ScaleByRmsState(v)
  return optax.GradientTransformation(optax.scale_by_rms(initial_scale=0.0).init, update)


def _delta_gradient(lr):
  """DGD (NL Eq. 56-57) summed over the period: W <- W - lr' (X^T X W + g).

  lr' = lr / (1 + lr ||X||_F^2), so lr' ||X||_F^2 < 1 for every lr, and without a gradient W never
  grows: the spectral norm of I - lr' X^T X is at most 1.
  """
  return _stateless(lambda g, seen: g if seen is None
                    else (g + seen.recall_IxO) / (1 + lr * seen.square))


def _project(g, seen):
  """g - c c^T g, c the sum of inputs by its norm: the gradient without their common direction."""
  if seen is None:
    return g
  total = seen.total_I
  return g - jnp.outer(total, total @ g) / jnp.maximum(total @ total, NORM_FLOOR ** 2)


def _delta_momentum(beta):
  """The momentum as a memory written by the delta rule (NL Eq. 49).

      m <- m (alpha I - G^T G) - eta G,    W <- W + m

  The paper's matrices are (O, I), so G^T G acts on the input axis; here it is g g^T on the left.
  Eq. 49 is a gradient step on ||m G^T - P||^2, without bound for large G. As in DGD the step is
  proximal, s = 1 / (1 + ||g||_F^2), and it is taken before the average: alpha = beta, a factor
  beta (I - s g g^T) with eigenvalues in (0, beta]. So ||m||_2 <= beta ||m||_2 + (1 - beta) ||g||_2:
  m never exceeds the largest gradient. beta = 0 is sgd. A vector is a kernel of one output (a
  single row in the paper's layout).
  """
  def write(m, g):
    m_IxO, g_IxO = m.reshape(m.shape[0], -1), g.reshape(g.shape[0], -1)
    known_IxO = jnp.linalg.multi_dot([g_IxO, g_IxO.T, m_IxO]) / (1 + jnp.sum(g * g))
    return beta * (m - known_IxO.reshape(m.shape)) + (1 - beta) * g

  def update(gradients, state, params=None):
    trace = jax.tree.map(write, state.trace, gradients)
    return trace, optax.TraceState(trace)
  return optax.GradientTransformation(optax.trace(beta).init, update)


def _orthogonalise(m, _):
  """optax's Newton-Schulz on a matrix (singular values near 1), unscaled, 0 at 0; vectors stay."""
  if m.ndim != 2:
    return m
  alive = jnp.sum(m * m) > DEAD ** 2
  newton_schulz = scale_by_muon(beta=0.0, nesterov=False)  # without an average of its own
  safe = jnp.where(alive, m, 1)  # the norm has no derivative at 0
  return jnp.where(alive, newton_schulz.update(safe, newton_schulz.init(safe))[0], 0)


class Options(NamedTuple):
  """What a rule is made of."""
  lr: Any
  beta: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8


class Rule(NamedTuple):
  """An inner optimizer; a new one is an entry of RULES."""
  transforms: Callable  # Options -> optax transforms, before the learning rate
  linear: bool = False  # in the gradients of the tokens: several updates then have a closed form
  needs_inputs: bool = False  # `Inputs` beside the gradients


def _average(o):
  return optax.scale(1 - o.beta), optax.trace(o.beta)


RULES = {
    "sgd": Rule(lambda o: (), linear=True),
    "momentum": Rule(_average, linear=True),
    "preconditioned": Rule(lambda o: (_precondition(o.beta2, o.eps), *_average(o))),
    "adagrad": Rule(lambda o: (_divide_by_all(o.eps),)),
    "dmgd": Rule(lambda o: (_stateless(lambda g, _: jnp.tanh(g)), *_average(o))),
    "nl_l2_precond": Rule(lambda o: (_delta_gradient(o.lr),), needs_inputs=True),
    "nl_l2_projector": Rule(lambda o: (_stateless(_project), *_average(o)), linear=True,
                            needs_inputs=True),
    "delta_momentum": Rule(lambda o: (_delta_momentum(o.beta),)),
    "muon": Rule(lambda o: (*_average(o), _stateless(_orthogonalise))),
}
