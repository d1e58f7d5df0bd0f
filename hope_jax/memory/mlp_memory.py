"""MLP memories M(z) = z + W1 gelu(W2 z) of one stream and head (NL Eq. 90, 91), layer by layer.

Both layers are matrices with an input and a forcing: W2 with input k and the error sent back to its
output, W1 with input h = gelu(W2 k) and the error itself. The gates (eta and alpha) have one output
and no skip, or a learned one.

Memories of equal shape are stacked: N vector memories k, v, mem, (q) in v_in_NxMxD (W2) and
v_out_NxDxM (W1), the two gates in g_in_2xMxD, g_out_2x1xM, g_skip_2x1xD. Letters: C tokens, D head
width, M hidden width, O outputs, P memories.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import delta_rule
from hope_jax.memory.products import apply, apply_transposed, gelu, gelu_and_slope
from hope_jax.memory.write_rule import Rule, length, log_momentum, rate_size, running_size
from hope_jax.memory.write_rule import step_size, unit

LAYERS = ("v_in", "v_out", "g_in", "g_out", "g_skip")
GATES = ("eta", "alpha")


def vectors(rule: Rule) -> list[str]:
  """The memories with D outputs, in stacking order."""
  return ["k", "v", "mem"] + (["q"] if rule.adaptive_q else [])


def fresh(rule: Rule, params: dict) -> dict:
  """The state at the start of a document: `start` is read, `run` holds every write so far."""
  weights = {layer: params[layer] for layer in LAYERS if layer in params}
  state = {"start": weights, "run": weights}
  if rule.momentum:
    state["momentum"] = jax.tree.map(jnp.zeros_like, weights)
    state["size"] = jax.tree.map(lambda w: jnp.zeros(len(w), w.dtype), weights)
  return state


def settle(rule: Rule, params: dict, state: dict, at_generators, at_memory) -> dict:
  """At a chunk boundary the weights that were written become the weights that are read."""
  del params
  if at_generators is True and at_memory is True:
    return {**state, "start": state["run"]}
  at = {"v": jnp.stack([jnp.asarray(at_memory if name == "mem" else at_generators)
                        for name in vectors(rule)]),
        "g": jnp.stack([jnp.asarray(at_generators)] * 2)}
  start = {layer: jnp.where(at[layer[0]][:, None, None], state["run"][layer], w)
           for layer, w in state["start"].items()}
  return {**state, "start": start}


def weights(rule: Rule, params: dict, state: dict) -> dict:
  """Current weights, the open chunk's writes included: name -> {"in", "out", perhaps "skip"}."""
  del params
  out = {}
  for group, names in (("v", vectors(rule)), ("g", GATES)):
    for i, name in enumerate(names):
      out[name] = {layer[2:]: w[i] for layer, w in state["run"].items() if layer[0] == group}
  return out


def _one(w, i, z_DxC):
  """Vector memory i, applied to z."""
  return z_DxC + apply(w["v_out"][i], gelu(apply(w["v_in"][i], z_DxC)))


def _stack(w: dict, group: str, z_DxC) -> dict:
  """A stack of memories on the same z; "seen": W x of every layer."""
  count, hidden, width = w[f"{group}_in"].shape
  a_PxMxC = apply(w[f"{group}_in"].reshape(-1, width), z_DxC).reshape(count, hidden, -1)
  h_PxMxC, slope_PxMxC = gelu_and_slope(a_PxMxC)
  raw_PxOxC = jax.vmap(apply)(w[f"{group}_out"], h_PxMxC)
  seen = {f"{group}_in": a_PxMxC, f"{group}_out": raw_PxOxC}
  output = raw_PxOxC + z_DxC if group == "v" else raw_PxOxC
  if f"{group}_skip" in w:
    seen[f"{group}_skip"] = jnp.einsum("pod,dc->poc", w[f"{group}_skip"], z_DxC)
    output = output + seen[f"{group}_skip"]
  return {"seen": seen, "output": output, "hidden": h_PxMxC, "slope": slope_PxMxC, "input": z_DxC}


