"""M3 (NL Algorithm 1): Muon of two momenta, one of them slow; all else by AdamW (optim.lr, section
adamw).

    M1 <- M1 + beta1 g,   V <- V + beta2 g^2,   every `slow` steps: M2 <- M2 + beta3 sum of their g
    W  <- W - lr ((O1 + alpha O2) / (sqrt(V) + eps) + decay W),     O = NewtonSchulz(M)

Sums, as the algorithm has them: nothing is forgotten, and steps shrink as V grows. A slow momentum
is first used in the step after those that it sums. The iteration is the cubic one, of each matrix
by its Frobenius norm.
"""

FIELDS = {
    "lr": 1e-4,  # of matrices
    "beta1": 0.9,  # weight of a gradient in the fast momentum
    "beta2": 0.999,  # of its square
    "beta3": 0.9,  # of a sum of gradients in the slow momentum
    "alpha": 1.0,  # weight of the slow momentum
    "slow": 4,  # steps between its updates
    "iterations": 5,  # of Newton-Schulz
    "eps": 1e-8,
}
WHOLE = True  # as Muon's


def newton_schulz(x, iterations: int, eps: float):
  """Of each matrix, the last two axes: every singular value towards 1."""
  import jax.numpy as jnp
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
  wide = x.shape[-2] < x.shape[-1]
  for _ in range(iterations):
    turned = jnp.swapaxes(x, -2, -1)
    x = 1.5 * x - 0.5 * (x @ turned @ x if wide else x @ (turned @ x))
  return x


def scale(beta1, beta2, beta3, alpha, slow, iterations, eps):
  """(O1 + alpha O2) / (sqrt(V) + eps) as an optax transform; its state is {name: like the
  parameters}, and "count".
  """
  import jax
  import jax.numpy as jnp
  import optax
  names = ("fast", "slow", "direction", "waiting", "squares")  # M1, M2, O2, sum since, V

  def init(params):
    return {"count": jnp.zeros((), jnp.int32)} | {
        name: jax.tree.map(jnp.zeros_like, params) for name in names}

  def orthogonal(tree):
    return jax.tree.map(lambda m: newton_schulz(m, iterations, eps), tree)

  def update(gradients, state, params=None):
    del params
    def add(tree, weight, more):
      return jax.tree.map(lambda a, b: a + weight * b, tree, more)
    fast = add(state["fast"], beta1, gradients)
    squares = add(state["squares"], beta2, jax.tree.map(jnp.square, gradients))
    updates = jax.tree.map(lambda o1, o2, v: (o1 + alpha * o2) / (jnp.sqrt(v) + eps),
                           orthogonal(fast), state["direction"], squares)
    waiting, count = add(state["waiting"], 1, gradients), state["count"] + 1

    def turn():
      momentum = add(state["slow"], beta3, waiting)
      return momentum, orthogonal(momentum), jax.tree.map(jnp.zeros_like, waiting)

    momentum, direction, waiting = jax.lax.cond(
        count % slow == 0, turn, lambda: (state["slow"], state["direction"], waiting))
    return updates, {"count": count, "fast": fast, "slow": momentum, "direction": direction,
                     "waiting": waiting, "squares": squares}

  return optax.GradientTransformation(init, update)


def make(config, rate, matrices):
  """Matrices by M3, decayed; the rest by AdamW, not decayed."""
  import jax
  import optax
  own, adamw = config.m3, config.adamw
  ours = optax.chain(
      scale(own.beta1, own.beta2, own.beta3, own.alpha, own.slow, own.iterations, own.eps),
      optax.add_decayed_weights(config.optim.weight_decay),
      optax.scale_by_learning_rate(rate(own.lr)))
  rest = optax.adamw(rate(config.optim.lr), adamw.b1, adamw.b2, weight_decay=0.0)
  return optax.partition(
      {"matrix": ours, "rest": rest},
      lambda params: jax.tree.map(lambda own: "matrix" if own else "rest", matrices(params)))
