"""A control changes what it says and nothing else.

    python -m pytest tests/test_controls.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import checks, lm, parameters, sharding
from hope_jax.reading import study
from hope_jax.training import optimizer

VOCAB, TOKENS, CHUNK = 11, 16, 4
MIXERS = ["selfmod", "titans_lmm", "gated_deltanet"]


def tiny(mixer, **control):
  c = config.base()
  c.model.update(dict(pattern=(mixer,), dim=8, heads=2, layers=1, vocab=VOCAB))
  c.selfmod.update(dict(chunk_generators=CHUNK, chunk_memory=CHUNK, memory="mlp"))
  c.gated_deltanet.chunk = c.titans.chunk = c.teach.chunk = CHUNK
  c.titans.forget = False
  c.data.update(dict(seq=TOKENS, align=CHUNK))
  c.teach.paths = ("none",) if control.pop("off", False) else ()
  c.control.update(control)
  checks.validate(c)
  return c


@functools.cache
def initial(mixer):
  noise = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(0.4 * noise.standard_normal(s.shape), s.dtype),
                      jax.eval_shape(lambda: lm.init_params(tiny(mixer), jax.random.key(0))))


@functools.cache
def read(mixer, tokens=TOKENS, **control):
  """(logits, the token mixer's state) of a text under a control, with the same parameters."""
  c = tiny(mixer, **control)
  text = jnp.arange(tokens)[None] * 7 % VOCAB
  call = jax.jit(lambda params: lm.build(c).apply({"params": params}, text, lm.init_fast(c, 1)))
  logits, fast, _ = call(initial(mixer))
  return logits, fast.layers.tokens[mixer]


def weights(mixer, state):
  """What is written, as a list of arrays."""
  memory = state.memory_BxHxKxK if mixer == "gated_deltanet" else state.memory
  return jax.tree.leaves(memory.get("run", memory) if isinstance(memory, dict) else memory)


def distance(a, b):
  return max(float(jnp.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mixer", MIXERS)
def test_off_nothing_is_written_and_reset_nothing_is_found(mixer):
  on, off, reset = (read(mixer, **control) for control in ({}, {"off": True}, {"reset": True}))
  assert distance(weights(mixer, on[1]), weights(mixer, off[1])) > 1e-3
  assert float(jnp.abs(on[0] - off[0]).max()) > 1e-3
  if mixer == "gated_deltanet":  # read after it is written: it finds its own chunk
    np.testing.assert_allclose(reset[0][:, :CHUNK], on[0][:, :CHUNK], atol=1e-5)
    assert float(jnp.abs(reset[0] - on[0])[:, CHUNK:].max()) > 1e-3
  else:  # what is read was there at the chunk's start
    np.testing.assert_allclose(reset[0], off[0], atol=1e-5)
    assert distance(weights(mixer, reset[1]), weights(mixer, off[1])) > 1e-3


def test_with_the_other_sign_the_first_chunk_is_written_the_other_way():
  def written(**control):
    _, state = read("titans_lmm", CHUNK, **control)
    return weights("titans_lmm", state)
  ahead, back, off = written(), written(sign=-1), written(off=True)
  for a, b, start in zip(ahead, back, off):
    np.testing.assert_allclose(a - start, start - b, atol=1e-6)
  assert distance(ahead, off) > 1e-3
  for mixer in MIXERS:
    assert distance([read(mixer)[0]], [read(mixer, sign=-1)[0]]) > 1e-4


@pytest.mark.parametrize("mixer", ["titans_lmm", "gated_deltanet"])
def test_asked_with_keys_it_is_the_model_whose_queries_are_its_keys(mixer):
  c, own = tiny(mixer), initial(mixer)
  def same(path, p):
    if sharding.path_name(path).endswith(("qkv/kernel", "conv")):
      dim = c.model.dim
      return p.at[..., :dim].set(p[..., dim:2 * dim])
    return p
  params = jax.tree_util.tree_map_with_path(same, own)
  text = jnp.arange(TOKENS)[None] * 7 % VOCAB
  want = jax.jit(lambda p: lm.build(c).apply({"params": p}, text)[0])(params)
  np.testing.assert_allclose(read(mixer, keys_as_queries=True)[0], want, atol=1e-5)
  assert distance([read(mixer)[0]], [want]) > 1e-3


@pytest.mark.parametrize("mixer", ["selfmod", "titans_lmm"])
def test_frozen_initial_values_stay_and_all_else_moves(mixer):
  c = tiny(mixer, frozen=True)
  c.optim.warmup = 0
  tx, params = optimizer.make(c), initial(mixer)
  updates, _ = jax.jit(lambda p: tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p))(params)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    name = sharding.path_name(path)
    frozen = parameters.row(name).initial and "cms" not in name  # the level does not write
    assert bool((update == 0).all()) == frozen, name


def test_controls_of_the_teach_signal_change_only_what_levels_write():
  def memorized(**control):
    c = tiny("gated_deltanet", **control)
    c.channel.in_context, c.channel.levels = True, (config.Level("fast", CHUNK, lr=0.1),)
    text = (np.arange(TOKENS) * 7 % VOCAB).tolist()
    params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
    fast, report = study.memorize(c, params, lm.init_fast(c, 1), [text])
    return jax.tree.leaves(fast.layers.levels["fast"].delta), report.totals()["cms_fast"]
  (plain, _), (back, _), (other, totals), (fresh, _) = (
      memorized(**control) for control in ({}, {"sign": -1}, {"shuffled_teach": True},
                                           {"reset": True}))
  assert all(distance(plain, one) > 1e-6 for one in (back, other, fresh))
  assert totals["updates"] == TOKENS // CHUNK


def test_after_a_reset_a_call_that_writes_nothing_finds_nothing_either():
  """Its weights are added up before it reads."""
  def found(**control):
    c = tiny("gated_deltanet", **control)
    c.channel.in_context, c.channel.levels = True, (config.Level("fast", CHUNK, lr=0.1),)
    params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
    fresh = lm.current_weights(c, params, lm.init_fast(c, 1))
    fast, _ = study.memorize(c, params, lm.init_fast(c, 1), [(np.arange(TOKENS) % VOCAB).tolist()])
    return distance(jax.tree.leaves(lm.current_weights(c, params, fast)), jax.tree.leaves(fresh))
  assert found() > 1e-6 and found(reset=True) == 0
