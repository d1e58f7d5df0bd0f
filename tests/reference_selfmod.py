"""Self-modifying Titans, naive form: the definition, token by token, for one stream and head.

Every memory M_n (k, v, eta, alpha, mem, and q if adaptive) is read at `start`, its weights when its
current chunk began, and writes to itself a target that it generates itself (arXiv 2512.24695, Eq.
83-93):

    k = l2norm(M_k(xk))   v = M_v(xv)   q = l2norm(W_q xq)   y = M_mem(q)
    eta, alpha = gates of M_eta(xk), M_alpha(xk)
    W_t = W_{t-1} (alpha I - step x x^T) - rate m_t
    m_t = momentum m_{t-1} + grad_W ||M_n(k) - M_n(v)||^2

for each matrix W with input x. Gradients come from `jax.grad`: no formula here is derived by hand.
The chunk-parallel form is tested against this file, and this file against arrays of a PyTorch
implementation (test_parity_selfmod.py).

    y_Txd, state = run(Rule(), params, fresh(params), x_Txd, x_Txd, x_Txd)

Letters: T tokens, d head width, m hidden width of a memory, o its output width (d; 1 for eta and
alpha). params: per memory {"w1": (o, m), "w2": (m, d)} and perhaps "skip": (1, d) for a gate, or
{"w": (o, d)} if linear; and "w_q" (d, d), "b_eta" (), "b_alpha" (). state: see `fresh`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

MEMORIES = ("k", "v", "q", "eta", "alpha", "mem")  # q only where it is a memory
EPS = 1e-6  # a norm that divides is at least this


@dataclasses.dataclass(frozen=True)
class Rule:
  memory: str = "mlp"  # mlp: M(z) = z + w1 gelu(w2 z) (Eq. 91); linear: M(z) = w z
  objective: str = "l2"  # l2: ||M(k) - target||^2; dot: -<M(k), target> (Eq. 92)
  # what (alpha I - step x x^T) multiplies: every matrix, or those that act on k ("input")
  factor: str = "layer"
  rank_one: bool = True  # False: alpha I everywhere
  alpha: bool = True  # False: alpha = 1, and M_alpha is never written
  momentum: float = 0.0
  target_gradient: bool = False  # True: g also flows through the target
  unit_target: bool = True  # mlp memories d -> d regress on l2norm(M(v))
  adaptive_q: bool = False  # q from the memory M_q instead of the matrix w_q
  bound: float = 0.0  # > 0: rates are cut so that the norm of the weights is bounded
  eta_scale: float = 1.0
  chunk_memory: int = 64  # tokens between updates of what is read, for mem
  chunk_generators: int = 64  # and for the other memories

  def __post_init__(self):
    if self.memory == "linear" and self.target_gradient and self.momentum and self.bound:
      raise ValueError("no bound for linear memories with target_gradient and momentum; set one of "
                       "the three to 0")


class Reading(NamedTuple):
  """What one token gets from the memories."""
  k: jax.Array  # (d,) unit norm
  v: jax.Array  # (d,)
  eta: jax.Array  # ()
  alpha: jax.Array  # ()
  y: jax.Array  # (d,) the output


def l2norm(z):
  return z / jnp.sqrt(jnp.maximum(z @ z, EPS**2))  # = z / max(||z||, EPS), with a gradient at 0


def frobenius(w):
  """||w||, with gradient 0 at w = 0 (a memory with w1 = 0 sends no gradient to w2)."""
  square = jnp.sum(w * w)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def hidden(weights, z):
  return jax.nn.gelu(weights["w2"] @ z, approximate=False)


def forward(weights, z):
  """M(z). The skip is z itself, or a learned row for a gate, or nothing where widths differ."""
  if "w" in weights:
    return weights["w"] @ z
  out = weights["w1"] @ hidden(weights, z)
  if "skip" in weights:
    return weights["skip"] @ z + out
  return z + out if out.shape == z.shape else out


def fresh(params):
  """State before the first token.

  start: weights that are read, run: weights with every write so far, momentum: like the weights,
  norm: a number per matrix that bounds ||momentum||, count: tokens so far.
  """
  weights = {n: params[n] for n in MEMORIES if n in params}
  return {
      "start": weights,
      "run": weights,
      "momentum": jax.tree.map(jnp.zeros_like, weights),
      "norm": jax.tree.map(lambda w: jnp.zeros((), w.dtype), weights),
      "count": 0,
  }


def flush(state):
  """End partial chunks early: what was written is what is read. The count goes on."""
  return dict(state, start=state["run"])


def read(rule, params, weights, xk_d, xv_d, xq_d):
  """Generators and output (Eq. 83-86), all from `weights`."""
  k = l2norm(forward(weights["k"], xk_d))
  v = forward(weights["v"], xv_d)
  q = l2norm(forward(weights["q"], xq_d) if rule.adaptive_q else params["w_q"] @ xq_d)
  eta = rule.eta_scale * jax.nn.softplus(forward(weights["eta"], xk_d)[0] + params["b_eta"])
  alpha = jnp.ones_like(eta)
  if rule.alpha:
    alpha = jax.nn.sigmoid(forward(weights["alpha"], xk_d)[0] + params["b_alpha"])
  return Reading(k, v, eta, alpha, forward(weights["mem"], q))


def objective(rule, weights, target_weights, k, v):
  """The inner loss (Eq. 87, 92). Weights come twice, so that the target can be held constant."""
  prediction, target = forward(weights, k), forward(target_weights, v)
  if rule.memory == "mlp" and rule.unit_target and target.size > 1:
    target = l2norm(target)
  return jnp.sum((prediction - target)**2) if rule.objective == "l2" else -prediction @ target


def gradient(rule, weights, k, v):
  """Gradient per matrix, and its size: the sum of ||f|| ||z|| over its outer products f z^T."""
  g, g_target = jax.grad(functools.partial(objective, rule), argnums=(0, 1))(weights, weights, k, v)
  if not rule.target_gradient:
    # rank one: the Frobenius norm is the product of the two norms
    return g, jax.tree.map(frobenius, g)
  size = jax.tree.map(lambda a, b: frobenius(a) + frobenius(b), g, g_target)
  return jax.tree.map(jnp.add, g, g_target), size


def write(rule, start, run, momentum, norm, token):
  """One token's write to one memory (Eq. 90): new (run, momentum, norm)."""
  k, v, eta, alpha, _ = token
  g, size = gradient(rule, start, k, v)
  # all are start @ one transition, which starts at I: the size is the transition's
  if rule.memory == "linear":
    _, size = gradient(rule, {"w": jnp.eye(k.size, dtype=k.dtype)}, k, v)
  momentum, norm = jax.tree.map(lambda old, new: rule.momentum * old + new, (momentum, norm),
                                (g, size))

  written = {}
  for name, w in run.items():
    x = hidden(start, k) if name == "w1" else k  # the input of this matrix
    factored = rule.rank_one and (rule.factor == "layer" or name != "w1")
    step = eta / (1 + eta * x @ x) if rule.factor == "layer" else eta  # layer: a proximal step
    rate = step
    if rule.bound > 0:
      # ||alpha I - step x x^T||
      spread = jnp.maximum(alpha, step * x @ x - alpha) if factored else alpha
      room = (1 - spread) * (1 if rule.memory == "linear" else rule.bound)
      total = room + step * norm[name]
      # then spread B + rate ||m|| <= B; 0/0: nothing to write
      rate = step * room / jnp.where(total == 0, 1, total)
    kept = alpha * w - step * jnp.outer(w @ x, x) if factored else alpha * w
    written[name] = kept - rate * momentum[name]
  return written, momentum, norm


