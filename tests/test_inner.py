"""The inner optimizers against NumPy loops, arrays of a PyTorch implementation, their bounds.

    python -m pytest tests/test_inner.py

The arrays (parity/README.md) and this package agree on preconditioned, dmgd and plain momentum;
their nl_l2_precond is nl_l2_projector here, where nl_l2_precond is DGD itself. Their muon is
momentum of tanh(g / (sqrt(v) + eps)), here it orthogonalises by Newton-Schulz; their l2_objective
(g + 0.1 of its mean) is not offered.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.memory import inner_rules

PARITY = pathlib.Path(__file__).parent / "parity"
THEIRS = {"preconditioned": "preconditioned", "dmgd": "dmgd", "nl_l2_precond": "nl_l2_projector",
          "plain": "momentum"}
LR = 0.3
every_rule = pytest.mark.parametrize("name", inner_rules.RULES)


def tree(seed, scale=1.0, dtype=None):
  """Something for each parameter of a small level."""
  rng = np.random.default_rng(seed)
  return {"up": {"kernel": jnp.array(scale * rng.normal(size=(6, 4)), dtype)},
          "norm": {"scale": jnp.array(scale * rng.normal(size=6), dtype)}}


def tokens(seed):
  return jnp.array(np.random.default_rng(seed).normal(size=(5, 6)) + 0.5)


def inputs_of(x_NxI, params):
  return {"up": {"kernel": inner_rules.summarise(x_NxI, params["up"]["kernel"])},
          "norm": {"scale": None}}


def walk(name, gradients, xs=None, params=None, lr=LR, **options):
  """-> (updates of every step, state, parameters); xs None is no inputs."""
  tx, params = inner_rules.make(name, lr, **options), tree(0) if params is None else params
  state, out = tx.init(params), []
  for i, g in enumerate(gradients):
    updates, state = tx.update(g, state, params,
                               inputs=None if xs is None else inputs_of(xs[i], params))
    params = optax.apply_updates(params, updates)
    out.append(updates)
  return out, state, params


def by_hand(name, gradients, xs, w, beta, beta2, eps):
  """The same for one parameter; x None is a vector or unknown inputs."""
  m, v, out = np.zeros_like(w), np.zeros_like(w), []
  for g, x in zip(gradients, xs):
    u, column = g, lambda a: a if a.ndim == 2 else a[:, None]
    if name == "adagrad":
      v = v + g ** 2
      m = u = g / (np.sqrt(v) + eps)
    elif name == "preconditioned":
      v = beta2 * v + (1 - beta2) * g ** 2
      u = g / (np.sqrt(v) + eps)
    elif name == "dmgd":
      u = np.tanh(g)
    elif name == "nl_l2_projector" and x is not None:
      mean = x.mean(0) / np.linalg.norm(x.mean(0))
      u = g - np.outer(mean, mean @ g)
    elif name == "delta_momentum":  # Eq. 49 in its own layout, (out, in)
      grad, memory = column(g).T, column(m).T
      memory = (beta * memory @ (np.eye(len(g)) - grad.T @ grad / (1 + np.sum(g ** 2)))
                + (1 - beta) * grad)
      m = memory.T.reshape(w.shape)
    if name != "delta_momentum":
      m = beta * m + (1 - beta) * u
    step = -LR * (g if name == "sgd" else m)
    if name == "nl_l2_precond":  # Eq. 56, token by token
      eta = LR if x is None else LR / (1 + LR * np.sum(x ** 2))
      step = -eta * g - sum(eta * np.outer(x_I, x_I) @ w for x_I in ([] if x is None else x))
    elif name == "muon" and w.ndim == 2:  # Newton-Schulz is a polynomial of the singular values
      left, s, right = np.linalg.svd(m, full_matrices=False)
      s = s / (np.linalg.norm(s) + 1e-8)
      for _ in range(5):
        s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
      step = -LR * (left * s) @ right
    w = w + step
    out.append(step)
  return out


@pytest.mark.parametrize("seen", [True, False], ids=["inputs", "no_inputs"])
@every_rule
def test_rule_equals_a_loop_by_hand(name, seen, x64):
  options = dict(beta=0.8, beta2=0.95, eps=1e-6)
  gradients, xs = [tree(i + 1) for i in range(4)], [tokens(i) for i in range(4)] if seen else None
  updates, *_ = walk(name, gradients, xs, **options)
  for group, leaf in (("up", "kernel"), ("norm", "scale")):
    def pick(params):
      return np.asarray(params[group][leaf])
    known = [np.asarray(x) for x in xs] if seen and leaf == "kernel" else [None] * 4
    wanted = by_hand(name, [pick(g) for g in gradients], known, pick(tree(0)), **options)
    np.testing.assert_allclose([u[group][leaf] for u in updates], wanted, rtol=1e-9, atol=1e-12)


def replay(name, gradients, context=None):
  """-> (m after every step, last state), for gradients in torch's layout."""
  tx = inner_rules.make(name, 1.0, beta=0.9, beta2=0.999, eps=1e-8)
  state, out = tx.init(jnp.zeros(gradients[0].T.shape)), []
  for i, g in enumerate(gradients):
    kernel = jnp.zeros(g.T.shape)
    seen = None if context is None else inner_rules.Inputs(jnp.array(context[i]), jnp.array(1.0),
                                                           kernel)
    updates, state = tx.update(jnp.array(g.T), state, inputs=seen)
    out.append(-np.asarray(updates).T)
  return np.stack(out), state