def generate(rule: Rule, params: dict, state: dict, xk_DxC, xv_DxC, xq_DxC):
  """Raw reads from the chunk-start weights: (k, v, q, eta, alpha) before any non-linearity."""
  w = state["start"]
  q = _one(w, 3, xq_DxC) if rule.adaptive_q else params["w_q"] @ xq_DxC
  gates_2x1xC = _stack(w, "g", xk_DxC)["output"]
  return _one(w, 0, xk_DxC), _one(w, 1, xv_DxC), q, gates_2x1xC[0, 0], gates_2x1xC[1, 0]


def read(rule: Rule, state: dict, q_DxC):
  """M_mem(q)."""
  return _one(state["start"], 2, q_DxC)


def _products(w: dict, group: str, stack: dict, e_PxOxC) -> dict:
  """Each layer's gradient as an outer product (forcing, input), for the error e at the outputs."""
  d_PxMxC = jax.vmap(apply_transposed)(w[f"{group}_out"], e_PxOxC) * stack["slope"]
  z_PxDxC = jnp.broadcast_to(stack["input"], (len(e_PxOxC), *stack["input"].shape))
  out = {f"{group}_in": (d_PxMxC, z_PxDxC), f"{group}_out": (e_PxOxC, stack["hidden"])}
  if f"{group}_skip" in w:
    out[f"{group}_skip"] = (e_PxOxC, z_PxDxC)
  return out


def gradients(rule: Rule, w: dict, k_DxC, v_DxC):
  """The inner gradients of all layers as outer products.

  Returns:
    ({layer: [(forcing, input)]}, {layer: W x}): with a second product where the gradient also goes
    through the target, and what each layer sees at these weights.
  """
  products, seen = {}, {}
  for group in ("v", "g"):
    here, there = _stack(w, group, k_DxC), _stack(w, group, v_DxC)
    target, pull = jax.vjp(unit if rule.unit_target and group == "v" else lambda t: t,
                           there["output"])
    e = 2 * (here["output"] - target) if rule.objective == "l2" else -target
    pairs = [_products(w, group, here, e)]
    if rule.target_gradient:
      of_target = -e if rule.objective == "l2" else -here["output"]
      pairs.append(_products(w, group, there, pull(of_target)[0]))
    products |= {layer: [(rule.sign * f, x) for f, x in (p[layer] for p in pairs)]
                 for layer in pairs[0]}
    seen |= here["seen"]
  return products, seen


def _reads_k(layer: str) -> bool:
  """Whether the layer's input is k; else it is the hidden activations."""
  return not layer.endswith("out")


def _factored(rule: Rule, layer: str) -> bool:
  """Whether writes of the layer have the rank-one factor."""
  return rule.rank_one and (rule.factor == "layer" or _reads_k(layer))


class Steps(NamedTuple):
  """Of the tokens of a chunk, for one memory's layer or the stack."""
  step_PxC: jax.Array  # of the rank-one factor
  rate_PxC: jax.Array  # of the gradient
  size_P: jax.Array  # running size of the gradients, after the chunk


def _steps(rule: Rule, layer: str, products, token, size_before) -> Steps:
  """Of one memory's layer, without P."""
  x_IxC = products[0][1]
  step = step_size(rule, token.eta, x_IxC)
  if not rule.bound:
    return Steps(step, step, size_before)
  size = sum(length(f) * length(z) for f, z in products)
  size = running_size(rule, size_before, size, token.valid)
  rate = rate_size(step, size, x_IxC, token.alpha, token.forget, rule.bound, _factored(rule, layer))
  return Steps(step, rate, size[-1])