@functools.partial(jax.jit, static_argnums=0)
def step(rule, params, state, xk_d, xv_d, xq_d):
  """One token: read, write every memory; where a memory's chunk ends, read its new weights next."""
  token = read(rule, params, state["start"], xk_d, xv_d, xq_d)
  count = state["count"] + 1
  new = {**{part: dict(value) for part, value in state.items() if part != "count"}, "count": count}
  for n, start in state["start"].items():
    if n == "alpha" and not rule.alpha:
      continue
    run, momentum, norm = write(rule, start, state["run"][n], state["momentum"][n],
                                state["norm"][n], token)
    ends = count % (rule.chunk_memory if n == "mem" else rule.chunk_generators) == 0
    new["start"][n] = jax.tree.map(functools.partial(jnp.where, ends), run, start)
    new["run"][n], new["momentum"][n], new["norm"][n] = run, momentum, norm
  return token.y, new


def run(rule, params, state, xk_Txd, xv_Txd, xq_Txd):
  """The definition: tokens in order. -> (y_Txd, state); a later call continues from there."""
  y_Txd = []
  for xk_d, xv_d, xq_d in zip(xk_Txd, xv_Txd, xq_Txd, strict=True):
    y_d, state = step(rule, params, state, xk_d, xv_d, xq_d)
    y_Txd.append(y_d)
  return jnp.stack(y_Txd), state
