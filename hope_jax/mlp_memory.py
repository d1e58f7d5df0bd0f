"""MLP memories M(z) = z + W1 gelu(W2 z) of one stream and head (NL Eq. 91), written layer by layer (Eq. 56-57, 90).

Both layers are matrices with an input and a forcing: W2 with input k and the error sent back to its output, W1 with input
h = gelu(W2 k) and the error itself. The scalar memories (eta, alpha) have no skip, or a learned one.

Memories are stacked: k, v, mem, (q), then eta, alpha. Letters: C tokens, D head width, M hidden width, N memories with
D outputs, P = N + 2 memories. Weights: w_in_PxMxD (W2), w_out_NxDxM (W1), g_out_2xM (W1 of eta and alpha), skip_2xD.
"""

import itertools

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


def _one(w, i, z_DxC):
  """Memory i with D outputs, applied to z."""
  return z_DxC + w["w_out"][i] @ _gelu(w["w_in"][i] @ z_DxC)[0]


def generate(rule: Rule, params: dict, state: dict, xk_DxC, xv_DxC, xq_DxC):
  """Raw reads from the chunk-start weights: (k, v, q, eta, alpha) before any non-linearity."""
  w = state["start"]
  q = _one(w, 3, xq_DxC) if rule.adaptive_q else params["w_q"] @ xq_DxC
  h_2xMxC = _gelu(w["w_in"][-2:] @ xk_DxC)[0]
  gates_2xC = jnp.sum(h_2xMxC * w["g_out"][..., None], 1)
  if "skip" in w:
    gates_2xC += w["skip"] @ xk_DxC
  return _one(w, 0, xk_DxC), _one(w, 1, xv_DxC), q, gates_2xC[0], gates_2xC[1]


def read(rule: Rule, state: dict, q_DxC):
  """M_mem(q)."""
  return _one(state["start"], 2, q_DxC)


def _forward(w: dict, z_DxC):
  """All memories on the same z, before their skips: pre-activations, outputs (N, D, C) and (2, C), hidden, slope."""
  a_PxMxC = jnp.einsum("pmd,dc->pmc", w["w_in"], z_DxC)
  h_PxMxC, slope_PxMxC = _gelu(a_PxMxC)
  vectors = jnp.einsum("ndm,nmc->ndc", w["w_out"], h_PxMxC[:-2])
  scalars = jnp.sum(h_PxMxC[-2:] * w["g_out"][..., None], 1)
  return a_PxMxC, vectors, scalars, h_PxMxC, slope_PxMxC


def gradients(rule: Rule, w: dict, k_DxC, v_DxC):
  """The inner gradients as outer products, layer by layer.

  Returns:
    ([{layer: (forcing, input)}], {layer: W x}): a second set of products where the gradient also goes through the
    target, and what each layer sees at the chunk-start weights.
  """
  a, vectors, scalars, h, slope = _forward(w, k_DxC)
  seen = {"w_in": a, "w_out": vectors, "g_out": scalars[:, None]}
  _, target_vectors, target_scalars, h_v, slope_v = _forward(w, v_DxC)
  vectors, target_vectors = k_DxC + vectors, v_DxC + target_vectors
  if "skip" in w:
    seen["skip"] = (w["skip"] @ k_DxC)[:, None]
    scalars, target_scalars = scalars + seen["skip"][:, 0], target_scalars + w["skip"] @ v_DxC
  pull = lambda e: (e,)
  if rule.unit_target:
    target_vectors, pull = jax.vjp(unit, target_vectors)

  def products(e_NxDxC, e_2xC, h_PxMxC, slope_PxMxC, z_DxC):
    back = [jnp.einsum("ndm,ndc->nmc", w["w_out"], e_NxDxC), w["g_out"][..., None] * e_2xC[:, None]]
    d_PxMxC = jnp.concatenate(back) * slope_PxMxC
    z_of = lambda count: jnp.broadcast_to(z_DxC, (count, *z_DxC.shape))
    out = {"w_in": (d_PxMxC, z_of(len(d_PxMxC))), "w_out": (e_NxDxC, h_PxMxC[:-2]),
           "g_out": (e_2xC[:, None], h_PxMxC[-2:])}
    if "skip" in w:
      out["skip"] = (e_2xC[:, None], z_of(2))
    return out

  if rule.objective == "l2":
    e, e_scalar = 2 * (vectors - target_vectors), 2 * (scalars - target_scalars)
  else:
    e, e_scalar = -target_vectors, -target_scalars
  out = [products(e, e_scalar, h, slope, k_DxC)]
  if rule.target_gradient:
    of_target, of_scalar = (-e, -e_scalar) if rule.objective == "l2" else (-vectors, -scalars)
    out.append(products(pull(of_target)[0], of_scalar, h_v, slope_v, v_DxC))
  return out, seen


