"""Costs equal hand arithmetic, and what is really allocated.

    python -m pytest tests/test_costs.py
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from hope_jax import config
from hope_jax.model import lm, state
from hope_jax.reading import sequences
from hope_jax.training import costs

# compiling is most of the time: the backend need not optimise
M, N, K, T = 3, 5, 7, 11
PRODUCT = 2 * M * N * K


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


A, W = shape(M, K), shape(K, N)


def product(a, w):
  return a @ w


def total(a, w):
  return jnp.sum(jnp.sin(a @ w))


def scanned(a, w):
  return jax.lax.scan(lambda c, _: (c + jnp.sum(jnp.tanh(a * c) @ w), None), 0.0, None, T)[0]


def two_layers(a, w):
  return jnp.sum(jnp.sin(jnp.sin(a @ w) @ w.T))


@jax.custom_vjp
def custom(a, w):
  return a @ w


custom.defvjp(lambda a, w: (a @ w, (a, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


def branches(a, w):
  return jax.lax.cond(jnp.sum(a) > 0, lambda: jnp.sin(a @ w) @ w.T @ w, lambda: a @ w)


def dead(a, w):
  return jax.jit(lambda a, w: (a @ w, jnp.sin(a @ w)))(a, w)[0]


def repeated(a, w):
  return jax.lax.fori_loop(0, T, lambda _, x: x + a @ w, jnp.zeros((M, N)))


def unknown(a, w):
  return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + a @ w, jnp.zeros((M, N)))


@pytest.mark.parametrize("fn, products", [
    (product, 1),
    (jax.jit(product), 1),
    (jax.grad(total), 2),  # forward, and the gradient of the first argument
    (jax.grad(total, (0, 1)), 3),
    (scanned, T),
    (jax.grad(scanned, (0, 1)), 3 * T),
    (jax.grad(two_layers, (0, 1)), 6),
    # both products are computed again for the cosines
    (jax.value_and_grad(jax.checkpoint(two_layers), (0, 1)), 8),
    (jax.grad(jax.checkpoint(two_layers), (0, 1)), 6),  # nobody needs the first time
    (jax.grad(lambda a, w: jnp.sum(jnp.sin(custom(a, w))), (0, 1)), 3),
    (custom, 1),
    (branches, 3),
    (dead, 1),
    (repeated, T),
])
def test_products(fn, products):
  assert costs.count_flops(fn, A, W) == products * PRODUCT


def test_batched_products():
  assert costs.count_flops(jax.vmap(product, (0, None)), shape(T, M, K), W) == T * PRODUCT
  assert costs.count_flops(jax.vmap(product), shape(T, M, K), shape(T, K, N)) == T * PRODUCT
  assert costs.count_flops(jax.grad(lambda a, w: jnp.sum(jax.vmap(total)(a, w))), shape(T, M, K),
                           shape(T, K, N)) == (
      2 * T * PRODUCT)


def test_what_cannot_be_counted_is_an_error():
  with pytest.raises(ValueError, match="while loop.*use jax.lax.scan"):
    costs.count_flops(unknown, A, W)
  with pytest.raises(ValueError, match="conv_general_dilated"):
    costs.count_flops(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"), shape(1, 1, 4, 4),
                      shape(1, 1, 2, 2))


def small(kind, memory="mlp"):
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=16, layers=3, heads=2, vocab=40))
  c.data.update(dict(seq=32, align=8, batch=4))
  c.selfmod.update(dict(memory=memory, chunk_memory=8, chunk_generators=8))
  if kind == "transformer":
    c.channel.update(dict(kind="swiglu", hidden=3.0))
  return c


@functools.cache
def initial(*kind):
  return jax.jit(lambda key: lm.init_params(small(*kind), key))(jax.random.key(0))


KINDS = [("transformer",), ("hope_attention",), ("hope_selfmod", "mlp"), ("hope_selfmod", "linear")]


def test_transformer_formula():
  c = small("transformer")
  dim, hidden, seq = 16, 48, 32
  weights = 3 * (4 * dim**2 + 3 * dim * hidden) + 40 * dim
  def forward(keys):
    return 2 * weights + 3 * 4 * keys * dim  # queries meet keys, and weights values
  assert costs.forward_flops(c) == forward(seq)
  assert costs.model_flops(c) == 3 * forward(seq)
  assert costs.training_flops(c) == 3 * forward(seq)  # AdamW has no products
  assert costs.reading_flops(c, 1) == forward(seq + 1)  # the whole cache, and the token itself
  c.model.remat = "block"
  assert 3 * forward(seq) < costs.training_flops(c) <= 4 * forward(seq)
  c.optim.accumulate = 2
  assert costs.training_flops(c) <= 4 * forward(seq)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "hope_hybrid"])
def test_recomputation_saves_memory_costs_products_and_changes_no_gradient(kind):
  c = small(kind)
  c.data.update(dict(seq=64, align=64, batch=16))
  if kind == "hope_hybrid":
    c.channel.update(dict(in_context=True,
                        levels=(config.Level("fast", 4), config.Level("slow", 64))))
  params = jax.jit(lambda key: lm.init_params(c, key))(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (16, 64), 0, 40)
  batch = {"tokens": tokens, "labels": jnp.roll(tokens, -1, 1), "segments": jnp.ones_like(tokens)}
  flops, peaks, values = [], [], []
  for c.model.remat in ("none", "dots", "block"):
    compute = jax.jit(lambda params: sequences.learn(c, params, batch, None, jnp.array(9)))
    flops.append(costs.count_flops(compute, params))
    compiled, _ = costs.compile_program(compute, params)
    peaks.append(costs.memory(compiled)["peak"])
    values.append(compiled(params))
  assert flops[0] < flops[1] < flops[2] and peaks[0] > peaks[1] > peaks[2], (flops, peaks)
  for other in values[1:]:
    chex.assert_trees_all_close(other, values[0], rtol=1e-4, atol=1e-5)


def test_muon_is_counted():
  c = small("transformer")
  before = costs.training_flops(c)
  c.optim.name = "muon"
  assert costs.optimizer_flops(c) > 0
  assert costs.training_flops(c) == before + costs.optimizer_flops(c)


@pytest.mark.parametrize("kind", KINDS[:2]
                         + [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:]])
def test_counts_are_those_of_real_arrays(kind):
  c = small(*kind)
  count = sum(p.size for p in jax.tree.leaves(initial(*kind)))
  assert costs.parameter_table(c).splitlines()[-1].split()[:2] == ["total", f"{count:,}"]
  assert costs.fast_bytes(c) == state.fast_bytes(lm.init_fast(c, 2))


def test_fast_state_does_not_grow():
  c = small("hope_selfmod", "linear")
  params, fast = initial("hope_selfmod", "linear"), lm.init_fast(c, 2)
  read = jax.jit(lambda tokens, fast: lm.build(c).apply({"params": params}, tokens, fast)[1])
  for _ in range(3):
    fast = read(jnp.ones((2, 12), jnp.int32), fast)
    assert state.fast_bytes(fast) == costs.fast_bytes(c)
  assert fast.count_B.tolist() == [36, 36]


def test_memory_of_a_compiled_program():
  step = jax.jit(lambda w, x: (w + x @ w, jnp.sum(w)), donate_argnums=0)
  compiled, seconds = costs.compile_program(step, shape(64, 64), shape(64, 64))
  used = costs.memory(compiled)
  matrix = 64 * 64 * 4
  assert used["arguments"] == 2 * matrix and used["outputs"] >= matrix + 4
  assert 2 * matrix + 4 <= used["peak"] <= used["arguments"] + used["outputs"] + used["temporaries"]
  assert all(s > 0 for s in seconds.values())


def test_dry_run_names_everything():
  c = small("hope_attention")  # compiles quickly
  c.channel.levels = (config.Level("fast", 0), config.Level("slow", 64))
  text = costs.dry_run(c)
  for name in ("blocks/attention", "blocks/cms/slow", "embed/embedding", "fast state per stream",
               "model FLOPs", "decoding", "temporaries", "peak", "time to compile"):
    assert name in text, name
