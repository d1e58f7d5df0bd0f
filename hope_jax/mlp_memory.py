"""MLP memories M(z) = z + W1 gelu(W2 z) of one stream and head (NL Eq. 91), written layer by layer (Eq. 56-57, 90).

Both layers are matrices with an input and a forcing: W2 with input k and the error sent back to its output, W1 with input
h = gelu(W2 k) and the error itself. The scalar memories (eta, alpha) have no skip, or a learned one.

Memories are stacked: k, v, mem, (q), then eta, alpha. Letters: C tokens, D head width, M hidden width, N memories with
D outputs, P = N + 2 memories. Weights: w_in_PxMxD (W2), w_out_NxDxM (W1), g_out_2xM (W1 of eta and alpha), skip_2xD.
"""

import jax
import jax.numpy as jnp

from hope_jax import delta
from hope_jax.rule import Rule, length, log_momentum, rate_size, running_size, step_size, unit

LAYERS = ("w_in", "w_out", "g_out", "skip")


def names(rule: Rule) -> list[str]:
  """The memories in stacking order."""
  return ["k", "v", "mem"] + (["q"] if rule.adaptive_q else []) + ["eta", "alpha"]


def fresh(rule: Rule, params: dict) -> dict:
  """The state at the start of a document: `start` is read, `run` holds every write so far."""
  weights = {name: params[name] for name in LAYERS if name in params}
  state = {"start": weights, "run": weights}
  if rule.momentum:
    state["momentum"] = jax.tree.map(jnp.zeros_like, weights)
    vectors, hidden = params["w_out"].shape[0], params["w_in"].shape[0]
    state["size"] = {name: jnp.zeros(hidden if name == "w_in" else vectors if name == "w_out" else 2, params[name].dtype)
                     for name in weights}
  return state


def _per_memory(rule: Rule, at_generators, at_memory) -> dict:
  at_P = jnp.stack([jnp.asarray(at_memory if name == "mem" else at_generators) for name in names(rule)])
  return {"w_in": at_P, "w_out": at_P[:-2], "g_out": at_P[-2:], "skip": at_P[-2:]}


def settle(rule: Rule, params: dict, state: dict, at_generators, at_memory) -> dict:
  """At a chunk boundary the weights that were written become the weights that are read."""
  del params
  if at_generators is True and at_memory is True:
    return {**state, "start": state["run"]}
  at = _per_memory(rule, at_generators, at_memory)
  start = {name: jnp.where(at[name].reshape(-1, *[1] * (w.ndim - 1)), state["run"][name], w)
           for name, w in state["start"].items()}
  return {**state, "start": start}


def weights(rule: Rule, params: dict, state: dict) -> dict:
  """Every memory's current weights, the open chunk's writes included: name -> {layer: array}."""
  del params
  run, vectors = state["run"], len(names(rule)) - 2
  out = {}
  for i, name in enumerate(names(rule)):
    out[name] = {"w_in": run["w_in"][i]}
    if i < vectors:
      out[name]["w_out"] = run["w_out"][i]
    else:
      out[name] |= {layer: run[layer][i - vectors] for layer in ("g_out", "skip") if layer in run}
  return out


def _gelu(a):
  """gelu (exact) and its derivative, from one erf."""
  below = 0.5 * (1 + jax.lax.erf(a * 0.5 ** 0.5))
  return a * below, below + a * jnp.exp(-0.5 * a * a) * (2 * jnp.pi) ** -0.5


def _one(w, i, z_CxD):
  """Memory i with D outputs, applied to z."""
  return z_CxD + _gelu(z_CxD @ w["w_in"][i].T)[0] @ w["w_out"][i].T


def generate(rule: Rule, params: dict, state: dict, xk_CxD, xv_CxD, xq_CxD):
  """Raw reads from the chunk-start weights: (k, v, q, eta, alpha) before any non-linearity."""
  w = state["start"]
  q = _one(w, 3, xq_CxD) if rule.adaptive_q else xq_CxD @ params["w_q"].T
  h_2xCxM = _gelu(jnp.einsum("cd,pmd->pcm", xk_CxD, w["w_in"][-2:]))[0]
  gates_2xC = jnp.einsum("pcm,pm->pc", h_2xCxM, w["g_out"])
  if "skip" in w:
    gates_2xC += w["skip"] @ xk_CxD.T
  return _one(w, 0, xk_CxD), _one(w, 1, xv_CxD), q, gates_2xC[0], gates_2xC[1]


def read(rule: Rule, state: dict, q_CxD):
  """M_mem(q)."""
  return _one(state["start"], 2, q_CxD)


def _forward(w: dict, z_CxD):
  """All memories on the same z: outputs (N, C, D) and (2, C), hidden activations (P, C, M) and their slope."""
  h_PxCxM, slope_PxCxM = _gelu(jnp.einsum("cd,pmd->pcm", z_CxD, w["w_in"]))
  vectors = z_CxD + jnp.einsum("ncm,ndm->ncd", h_PxCxM[:-2], w["w_out"])
  scalars = jnp.einsum("pcm,pm->pc", h_PxCxM[-2:], w["g_out"])
  if "skip" in w:
    scalars += w["skip"] @ z_CxD.T
  return vectors, scalars, h_PxCxM, slope_PxCxM


