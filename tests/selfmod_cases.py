"""Random parameters, inputs and options for the tests of self-modifying Titans, in both layouts."""

import dataclasses

import jax
import jax.numpy as jnp

import reference_selfmod as reference
from hope_jax.memory import linear_memory, mlp_memory, self_modifying
from hope_jax.memory.write_rule import Rule

OPTIONS = {
    "mlp": {}, "linear": dict(memory="linear"), "mlp_dot": dict(objective="dot"),
    "linear_dot": dict(memory="linear", objective="dot"),
    "input_factor": dict(factor="input", unit_target=False),
    "no_rank_one": dict(rank_one=False), "no_alpha": dict(alpha=False),
    "mlp_momentum": dict(momentum=0.6), "linear_no_rank_one": dict(memory="linear", rank_one=False),
    # larger steps diverge without a bound
    "linear_momentum": dict(memory="linear", momentum=0.6, eta_scale=0.05),
    "target_gradient": dict(target_gradient=True),
    "linear_target_gradient": dict(memory="linear", target_gradient=True),
    "raw_target": dict(unit_target=False), "gate_skip": {}, "adaptive_q": dict(adaptive_q=True),
    "linear_adaptive_q": dict(memory="linear", adaptive_q=True), "bound": dict(bound=2.0),
    "linear_bound": dict(memory="linear", bound=1.0),
    "bound_momentum": dict(bound=2.0, momentum=0.6),
    "linear_bound_momentum": dict(memory="linear", bound=1.0, momentum=0.6),
    "everything": dict(bound=2.0, momentum=0.6, target_gradient=True, adaptive_q=True),
    "dot_target_gradient_momentum": dict(objective="dot", momentum=0.6, target_gradient=True,
                                         rank_one=False),
}


def parameters(rule: Rule, key, width=8, hidden=12, gate_skip=False) -> dict:
  """Weights of one head, large enough that every write shows."""
  keys = iter(jax.random.split(key, 12))
  def draw(*shape, scale=0.3):
    return scale * jax.random.normal(next(keys), shape)
  if rule.memory == "linear":
    rows = linear_memory.rows(rule, width)
    params = {"w": draw(max(s.stop for s in rows.values()), width)}
    for name in ("k", "v", "mem"):
      params["w"] = params["w"].at[rows[name]].add(jnp.eye(width))
  else:
    count = len(mlp_memory.vectors(rule))
    params = {"v_in": draw(count, hidden, width), "v_out": draw(count, width, hidden),
              "g_in": draw(2, hidden, width), "g_out": draw(2, 1, hidden)}
    if gate_skip:
      params["g_skip"] = draw(2, 1, width)
  params |= {"b_eta": jnp.float32(-1.0), "b_alpha": jnp.float32(2.0)}
  if not rule.adaptive_q:
    params["w_q"] = jnp.eye(width) + draw(width, width)
  return params


def named(rule: Rule, weights: dict) -> dict:
  """`memory.weights(...)` or a fresh state's weights, in the reference's layout."""
  if rule.memory == "linear":
    return {name: {"w": w} for name, w in weights.items()}
  layers = {"in": "w2", "out": "w1", "skip": "skip"}
  return {name: {layers[layer]: w for layer, w in of_memory.items()}
          for name, of_memory in weights.items()}


def to_reference(rule: Rule, params: dict) -> dict:
  """The reference's parameters."""
  memory = self_modifying.memories(rule)
  out = named(rule, memory.weights(rule, params, memory.fresh(rule, params)))
  return out | {name: params[name] for name in ("w_q", "b_eta", "b_alpha") if name in params}


def reference_rule(rule: Rule) -> reference.Rule:
  """The same options for the reference, which knows no controls."""
  known = {field.name for field in dataclasses.fields(reference.Rule)}
  return reference.Rule(**{name: value for name, value in dataclasses.asdict(rule).items()
                           if name in known})


def inputs(key, tokens, width=8):
  """(xk, xv, xq), each (tokens, width)."""
  return tuple(jax.random.normal(k, (tokens, width)) for k in jax.random.split(key, 3))
