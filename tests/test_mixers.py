"""Laws of every token mixer in the table, alone and three in a pattern; new rows are tested."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config, export
from hope_jax.model import checks, contract, gru, lm, mixers, sharding
from hope_jax.model.state import select
from hope_jax.reading import study
from hope_jax.reading.stream import Stream
from hope_jax.training import costs, steps

VOCAB, TOKENS = 14, 21
CLOSE = dict(atol=3e-5, rtol=1e-4)
PATTERNS = {name: (name,) for name in mixers.TABLE} | {
    "mixed": ("attention", "selfmod", "gru"), "imported": ("attention",)}
LONG = ("titans_mac", "titans_mag", "titans_mal")  # to compile
# what the models of others have (pretrained.py)
FIELDS = {"titans_mac": {"model.dim": 16}, "imported": {
    "model.heads": 4, "model.tied": False, "model.norm_epsilon": 1e-3, "attention.kv_heads": 2,
    "attention.width": 6, "attention.qk_norm": False, "attention.bias": "all",
    "attention.rope_scaling": "llama3", "attention.rope_factor": 4.0,
    "attention.rope_original": 32, "channel.activation": "swiglu", "channel.bias": True}}


def slow_in(names):
  """All patterns, these marked as slow."""
  return [pytest.param(name, marks=pytest.mark.slow) if name in names else name
          for name in PATTERNS]


def tiny(name, titan="none", in_context=False):
  """Two layers of a mixer; of a pattern, four, so that one period is whole and another is not."""
  c = config.base()
  c.model.update(dict(pattern=PATTERNS[name], titan=titan, dim=8, heads=2,
                      layers=len(PATTERNS[name]) + 1, vocab=VOCAB))
  c.channel.update(dict(hidden=1.0, in_context=in_context,
                      levels=(config.Level("fast", 8, lr=0.02),)))
  c.selfmod.update(dict(memory="linear", chunk_generators=4, chunk_memory=4, eta_init=0.5))
  c.titans.update(dict(chunk=4))
  c.mamba.update(dict(entries=4, chunk=8))
  c.gated_deltanet.chunk = 8
  c.titan.update(dict(period=4, lr=0.02))
  c.teach.update(dict(chunk=8, clip=1.0))
  c.titans.update(dict(persistent=2, segment=8, step=0.03))
  if name in ("titans_mag", "titans_mal"):
    c.attention.window = 6
  c.update_from_flattened_dict(FIELDS.get(name, {}))
  c.data.update(dict(task="recall", recall_pairs=2, recall_keys=6, seq=32, align=8, batch=2))
  checks.validate(c)
  return c


@functools.cache
def setup(name):
  """(config, params large enough that everything shows, jitted call)."""
  c, noise = tiny(name), np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + 0.2 * noise.standard_normal(p.shape, np.float32),
                        jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0)))
  call = jax.jit(functools.partial(lm.build(c).apply, {"params": params}),
                 static_argnames="documents")
  return c, params, lambda *args, **kwargs: call(*args, **kwargs)[:2]


def text(seed=0, batch=3, tokens=TOKENS):
  return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, tokens)), jnp.int32)


@pytest.mark.parametrize("name", PATTERNS)
def test_one_call_is_any_split_and_streams_do_not_see_each_other(name):
  c, _, call = setup(name)
  tokens = text()
  whole, end = call(tokens, lm.init_fast(c, 3))
  chex.assert_trees_all_close(whole, call(tokens)[0], **CLOSE)
  fast, out = lm.init_fast(c, 3), []
  for piece in jnp.split(tokens, [1, 8, 15], 1):
    logits, fast = call(piece, fast)
    out.append(logits)
  chex.assert_trees_all_close(jnp.concatenate(out, 1), whole, **CLOSE)
  chex.assert_trees_all_close(fast, end, **CLOSE)
  order = jnp.array([2, 0])
  logits, fewer = call(tokens[order], lm.init_fast(c, 2))
  chex.assert_trees_all_close((logits, fewer), (whole[order], select(end, order)), **CLOSE)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_future_is_not_seen_and_padding_and_packing_change_nothing(name):
  c, _, call = setup(name)
  tokens = text(batch=1)
  whole = call(tokens)[0]
  for at in (3, 12):
    other = call(tokens.at[:, at].set((tokens[:, at] + 1) % VOCAB))[0]
    chex.assert_trees_all_close(other[:, :at], whole[:, :at], **CLOSE)
    assert jnp.abs(other[:, at:] - whole[:, at:]).max() > 1e-3
  left, right = jnp.pad(tokens, ((0, 0), (5, 0))), jnp.pad(tokens, ((0, 0), (0, 5)))
  for padded, real in ((left, slice(5, None)), (right, slice(0, TOKENS))):
    here = jnp.zeros_like(padded).at[:, real].set(1)
    chex.assert_trees_all_close(call(padded, lm.init_fast(c, 1), here)[0][:, real], whole, **CLOSE)
  packed, segments = jnp.concatenate([tokens, text(1, 1)],
                                     1), jnp.repeat(jnp.array([[1, 2]]), TOKENS, 1)
  logits, _ = call(packed, lm.init_fast(c, 1), segments, documents=2)
  chex.assert_trees_all_close(logits, jnp.concatenate([whole, call(text(1, 1))[0]], 1), **CLOSE)


@pytest.mark.parametrize("name", slow_in(LONG))
def test_it_trains_generates_is_exported_placed_and_counted(name):
  c, params, _ = setup(name)
  state = steps.init_state(c, jax.random.key(0))
  batch = dict(tokens=text(2, 2, 32), labels=jnp.roll(text(2, 2, 32), -1, 1),
               segments=jnp.ones((2, 32), jnp.int32))
  step, losses = steps.make_train_step(c), []
  before = jax.tree.map(jnp.copy, state.params)
  for _ in range(4):
    state, out = step(state, batch)
    losses.append(float(out["loss"]))
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  for mixer in mixers.of(c):
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params["blocks"][mixer],
                         before["blocks"][mixer])
    assert all(value > 0 for value in jax.tree.leaves(moved)), moved
  assert len(list(Stream(c, params).generate([1, 2, 3], 5))) == 5
  named = export.tensors(params, c)
  chex.assert_trees_all_equal(export.assembled(named, c), params)
  # nothing twice
  assert len(named) == len({json.dumps(tensor.tolist()) for tensor in named.values()})
  mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
  cut = jax.tree.leaves(sharding.of_params(params, mesh)) + jax.tree.leaves(
      sharding.of_fast(jax.eval_shape(lambda: lm.init_fast(c, 4)), mesh))
  assert any(where.spec for where in cut)
  assert costs.forward_flops(c) > costs.reading_flops(c, 1) * 0.5 > 0


@pytest.mark.parametrize("name", slow_in(("attention", "mixed", *LONG)))
def test_a_titan_memory_and_levels_write_beside_any_mixer(name):
  """In pieces as at once, and each memory acts."""
  c = tiny(name, titan="modified", in_context=True)
  params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  texts = [text(seed, 1, 27)[0].tolist() for seed in (3, 4)]
  fast, report = study.memorize(c, params, lm.init_fast(c, 2), texts)
  assert all(total["updates"] > 0 and total["moved"] > 0 for total in report.totals().values())
  parts = lm.init_fast(c, 2)
  for a, b in ((0, 5), (5, 18), (18, 27)):
    parts, _ = study.memorize(c, params, parts, [one[a:b] for one in texts], final=b == 27)
  chex.assert_trees_all_close(parts, fast, **CLOSE)


def test_the_gru_is_its_equation():
  rng = np.random.default_rng(0)
  u, h = rng.standard_normal((2, 2, 3, 3)), rng.standard_normal((1, 2, 3))
  gate, candidate = rng.standard_normal((2, 1, 2, 3))
  want = np.zeros_like(h)
  for head in range(2):
    f = 1 / (1 + np.exp(-(gate[0, head] + h[0, head] @ u[0, head])))
    want[0, head] = (1 - f) * h[0, head] + f * np.tanh(candidate[0, head]
                                                       + (f * h[0, head]) @ u[1, head])
  np.testing.assert_allclose(gru.step(*map(jnp.asarray, (u, h, gate, candidate))), want, atol=1e-5)


def test_names_that_are_none_and_records_that_are_not_whole_are_refused(monkeypatch):
  c = tiny("gru")
  c.model.pattern = ("gru", "grru")
  with pytest.raises(ValueError,
                     match="grru is no token mixer; choose from attention, selfmod, gru"):
    checks.validate(c)
  monkeypatch.setitem(mixers.TABLE, "half", gru.MIXER._replace(forget=None, parameters=None))
  c.model.pattern = ("half",)
  with pytest.raises(ValueError,
                     match="mixer half has no forget, parameters: give it in its record"):
    checks.validate(c)
  with pytest.raises(TypeError, match="fresh"):
    contract.Mixer(build=gru.build)
  with pytest.raises(ValueError,
                     match="no row for parameter blocks/gru/extra: add one to the parameters of "
                           "its module"):
    sharding.of_params({"blocks": {"gru": {"extra": jnp.zeros(2)}}},
                       jax.sharding.AbstractMesh((1,), ("data",)))


def test_a_pattern_that_is_longer_than_the_model_is_refused():
  c = tiny("mixed")
  c.model.layers = 2
  with pytest.raises(ValueError, match="set model.layers to 3 or more"):
    checks.validate(c)
