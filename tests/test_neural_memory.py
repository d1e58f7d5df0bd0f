"""Titans' memory against a loop over tokens: outputs, state, gradients; what it becomes when its
parts are off; and the arrays of titans-pytorch (parity/README.md).

    python -m pytest tests/test_neural_memory.py
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import neural_memory

WIDTH, HIDDEN, TOKENS, CHUNK = 4, 3, 11, 4


def weights(depth, residual=True, seed=0):
  rng = np.random.default_rng(seed)
  widths = [WIDTH, *[HIDDEN] * (depth - 1), WIDTH]
  out = {f"w_{i}": jnp.asarray(rng.standard_normal(shape))
         for i, shape in enumerate(zip(widths[1:], widths))}
  return out | ({"gain": jnp.asarray(rng.standard_normal(WIDTH))} if residual else {})


def tokens(seed=0, padding=()):
  """With a second document at the third chunk; some tokens are padding."""
  rng = np.random.default_rng(seed)
  real = ~np.isin(np.arange(TOKENS), padding)
  q, k, v = rng.standard_normal((3, WIDTH, TOKENS))
  first = np.isin(np.arange(TOKENS), (0, 2 * CHUNK))
  return jax.tree.map(jnp.asarray, neural_memory.Token(
      q, k / np.linalg.norm(k, axis=0), v, np.where(real, 0.1 * rng.random(TOKENS), 0),
      np.where(real, rng.random(TOKENS), 1), np.where(real, 0.3 * rng.random(TOKENS), 0), real,
      first, np.arange(TOKENS) % CHUNK == 0))


def network(w, z_D):
  """One input at a time, as the paper and its camera-ready's code have it."""
  h = z_D
  for i in range(len(w) - ("gain" in w)):
    h = w[f"w_{i}"] @ (jax.nn.gelu(h, approximate=False) if i else h)
  if "gain" not in w:
    return h
  h = (h - h.mean()) / jnp.sqrt(h.var() + 1e-5)
  return z_D + (1 + w["gain"]) * h


def loop(params, state, token):
  """The definition, token by token, with jax.grad."""
  state = state or neural_memory.fresh(params)

  def step(state, t):
    def where(at, a, b):
      return jax.tree.map(lambda x, y: jnp.where(at, x, y), a, b)
    state = where(t.first_T, neural_memory.fresh(params), state)
    start = where(t.boundary_T, state["run"], state["start"])
    g = jax.grad(lambda w: jnp.sum((network(w, t.k_DxT) - t.v_DxT) ** 2))(start)
    surprise = jax.tree.map(lambda s, g: t.momentum_T * s - t.step_T * g, state["surprise"], g)
    run = jax.tree.map(lambda w, s: (1 - t.forget_T) * w + s, state["run"], surprise)
    written = where(t.valid_T, (run, surprise), (state["run"], state["surprise"]))
    return dict(zip(("start", "run", "surprise"), (start, *written))), network(start, t.q_DxT)

  by_token = neural_memory.Token(*(jnp.moveaxis(a, -1, 0) for a in token))
  state, y_TxD = jax.lax.scan(step, state, by_token)
  return state, y_TxD.T


def everything(run, params, token):
  """(state but for what is read, outputs, gradients of a loss that hears of all of them)."""
  weight = np.random.default_rng(9).standard_normal((WIDTH, TOKENS))
  flags = {name: getattr(token, name) for name in ("valid_T", "first_T", "boundary_T")}
  def loss(params, numbers):
    # of padding nothing has a gradient
    numbers = {name: jnp.where(flags["valid_T"] | (a.ndim > 1), a, jax.lax.stop_gradient(a))
               for name, a in numbers.items()}
    state, y = run(params, None, neural_memory.Token(**numbers, **flags))
    state = {part: state[part] for part in ("run", "surprise")}
    return (jnp.sum(weight * y) + sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(state)),
            (state, y))
  numbers = {name: a for name, a in token._asdict().items() if name not in flags}
  return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, numbers)


def compare(depth, residual, dtype, **tolerance):
  params, token = jax.tree.map(
      lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype),
      (weights(depth, residual), tokens(padding=(6, 10))))
  chunked = functools.partial(neural_memory.run, size=CHUNK, remat=2)
  both = jax.jit(lambda *args: (everything(chunked, *args), everything(loop, *args)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *both(params, token))


@pytest.mark.parametrize("depth, residual", [(1, False), (2, True), (4, True)])
def test_chunked_is_the_loop_in_outputs_state_and_gradients(x64, depth, residual):
  compare(depth, residual, np.float64, atol=1e-10)


def test_and_in_float32():
  compare(2, True, np.float32, atol=3e-5, rtol=1e-4)


def test_in_pieces_and_token_by_token_it_is_the_loop(x64):
  params, token = weights(2), tokens()
  want, y = jax.jit(lambda *args: loop(params, None, *args))(token)
  run = jax.jit(functools.partial(neural_memory.run, size=CHUNK))
  for cuts in ((4, 8), range(1, TOKENS)):
    state, out = neural_memory.fresh(params), []
    for a, b in zip([0, *cuts], [*cuts, TOKENS]):
      state, piece = run(params, state, jax.tree.map(lambda x: x[..., a:b], token))
      out.append(piece)
    np.testing.assert_allclose(jnp.concatenate(out, 1), y, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), state, want)