def _factored(rule: Rule, layer: str) -> bool:
  return rule.rank_one and (rule.factor == "layer" or layer in ("w_in", "skip"))


def _steps(rule: Rule, layer: str, products, token, size_before):
  """Step, rate and running size of one matrix."""
  x_IxC = products[0][1]
  step = step_size(rule, token.eta, x_IxC)
  if not rule.bound:
    return step, step, size_before
  size = running_size(rule, size_before, sum(length(f) * length(z) for f, z in products), token.valid)
  rate = rate_size(step, size, x_IxC, token.alpha, token.forget, rule.bound, _factored(rule, layer))
  return step, rate, size[-1]


def write(rule: Rule, state: dict, token) -> dict:
  """All memories take the chunk's tokens; `token` is selfmod.Token."""
  pairs, seen = gradients(rule, state["start"], token.k, token.v)
  matrices = {layer: w if w.ndim == 3 else w[:, None] for layer, w in state["run"].items()}  # (memories, O, I)
  products = {layer: [p[layer] for p in pairs] for layer in matrices}
  before = state["size"] if rule.momentum else {layer: jnp.zeros(len(w), w.dtype) for layer, w in matrices.items()}
  steps = {layer: jax.vmap(lambda p, n: _steps(rule, layer, p, token, n))(products[layer], before[layer])
           for layer in matrices}
  if rule.general:
    written = _write_general(rule, state, token, matrices, products, steps)
  else:
    if state["start"] is not state["run"]:  # an open chunk: its own tokens have written since
      seen = {layer: jnp.einsum("poi,pic->poc", w, products[layer][0][1]) for layer, w in matrices.items()}
    written = {"run": _write(rule, token, matrices, products, steps, seen)}
  if not rule.alpha:  # nothing reads M_alpha, which keeps its initial weights
    run = written["run"]
    written["run"] = run | {layer: run[layer].at[-1].set(matrices[layer][-1]) for layer in run if layer != "w_out"}
  fit = lambda new, old: jax.tree.map(lambda a, b: a.reshape(b.shape), new, old)
  return state | {part: fit(value, state[part]) for part, value in written.items()}


def _write_general(rule: Rule, state, token, matrices, products, steps) -> dict:
  """With momentum, or gradients of two outer products: every matrix by itself."""
  kept, log_beta = jnp.where(token.valid, 1.0, 0.0), log_momentum(rule, token.valid, token.k.dtype)
  out = {"run": {}, "momentum": {}, "size": {}}
  for layer, w in matrices.items():
    def one(w, m, products, step, rate):
      pairs = [(f * kept, z) for f, z in products]
      return delta.write_momentum(w, m, products[0][1], pairs, step if _factored(rule, layer) else None, rate,
                                  token.log_alpha, log_beta)
    m = state["momentum"][layer].reshape(w.shape) if rule.momentum else jnp.zeros_like(w)
    step, rate, out["size"][layer] = steps[layer]
    out["run"][layer], out["momentum"][layer] = jax.vmap(one)(w, m, products[layer], step, rate)
  return out if rule.momentum else {"run": out["run"]}


def _write(rule: Rule, token, matrices, products, steps, seen) -> dict:
  """One outer product a token: all triangular systems are inverted together."""
  forcing = {layer: steps[layer][1][:, None] * products[layer][0][0] for layer in matrices}
  out, lowers = {}, {}
  for layer, w in matrices.items():
    x = products[layer][0][1]
    if not _factored(rule, layer):
      out[layer] = jax.vmap(delta.write_decayed, (0, 0, 0, None))(w, x, forcing[layer], token.log_alpha)
    elif layer == "w_in":  # input and step of the factor are the same for every memory: one system for all rows
      lowers[layer] = delta.couple(token.k, steps[layer][0][0], token.log_alpha)[None]
    elif layer != "skip":
      lowers[layer] = jax.vmap(delta.couple, (0, 0, None))(x, steps[layer][0], token.log_alpha)
  if not lowers:
    return out
  inverses = jax.vmap(delta.unit_lower_inverse)(jnp.concatenate(list(lowers.values())))
  ends = list(itertools.accumulate(len(lower) for lower in lowers.values()))
  inverses = dict(zip(lowers, jnp.split(inverses, ends[:-1])))
  for layer, w in matrices.items():
    if layer in out:
      continue
    x, step = products[layer][0][1], steps[layer][0]
    if layer in ("w_in", "skip"):
      rows = lambda a: a.reshape(-1, a.shape[-1])
      out[layer] = delta.write(rows(w), token.k, rows(seen[layer]), rows(forcing[layer]), step[0], token.log_alpha,
                               lowers["w_in"][0], inverses["w_in"][0])
    else:
      out[layer] = jax.vmap(delta.write, (0, 0, 0, 0, 0, None, 0, 0))(
          w, x, seen[layer], forcing[layer], step, token.log_alpha, lowers[layer], inverses[layer])
  return out