@pytest.mark.parametrize("theirs", THEIRS)
def test_rule_matches_pytorch(theirs, x64):
  a, name = dict(np.load(PARITY / f"deep_momentum_{theirs}.npz")), THEIRS[theirs]
  assert json.loads(str(a["config_json"])) == {"variant": theirs, "beta": 0.9, "beta2": 0.999,
                                               "eps": 1e-8}
  # they add 1e-8 to the norm of the context
  tolerance = 1e-8 if theirs == "nl_l2_precond" else 1e-12
  def close(ours, wanted):
    return np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=tolerance)
  updates, state = replay(name, a["grads"], a["context"])
  close(updates, a["updates"])
  close(optax.tree.get(state, "trace").T, a["final_grad_avg"])
  if "final_sq_avg" in a:
    close(optax.tree.get(state, "nu").T, a["final_sq_avg"])
  close(replay(name, a["grads"])[0], a["updates_nocontext"])
  close(replay(name, a["grads_1d_dim6"])[0], a["updates_1d_dim6_ctxskipped"])


def test_muon_is_newton_schulz_and_theirs_is_a_tanh(x64):
  a, w, unseen = dict(np.load(PARITY / "deep_momentum_muon.npz")), np.zeros((6, 8)), [None] * 6
  scaled = -np.stack(by_hand("preconditioned", a["grads"], unseen, w, beta=0, beta2=0.999,
                             eps=1e-8)) / LR
  theirs = -np.stack(by_hand("dmgd", scaled, unseen, w, beta=0.9, beta2=0, eps=0)) / LR
  np.testing.assert_allclose(theirs, a["updates"], rtol=1e-9)
  def spectrum(u):
    return np.linalg.svd(u, compute_uv=False)
  assert (abs(spectrum(replay("muon", a["grads"])[0]) - 1) < 0.4).all()
  assert (abs(spectrum(a["updates"]) - 1) > 0.4).any()


def test_inputs_add_up_over_tokens(x64):
  x, kernel = tokens(1), tree(0)["up"]["kernel"]
  whole = inner_rules.summarise(x, kernel)
  parts = jax.tree.map(jnp.add, inner_rules.summarise(x[:2], kernel),
                       inner_rules.summarise(x[2:], kernel))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole, parts)
  masked = inner_rules.summarise(x.at[2].set(jnp.nan), kernel, jnp.array([1, 1, 0, 1, 1]))
  left_out = inner_rules.summarise(jnp.delete(x, 2, 0), kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), masked, left_out)


@pytest.mark.parametrize("name, beta",
                         [("sgd", 0), ("momentum", 0.0), ("momentum", 0.5), ("momentum", 0.9)])
def test_ema_weights_are_the_updates_that_happen(name, beta, x64):
  gradients = [tree(i) for i in range(1, 6)]
  weights = jax.jit(lambda happens_G: inner_rules.ema_weights(beta, happens_G))
  for happens in ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0],
                  [1, 0, 1, 1]):
    before, start, _ = walk(name, gradients[:1], beta=beta)  # m_0 is not zero
    updates, state, _ = walk(name, gradients[:1] + [g for g, h in zip(gradients[1:], happens) if h],
                             beta=beta)
    weight_G, keep_G, carry, decay = weights(jnp.array(happens, bool))
    zero = jax.tree.map(jnp.zeros_like, gradients[0])
    m_0, m = (zero, zero) if name == "sgd" else (optax.tree.get(s, "trace") for s in (start, state))
    def mixed(w_G, w, m):
      return jax.tree.map(lambda m, *g: w * m + sum(a * b for a, b in zip(w_G, g)), m,
                          *gradients[1:])
    total = jax.tree.map(lambda *u: sum(u), zero, *updates[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -LR * b, atol=1e-12), total,
                 mixed(weight_G, carry, m_0))
    if name != "sgd":
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), m,
                   mixed(keep_G, decay, m_0))