def write(rule: Rule, state: dict, token) -> dict:
  """All memories take the chunk's tokens; `token` is self_modifying.Token."""
  products, seen = gradients(rule, state["start"], token.k, token.v)
  run = state["run"]
  sizes = state["size"] if rule.momentum else {layer: jnp.zeros(len(w), w.dtype)
                                               for layer, w in run.items()}
  steps = {layer: jax.vmap(lambda p, size: _steps(rule, layer, p, token, size))(
      products[layer], sizes[layer]) for layer in run}
  if rule.general:
    written = _write_general(rule, state, token, products, steps)
  else:
    if state["start"] is not run:  # an open chunk: its own tokens have written since
      seen = {layer: jnp.einsum("poi,pic->poc", w, products[layer][0][1])
              for layer, w in run.items()}
    written = {"run": _write(rule, run, token, products, steps, seen)}
  if not rule.alpha:  # nothing reads M_alpha, which keeps its initial weights
    alpha = GATES.index("alpha")
    written["run"] |= {layer: w.at[alpha].set(run[layer][alpha])
                       for layer, w in written["run"].items() if layer.startswith("g_")}
  return state | written


def _write_general(rule: Rule, state, token, products, steps) -> dict:
  """With momentum, or gradients of two outer products: every matrix by itself."""
  kept, log_beta = jnp.where(token.valid, 1.0, 0.0), log_momentum(rule, token.valid, token.k.dtype)
  run, momentum = {}, {}
  for layer, w in state["run"].items():
    def one(w, m, products, step, rate):
      pairs = [(f * kept, z) for f, z in products]
      return delta_rule.write_momentum(
          w, m, products[0][1], pairs, step if _factored(rule, layer) else None, rate,
          token.log_alpha, log_beta)
    m = state["momentum"][layer] if rule.momentum else jnp.zeros_like(w)
    run[layer], momentum[layer] = jax.vmap(one)(w, m, products[layer], *steps[layer][:2])
  if not rule.momentum:
    return {"run": run}
  return {"run": run, "momentum": momentum, "size": {layer: steps[layer].size_P for layer in run}}


def _write(rule: Rule, run, token, products, steps, seen) -> dict:
  """One outer product a token."""
  decay = delta_rule.decay(token.log_alpha)
  forcing, x = {}, {}
  for layer in run:
    f_PxOxC, x[layer] = products[layer][0]
    forcing[layer] = steps[layer].rate_PxC[:, None] * f_PxOxC
  systems = _systems(rule, run, token, x, steps, decay)

  def one(layer, w_PxOxI):
    if not _factored(rule, layer):
      return jax.vmap(delta_rule.write_decayed, (0, 0, 0, None))(w_PxOxI, x[layer], forcing[layer],
                                                                 decay)
    step_PxC = steps[layer].step_PxC
    if not _reads_k(layer):
      return jax.vmap(delta_rule.write, (0, 0, 0, 0, 0, None, 0, 0))(
          w_PxOxI, x[layer], seen[layer], forcing[layer], step_PxC, decay, *systems[layer])
    w, seen_w, forcing_w = (a.reshape(-1, a.shape[-1])  # memories' rows: they share the system
                            for a in (w_PxOxI, seen[layer], forcing[layer]))
    return delta_rule.write(w, token.k, seen_w, forcing_w, step_PxC[0], decay,
                            *(a[0] for a in systems["k"])).reshape(w_PxOxI.shape)

  return {layer: one(layer, w) for layer, w in run.items()}


def _systems(rule: Rule, run, token, x, steps, decay) -> dict:
  """(L_PxCxC, inverse_PxCxC) of each layer with the factor, all inverted together.

  Layers that read k have the same input and step: they share the system "k", of P = 1.
  """
  lowers = {}
  for layer in run:
    if not _factored(rule, layer):
      continue
    step_PxC = steps[layer].step_PxC
    if not _reads_k(layer):
      lowers[layer] = jax.vmap(delta_rule.couple, (0, 0, None))(x[layer], step_PxC, decay)
    elif "k" not in lowers:
      lowers["k"] = delta_rule.couple(token.k, step_PxC[0], decay)[None]
  if not lowers:
    return {}
  ends = list(itertools.accumulate(len(lower) for lower in lowers.values()))
  inverses = jax.vmap(delta_rule.unit_lower_inverse)(jnp.concatenate(list(lowers.values())))
  return dict(zip(lowers, zip(lowers.values(), jnp.split(inverses, ends[:-1]))))
