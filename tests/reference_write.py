"""A level written while a stream is read: a loop over tokens, a step at every p-th (NL Eq. 70-71).

    weights, averages, updates = run(
        "momentum", period, chunk, lr, beta, params, x_TxD, teach_TxD, open_T)

A token's gradient is that of teach . level(x) at the weights that its chunk began with. The weights
take a step with the sum over the open tokens since the last one; if there was none, no step. NumPy
in float64, but for the gradient of one token, which is jax.grad of the formula below. Then the
levels and the texts that the tests read.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.memory.level import init

WIDTH, HIDDEN, CHUNK, STREAMS, CHUNKS = 6, 5, 8, 3, 4
EPSILON = {"rms": 1e-6, "layer": 1e-5}


def inputs(params, x_D):
  """What each kernel is applied to, for one token."""
  norm = params["norm"]
  if "bias" in norm:  # layer norm
    x_D = x_D - jnp.mean(x_D)
  epsilon = EPSILON["layer" if "bias" in norm else "rms"]
  h_D = x_D / jnp.sqrt(jnp.mean(x_D ** 2) + epsilon) * norm["scale"] + norm.get("bias", 0)
  def dense(part):
    return h_D @ params[part]["kernel"] + params[part].get("bias", 0)
  if "gate" in params:
    gate = dense("gate")
    return {"gate": h_D, "up": h_D, "down": gate * jax.nn.sigmoid(gate) * dense("up")}
  up = dense("up")
  return {"up": h_D, "down": up / 2 * (1 + jax.lax.erf(up / np.sqrt(2)))}


def level(params, x_D):
  """What the level adds to one token."""
  return inputs(params, x_D)["down"] @ params["down"]["kernel"] + params["down"].get("bias", 0)


@jax.jit
def look(params, x_D, teach_D):
  """(gradient, inputs) of one token."""
  return jax.grad(lambda p: teach_D @ level(p, x_D))(params), inputs(params, x_D)


def run(rule, period, chunk, lr, beta, params, x_TxD, teach_TxD, open_T, flush=False, written=None):
  """(weights, averages of g and g^2, updates). flush: use the last, unfinished period.

  written: which parts are; None: all.
  """
  weights, m, v = (jax.tree.map(lambda p: np.array(factor * p), params) for factor in (1, 0, 0))
  held, updates = [], 0
  for t, (x_D, teach_D, is_open) in enumerate(zip(x_TxD, teach_TxD, open_T)):
    if t % chunk == 0:
      read = jax.tree.map(np.array, weights)
    if is_open:
      held.append(jax.device_get(look(read, x_D, teach_D)))
    if ((t + 1) % period == 0 or flush and t + 1 == len(x_TxD)) and held:
      for part, name in ((part, name) for part in written or params for name in params[part]):
        g = np.sum([gradient[part][name] for gradient, _ in held], 0)
        x_NxI = np.stack([seen[part] for _, seen in held]) if name == "kernel" else None
        change = step(rule, lr, beta, g, x_NxI, weights[part][name], m[part][name], v[part][name])
        weights[part][name] += change
      held, updates = [], updates + 1
  return weights, (m, v), updates


def step(rule, lr, beta, g, x_NxI, w, m, v):
  """What the inner rule adds to a parameter (inner_rules.py); x None: a vector. Changes m and v."""
  if rule == "sgd":
    return -lr * g
  if rule == "nl_l2_precond":
    if x_NxI is None:
      return -lr * g
    return -lr / (1 + lr * np.sum(x_NxI ** 2)) * (g + sum(np.outer(x, x) @ w for x in x_NxI))
  if rule == "adagrad":
    v += g ** 2
    return -lr * g / (np.sqrt(v) + 1e-8)
  u = g
  if rule == "dmgd":
    u = np.tanh(g)
  elif rule == "preconditioned":
    v[:] = 0.999 * v + 0.001 * g ** 2
    u = g / (np.sqrt(v) + 1e-8)
  elif rule == "nl_l2_projector" and x_NxI is not None:
    mean = x_NxI.mean(0) / np.linalg.norm(x_NxI.mean(0))
    u = g - np.outer(mean, mean @ g)
  elif rule == "delta_momentum":
    column = g.reshape(len(g), -1)
    m -= (column @ (column.T @ m.reshape(column.shape))).reshape(m.shape) / (1 + np.sum(g ** 2))
  m[:] = beta * m + (1 - beta) * u
  if rule != "muon" or w.ndim != 2:
    return -lr * m
  left, s, right = np.linalg.svd(m, full_matrices=False)
  s = s / (np.linalg.norm(s) + 1e-8)
  for _ in range(5):  # Newton-Schulz is a polynomial of the singular values
    s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
  return -lr * (left * s) @ right


def noise(tree, seed, *axes):
  """Numbers of the tree's shapes, with `axes` in front."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: 0.5
                      * rng.standard_normal((*axes, *p.shape)).astype(jnp.result_type(float)), tree)


def parameters(norm="rms", activation="gelu", bias=False):
  params = jax.eval_shape(lambda: init(jax.random.key(0), WIDTH, HIDDEN, 1, norm, activation))
  for part in sorted(set(params) - {"norm"}) if bias else ():
    params[part]["bias"] = np.zeros(params[part]["kernel"].shape[1])
  return noise(params, 1)


def text(chunks=CHUNKS):
  """Inputs, teach signals, writing tokens (all; most; none in every other chunk), chunks first."""
  rng, shape = np.random.default_rng(0), (chunks, STREAMS, CHUNK)
  x, signal = rng.standard_normal((2, *shape, WIDTH)).astype(jnp.result_type(float))
  is_open = rng.random(shape) < 0.6
  is_open[:, 0], is_open[::2, 2] = True, False
  return x, 0.3 * signal, is_open