def test_linear_without_momentum_and_forgetting_is_online_gradient_descent(x64):
  """W <- W - step 2 (W k - v) k^T, every token at the weights that the one before left."""
  token = tokens()._replace(momentum_T=jnp.zeros(TOKENS), forget_T=jnp.zeros(TOKENS),
                            first_T=jnp.arange(TOKENS) == 0, boundary_T=jnp.ones(TOKENS, bool))
  params = weights(1, residual=False)
  state, y = jax.jit(functools.partial(neural_memory.run, size=1))(params, None, token)
  w = np.asarray(params["w_0"])
  for t in range(TOKENS):
    q, k, v = (np.asarray(a[:, t]) for a in token[:3])
    np.testing.assert_allclose(y[:, t], w @ q, atol=1e-12)
    w = w - float(token.step_T[t]) * 2 * np.outer(w @ k - v, k)
  np.testing.assert_allclose(state["run"]["w_0"], w, atol=1e-12)


def titans_pytorch(arrays, seq_TxD, size, momentum):
  """Its NeuralMemory on `gradients`, `moves` and `write`: (retrieved, state).

  One momentum and one forgetting a chunk, gradients at the initial weights, means over the width;
  a chunk's last token already reads what the chunk has written.
  """
  def norm(x, name):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True)) * arrays[f"w.{name}_norm.weight"]
  def gate(x, name):
    w = arrays[f"w.to_{name}.0.weight"], arrays[f"w.to_{name}.0.bias"]
    return jax.nn.sigmoid(x @ w[0].T + w[1])[..., 0]
  names = sorted(name for name in arrays if name.startswith("w.memory_model.model"))
  params = {f"w_{i}": jnp.asarray(arrays[name]).T for i, name in enumerate(names)}
  params["gain"] = jnp.asarray(arrays["w.memory_model.norm.gamma"])
  x, ask = norm(seq_TxD, "store"), norm(seq_TxD, "retrieve")
  q_TxD = ask @ arrays["w.to_queries.weight"].T
  width, at = seq_TxD.shape[1], jnp.arange(size)

  def chunk(state, xs):
    piece, asked_CxD = xs
    k, v = ((piece @ arrays[f"w.to_{name}.weight"].T).T for name in ("keys", "values"))
    forcing, inputs = neural_memory.gradients(params, k, v)
    step, mean = gate(piece, "adaptive_step") / width, piece.mean(0)
    once = at == size - 1  # M takes S in once, at the chunk's end
    speed = gate(mean, "momentum") if momentum else 0.0
    own = neural_memory.moves(jnp.where(at == 0, speed, 1.0),
                              jnp.where(once, gate(mean, "decay_factor"), 0.0), once)
    state = neural_memory.write(state, {name: step * f for name, f in forcing.items()}, inputs, own)
    return state, neural_memory.answer(state["run"], asked_CxD.T)[0].T

  state = {"run": params, "surprise": jax.tree.map(jnp.zeros_like, params)}
  pieces = (a.reshape(-1, size, width) for a in (x, jnp.roll(q_TxD, 1 - size, 0)))
  state, out = jax.lax.scan(chunk, state, tuple(pieces))
  first = neural_memory.answer(params, q_TxD[:size - 1].T)[0].T
  return jnp.concatenate([first, out.reshape(-1, width)])[:len(seq_TxD)], state


@pytest.mark.parametrize("name", ["default", "nomomentum", "depth1"])
def test_it_is_titans_pytorch_but_for_its_one_gate_a_chunk(name, x64):
  arrays = dict(np.load(pathlib.Path(__file__).parent / "parity" / f"titans_nm_{name}.npz"))
  c = json.loads(str(arrays.pop("config_json")))
  run = functools.partial(titans_pytorch, arrays, size=c["chunk_size"],
                          momentum=c.get("momentum", True))

  @jax.jit
  def read(seq):
    out, state = jax.vmap(run)(seq)
    return jnp.sum(out ** 2), (out, state)

  gradient, (out, state) = jax.jit(jax.grad(read, has_aux=True))(jnp.asarray(arrays["seq"]))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
  close(out, arrays["retrieved"])
  close(gradient, arrays["grad_seq_of_sum_sq"])
  for part, theirs in (("run", "last_update"), ("surprise", "last_momentum")):
    if f"state.{theirs}.norm.gamma" not in arrays:
      continue
    close(state[part]["gain"], arrays[f"state.{theirs}.norm.gamma"].reshape(2, -1))
    for i in range(len(state[part]) - 1):
      wanted = arrays[f"state.{theirs}.model.weights.{i}"]
      close(state[part][f"w_{i}"].swapaxes(1, 2), wanted.reshape(2, *wanted.shape[-2:]))