@every_rule
def test_linear_rules_are_linear_in_the_gradients(name, x64):
  a, b = ([tree(i) for i in seeds] for seeds in ((1, 2), (3, 4)))
  both, xs = [jax.tree.map(jnp.add, *pair) for pair in zip(a, b)], [tokens(1), tokens(2)]
  first, second, sum_of = (walk(name, g, xs)[0] for g in (a, b, both))
  error = max(float(jnp.abs(x + y - z).max())
              for x, y, z in zip(*map(jax.tree.leaves, (first, second, sum_of))))
  assert (error < 1e-12) == inner_rules.RULES[name].linear


@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_dgd_never_grows_a_kernel(lr, scale):
  params, norm = tree(0, dtype=jnp.float32), lambda p: np.linalg.norm(p["up"]["kernel"], 2)
  first = norm(params)
  for i in range(5):
    # the same token again and again: the worst case
    x = scale * jnp.repeat(tokens(i)[:1], 5, 0).astype(jnp.float32)
    _, _, after = walk("nl_l2_precond", [jax.tree.map(jnp.zeros_like, params)], [x], params, lr)
    assert norm(after) <= norm(params) * (1 + 1e-6)
    params = after
  assert norm(params) < first or lr * scale ** 2 < 1e-3  # it forgets


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
def test_delta_momentum_never_exceeds_the_largest_gradient(beta, scale, x64):
  tx, largest, state = inner_rules.make("delta_momentum", 1.0, beta=beta), {}, None
  for i in range(20):
    g = tree(i % 3, scale)
    state = tx.init(g) if state is None else state
    m_before = optax.tree.get(state, "trace")
    _, state = tx.update(g, state)
    for (path,
         m), before, g in zip(jax.tree_util.tree_leaves_with_path(optax.tree.get(state, "trace")),
                                    jax.tree.leaves(m_before), jax.tree.leaves(g)):
      key = str(path)
      largest[key] = max(largest.get(key, 0), np.linalg.norm(g, 2))
      assert np.linalg.norm(m, 2) <= largest[key] * (1 + 1e-12)
      # the factor's norm
      assert np.linalg.norm(m - (1 - beta) * g, 2) <= beta * np.linalg.norm(before, 2) + 1e-12


@pytest.mark.slow
@every_rule
def test_derivatives_are_finite_at_zero(name):
  def loss(arguments):  # the second update also depends on the state that the first one left
    gradients, x, params, state, lr, total = *arguments, 0.0
    tx = inner_rules.make(name, lr)
    for _ in range(2):
      updates, state = tx.update(gradients, state, params, inputs=inputs_of(x, params))
      total += sum(jnp.sum(jnp.sin(1 + u)) for u in jax.tree.leaves(updates))
    return total

  first = jax.jit(jax.grad(loss))
  second = jax.jit(jax.grad(lambda a: sum(jnp.sum(jnp.sin(d * 1e-3))
                                          for d in jax.tree.leaves(jax.grad(loss)(a)))))
  for scale in (0.0, 1e-15, 1e-10, 1.0):
    params = tree(0, scale, jnp.float32)
    state = jax.tree.map(lambda z: z + scale ** 2, inner_rules.make(name, LR).init(params))
    arguments = (tree(1, scale, jnp.float32), scale * tokens(0).astype(jnp.float32), params, state,
                 jnp.float32(LR))
    for derivative in (first(arguments), second(arguments)):
      assert all(bool(jnp.isfinite(d).all()) for d in jax.tree.leaves(derivative)), scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@every_rule
def test_streams_and_layers_vmap_under_jit(name, dtype, x64):
  params = [tree(i, dtype=dtype) for i in range(3)]
  gradients, xs = ([tree(10 + i, dtype=dtype) for i in range(3)],
                   [tokens(i).astype(dtype) for i in range(3)])
  def stack(trees):
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)

  def two_updates(lr, params, gradient, x):
    updates, state, _ = walk(name, [gradient, gradient], [x, x], params, lr)
    return updates, state
  batched = jax.jit(jax.vmap(two_updates, (None, 0, 0, 0)))
  together = batched(jnp.asarray(LR, dtype), *map(stack, (params, gradients, xs)))
  alone = stack([two_updates(LR, *one) for one in zip(params, gradients, xs)])
  tolerance = 1e-4 if dtype == jnp.float32 else 1e-10
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
               together, alone)
  assert {a.dtype for a in jax.tree.leaves((together, alone))} == {jnp.dtype(dtype)}


@every_rule
def test_state_starts_at_zero(name):
  state = inner_rules.make(name, LR).init(tree(0))
  jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0), state)
  assert jax.tree.structure(state) == jax.tree.structure(walk(name, [tree(1)])[1])


def test_unknown_rule_lists_the_known_ones():
  with pytest.raises(ValueError,
                     match="no inner optimizer 'adam'; choose one of sgd, momentum, "
                                       "preconditioned, adagrad, dmgd, nl_l2_precond, "
                                       "nl_l2_projector, "
                                       "delta_momentum, muon"):
    inner_rules.make("adam", LR)
