"""Laws of the language model: cuts, packing, padding, batches change nothing; no future leaks.

    python -m pytest tests/test_model.py -m 'not slow'
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import block as blocks, checks, lm, slots
from hope_jax.model.cms import CMS
from hope_jax.model.state import select

VOCAB, TOKENS = 23, 26
# compiling is most of the time: the backend need not optimise
CLOSE = dict(atol=2e-5, rtol=1e-5)


SELFMOD = {
    "mlp": dict(chunk_memory=8, chunk_generators=4),
    "linear": dict(memory="linear", chunk_memory=8, chunk_generators=4, conv="shared",
                   momentum=0.5),
    "mixed": dict(chunk_memory=4, chunk_generators=6, conv="none", momentum=0.5, adaptive_q=True),
}
KINDS = ["transformer", "window", "mlp", "linear"]
KINDS += [pytest.param(name, marks=pytest.mark.slow) for name in ("hope_attention", "mixed")]
FEWER = [pytest.param(name, marks=pytest.mark.slow) if name == "mlp" else name for name in KINDS]


def kind(name):
  """A tiny configuration of a model kind."""
  c = config.base()
  names = {"window": "transformer"} | dict.fromkeys(SELFMOD, "hope_selfmod")
  c.model.update(dict(config.PRESETS[names.get(name, name)], dim=16, layers=2, heads=2,
                      vocab=VOCAB))
  c.attention.update(dict(context=32, window=5 if name == "window" else 0))
  c.channel.update(dict(kind="swiglu" if names.get(name, name) == "transformer" else "cms",
                      levels=(config.Level("fast", 0), config.Level("slow", 64))))
  c.selfmod.update(dict(eta_init=0.5, alpha_init=0.9, bound=4.0) | SELFMOD.get(name, {}))
  return c


@functools.cache
def setup(name):
  """(jitted call, call without a state, params, fresh state) of a kind; matrices are large."""
  c = kind(name)
  params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  noise = np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape, np.float32), params)
  apply = functools.partial(lm.build(c).apply, {"params": params})
  call = jax.jit(lambda *args, documents: apply(*args, documents=documents)[:2],
                 static_argnames="documents")
  whole = jax.jit(lambda tokens, *args, **options: apply(tokens, None, *args, **options)[0],
              static_argnames=("documents", "aligned"))
  return call, whole, params, functools.partial(lm.init_fast, c)


def text(seed=0, batch=4, tokens=TOKENS):
  return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, tokens)))


def feed(name, tokens, cuts, fast, segments=None):
  """Logits and state after `tokens` cut at `cuts`: calls right-padded to 8, or a single token."""
  segments = jnp.ones_like(tokens) if segments is None else segments
  out = []
  for a, b in zip([0, *cuts], [*cuts, tokens.shape[1]]):
    def pad(x):
      return jnp.pad(x[:, a:b], ((0, 0), (0, 0 if b - a == 1 else 8 - (b - a))))
    logits, fast = setup(name)[0](pad(tokens), fast, pad(segments), documents=4)
    out.append(logits[:, :b - a])
  return jnp.concatenate(out, 1), fast


@pytest.mark.parametrize("name", FEWER)
def test_any_split_into_calls_is_one_call(name):
  call, whole, _, fresh = setup(name)
  tokens, rng = text(), np.random.default_rng(3)
  want, state = call(tokens, fresh(4), jnp.ones_like(tokens), documents=1)
  chex.assert_trees_all_close(want, whole(tokens), **CLOSE)
  splits = [range(1, TOKENS), [8, 16, 24], [5, 6, 12, 13, 21]]  # one by one; whole chunks; anywhere
  splits += [sorted({8, 16, 24} | set(rng.integers(1, TOKENS, 4).tolist())) for _ in range(3)]
  for cuts in splits:
    got = feed(name, tokens, cuts, fresh(4))
    chex.assert_trees_all_close(got, (want, state), **CLOSE, custom_message=str(cuts))


@pytest.mark.parametrize("name", FEWER)
def test_packed_padded_and_separate_documents_agree(name):
  _, whole, _, fresh = setup(name)
  lengths, rng = (7, 1, 10, 4), np.random.default_rng(0)
  docs = text(1)
  alone = whole(docs)  # what follows a document does not matter
  rows = [(0, 1, 2, 3), (3, 2, 0, 1), (1, 0, 3, 2), (2, 3, 1, 0)]
  for spread in (False, True):  # one after another at the front; padding anywhere
    tokens, segments, places = np.full((4, TOKENS), 5), np.zeros((4, TOKENS), int), []
    for row, order in enumerate(rows):
      where = (np.sort(rng.choice(TOKENS, sum(lengths), replace=False)) if spread
               else np.arange(sum(lengths)))
      for d, at in zip(order, np.split(where, np.cumsum([lengths[d] for d in order])[:-1])):
        tokens[row, at], segments[row, at] = docs[d, :lengths[d]], d + 1
        places.append((row, d, at))
    tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
    logits = whole(tokens, segments, documents=4)
    streamed, state = feed(name, tokens, [8, 16, 21], fresh(4), segments)
    for row, d, at in places:
      chex.assert_trees_all_close(logits[row, at], alone[d, :lengths[d]], **CLOSE)
      chex.assert_trees_all_close(streamed[row, at], alone[d, :lengths[d]], **CLOSE)
    assert state.segment_B.tolist() == [4, 2, 3, 1] and state.count_B.tolist() == [4, 1, 10, 7]
    here, alone_1 = (select(state, jnp.array([1])).layers,
                     feed(name, docs[1:2, :1], [], fresh(1))[1].layers)
    # what lies in a cache beyond the document does not count
    for mixer in here.tokens.keys() - {"attention"}:
      chex.assert_trees_all_close(here.tokens[mixer], alone_1.tokens[mixer], **CLOSE)


@pytest.mark.parametrize("name", ["window", "mlp", "linear"])
def test_aligned_windows_are_separate_documents(name):
  _, whole, _, _ = setup(name)
  docs = text(2)
  alone, tokens, segments = whole(docs), jnp.zeros((4, TOKENS), int), jnp.zeros((4, TOKENS), int)
  # multiples of the grid, padding between
  for d, (start, length) in enumerate([(0, 7), (8, 9), (24, 2)]):
    tokens = tokens.at[:, start:start + length].set(docs[d, :length])
    segments = segments.at[:, start:start + length].set(d + 1)
  logits = whole(tokens, segments, aligned=True)
  for d, (start, length) in enumerate([(0, 7), (8, 9), (24, 2)]):
    chex.assert_trees_all_close(logits[:, start:start + length],
                                alone[d:d + 1, :length].repeat(4, 0), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_padded_prompts_go_on_as_each_alone(name):
  call, whole, _, fresh = setup(name)
  lengths, more = np.array([1, 8, 5, 3]), 5
  tokens, after = text(7), []
  want = whole(tokens)
  for gap in (0, 8 - lengths):  # right padding, left padding
    column = np.arange(8) - np.zeros(4, int)[:, None] - np.reshape(gap, (-1, 1))
    here = (column >= 0) & (column < lengths[:, None])
    prompt = jnp.take_along_axis(tokens, jnp.asarray(column % TOKENS), 1)
    logits, state = call(prompt, fresh(4), jnp.asarray(here, int), documents=4)
    chex.assert_trees_all_close(logits[here],
                                jnp.concatenate([w[:n] for w, n in zip(want, lengths)]), **CLOSE)
    rest = jnp.stack([t[n:n + more] for t, n in zip(tokens, lengths)])
    logits, state = feed(name, rest, range(1, more), state)
    chex.assert_trees_all_close(logits, jnp.stack([w[n:n + more] for w, n in zip(want, lengths)]),
                                **CLOSE)
    after.append(state)
  chex.assert_trees_all_close(*after, **CLOSE)
  for i in (0, 2):
    unpadded = feed(name, tokens[i:i + 1, :lengths[i] + more], range(1, lengths[i] + more),
                    fresh(1))[1]
    chex.assert_trees_all_close(select(after[0], jnp.array([i])), unpadded, **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_streams_do_not_see_each_other(name):
  call, _, _, fresh = setup(name)
  call, ones = functools.partial(call, documents=4), jnp.ones((4, 8), int)
  tokens = text(5, tokens=8)
  here = jnp.asarray(np.arange(8) < np.array([[2], [7], [4], [5]]), int)
  _, phases = call(tokens, fresh(4), here)  # every stream at a place of its own
  logits, state = call(tokens, phases, ones)
  order = jnp.array([2, 0, 3, 1])
  chex.assert_trees_all_equal(call(tokens[order], select(phases, order), ones),
                              (logits[order], select(state, order)))
  others, _ = call(tokens.at[1:].set((tokens[1:] + 1) % VOCAB), phases, ones)
  chex.assert_trees_all_equal(others[0], logits[0])
  at = jnp.array([2])
  # without the others, and one by one
  alone = feed(name, tokens[at], range(1, 8), select(phases, at))
  chex.assert_trees_all_close(alone, (logits[at], select(state, at)), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_the_future_does_not_leak(name):
  _, whole, _, _ = setup(name)
  tokens = text()
  base = whole(tokens)
  for t in range(1, TOKENS, 3):
    changed = whole(tokens.at[:, t].set((tokens[:, t] + 1) % VOCAB))
    chex.assert_trees_all_equal(changed[:, :t], base[:, :t])
    assert (jnp.abs(changed[:, t:] - base[:, t:]).max((0, 2)) > 0).any()


@pytest.mark.parametrize("name", ["window", "linear"])
def test_scanned_layers_are_the_blocks_one_after_another(name):
  _, whole, params, _ = setup(name)
  c, tokens, zero = kind(name), text(), jnp.zeros(4, int)
  layout = slots.arrange(jnp.ones_like(tokens), zero, zero, lm.chunk_grid(c), aligned=True)
  embedding = params["embed"]["embedding"]
  x = embedding[tokens] / c.model.embed_std
  block = jax.jit(lambda p, x: blocks.Block(lm.build(c).config,
                                        c.model.pattern[0]).apply({"params": p}, x, None, layout,
                                                                  None, {}, {}, True)[0])
  for i in range(c.model.layers):
    x = block(jax.tree.map(lambda p: p[i], params["blocks"]), x)
  x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * params["norm"]["scale"]
  # and the head is the embedding
  chex.assert_trees_all_close(whole(tokens), x @ embedding.T, **CLOSE)


@pytest.mark.parametrize("name", ["window", "linear"])
def test_unknown_tokens_read_nan_and_other_streams_numbers(name):
  _, whole, _, _ = setup(name)
  base = whole(text())
  for bad in (VOCAB, -1, 10**6):
    logits = whole(text().at[0, 9].set(bad))
    assert jnp.isnan(logits[0, 9]).all()
    chex.assert_trees_all_equal(logits[1:], base[1:])


def test_documents_beyond_the_room_read_nan_and_never_a_wrong_number():
  _, whole, _, _ = setup("linear")
  tokens = text()
  segments = jnp.repeat(jnp.arange(1, 14), 2)[None].repeat(4, 0)
  want, logits = whole(tokens, segments, documents=13), whole(tokens, segments, documents=1)
  lost = jnp.isnan(logits).any(-1)
  chex.assert_trees_all_close(logits[~lost], want[~lost], **CLOSE)
  assert not lost[:, :2].any() and lost[:,
                                        -1].all() and jnp.isnan(
                                            logits[lost]).all() and jnp.isfinite(want).all()


def test_dropout_only_with_a_key():
  c = kind("window")
  _, whole, params, _ = setup("window")
  c.model.dropout = 0.5
  apply = jax.jit(lambda rng: lm.build(c).apply({"params": params}, text(), rng=rng)[0])
  a, b = apply(jax.random.key(0)), apply(jax.random.key(1))
  assert (jnp.abs(a - b).max((1, 2)) > 1e-3).all()
  chex.assert_trees_all_equal(a, apply(jax.random.key(0)))
  chex.assert_trees_all_close(apply(None), whole(text()), **CLOSE)


@pytest.mark.slow
def test_rematerialised_blocks_give_the_same_values_and_gradients():
  c, params, got = kind("linear"), setup("linear")[2], []
  for remat in checks.CHOICES["model.remat"]:
    c.model.remat = remat
    model = lm.build(c)
    def loss(p):
      return jnp.mean(jax.nn.log_softmax(model.apply({"params": p}, text())[0])[..., 0])
    got.append(jax.jit(jax.value_and_grad(loss))(params))
  for other in got[1:]:
    chex.assert_trees_all_close(other, got[0], **CLOSE)
  chex.assert_tree_all_finite(got)  # T is no multiple of the chunk: there is padding, too
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(got[0][1]["blocks"]["selfmod"]))


def test_cms_is_its_equation():
  x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
  def gelu(a):
    return np.asarray(jax.nn.gelu(a, approximate=False))
  def level(p, x):
    h = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    return gelu(h @ p["up"]["kernel"]) @ p["down"]["kernel"]
  for connection in ("sequential", "nested", "independent"):
    module = CMS(("a", "b", "c"), connection, 12, 2, "rms", "gelu", False, 1e-6, False)
    params = module.init(jax.random.key(0), x, {}, {})["params"]
    params = jax.tree.map(lambda p: p + 0.3 * np.arange(p.size).reshape(p.shape) / p.size, params)
    y = x
    if connection == "independent":
      share = np.exp(params["share"]) / np.exp(params["share"]).sum() * 3
      y = x + sum(s * level(params[name], x) for s, name in zip(share, "abc"))
    else:
      for name in "abc":
        y = y + level(params[name], y)
    chex.assert_trees_all_close(x + module.apply({"params": params}, x, {}, {})[0], y, atol=1e-4,
                                rtol=1e-4)