def _send_back(w: dict, e_NxCxD, e_2xC, slope_PxCxM):
  """The errors at the outputs, back-propagated to the hidden pre-activations."""
  back = [jnp.einsum("ncd,ndm->ncm", e_NxCxD, w["w_out"]), e_2xC[..., None] * w["g_out"][:, None]]
  return jnp.concatenate(back) * slope_PxCxM


def gradients(rule: Rule, w: dict, k_CxD, v_CxD) -> list[dict]:
  """The inner gradient of every layer as outer products: [(forcing, input) per layer], a second one through the target."""
  vectors, scalars, h, slope = _forward(w, k_CxD)
  raw_vectors, target_scalars, h_v, slope_v = _forward(w, v_CxD)
  normalise = unit if rule.unit_target else (lambda t: t)
  target_vectors, pull = jax.vjp(normalise, raw_vectors)

  def products(e_NxCxD, e_2xC, h_PxCxM, slope_PxCxM, z_CxD):
    d_PxCxM = _send_back(w, e_NxCxD, e_2xC, slope_PxCxM)
    z_of = lambda count: jnp.broadcast_to(z_CxD, (count, *z_CxD.shape))
    out = {"w_in": (d_PxCxM, z_of(d_PxCxM.shape[0])), "w_out": (e_NxCxD, h_PxCxM[:-2]),
           "g_out": (e_2xC[..., None], h_PxCxM[-2:])}
    if "skip" in w:
      out["skip"] = (e_2xC[..., None], z_of(2))
    return out

  if rule.objective == "l2":
    e, e_scalar = 2 * (vectors - target_vectors), 2 * (scalars - target_scalars)
  else:
    e, e_scalar = -target_vectors, -target_scalars
  out = [products(e, e_scalar, h, slope, k_CxD)]
  if rule.target_gradient:
    of_target, of_scalar = (-e, -e_scalar) if rule.objective == "l2" else (-vectors, -scalars)
    out.append(products(pull(of_target)[0], of_scalar, h_v, slope_v, v_CxD))
  return out


def write(rule: Rule, state: dict, token) -> dict:
  """All memories take the chunk's tokens; `token` is selfmod.Token."""
  pairs = gradients(rule, state["start"], token.k, token.v)
  log_beta = log_momentum(rule, token.valid, token.k.dtype)
  run, out = state["run"], dict(state)

  def factored(layer):
    return rule.rank_one and (rule.factor == "layer" or layer != "w_out" and layer != "g_out")

  def steps(layer, products, size_before):
    """Step, rate and running size of one matrix."""
    x = products[0][1]
    step = step_size(rule, token.eta, x)
    if not rule.bound:
      return step, step, size_before
    size = sum(length(f) * length(z) for f, z in products)
    size = running_size(rule, size_before, size, token.valid)
    return step, rate_size(step, size, x, token.alpha, token.forget, rule.bound, factored(layer)), size[-1]

  new_run, new_momentum, new_size = {}, {}, {}
  for layer in run:
    w = run[layer] if run[layer].ndim == 3 else run[layer][:, None]  # (memories, O, I)
    products = [p[layer] for p in pairs]
    size_before = state["size"][layer] if rule.momentum else jnp.zeros(w.shape[0], w.dtype)
    step, rate, size = jax.vmap(lambda p, n: steps(layer, p, n))(products, size_before)
    if rule.general:
      kept = jnp.where(token.valid[:, None], 1.0, 0.0)
      m = state["momentum"][layer].reshape(w.shape) if rule.momentum else jnp.zeros_like(w)
      def one(w, m, products, step, rate):
        return delta.write_momentum(w, m, products[0][1], [(f * kept, z) for f, z in products],
                                    step if factored(layer) else None, rate, token.log_alpha, log_beta)
      w, m = jax.vmap(one)(w, m, products, step, rate)
      if rule.momentum:
        new_momentum[layer], new_size[layer] = m.reshape(run[layer].shape), size
    elif not factored(layer):
      f, x = products[0]
      w = jax.vmap(lambda w, x, f: delta.write_decayed(w, x, f, token.log_alpha))(w, x, rate[..., None] * f)
    elif layer in ("w_in", "skip"):
      # one system for all rows: the input and the step of the factor are the same for every memory
      forcing = jnp.moveaxis(rate[..., None] * products[0][0], 0, 1).reshape(rate.shape[1], -1)
      w = delta.write(w.reshape(-1, w.shape[-1]), token.k, forcing, step[0], token.log_alpha).reshape(w.shape)
    else:
      f, x = products[0]
      w = jax.vmap(delta.write, in_axes=(0, 0, 0, 0, None))(w, x, rate[..., None] * f, step, token.log_alpha)
    new_run[layer] = w.reshape(run[layer].shape)
  out["run"] = new_run
  if rule.momentum:
    out["momentum"], out["size"] = new_momentum, new_size
  return out
