"""Rule 1 for whole models: a text that is read and learned in chunks equals a loop over its tokens.

In the loop a model reads one token a call, and each token has weights of its own in every level, so
that the gradient of the chunk's loss in them is that token's. NumPy adds up the gradients of a
period and takes the step (reference_write.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_write as reference
from hope_jax import config
from hope_jax.model import lm, titan
from hope_jax.reading import study
from tests.tiny import parameters, texts, tiny

LR, PERIODS = 0.05, {"fast": 2, "mid": 8, "slow": 16, "titan": 4}
RULES = {"fast": "sgd", "mid": "momentum", "slow": "dmgd", "titan": "sgd"}
pytestmark = pytest.mark.slow


def settings(kind, chunk):
  """A tiny model that learns from `chunk` tokens at once; memories write in the same chunks."""
  c = tiny(kind)
  c.model.dtype = "float64"
  c.channel.levels = tuple(config.Level(name, PERIODS[name], rule=RULES[name], lr=LR)
                         for name in ("fast", "mid", "slow"))
  c.titan.update(dict(period=PERIODS["titan"], lr=LR))
  c.selfmod.update(dict(chunk_generators=chunk, chunk_memory=chunk))
  c.teach.update(dict(chunk=chunk, clip=0.0, scale=0.5))
  return c


def double(tree):
  return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def with_deltas(fast, delta):
  levels = {name: level.replace(delta=delta[name]) for name, level in fast.layers.levels.items()}
  return fast.replace(layers=fast.layers.replace(levels=levels))


def difference(weights, base):
  """{level: tree, layers first} of two {level: [tree of each layer]}."""
  def stack(*leaves):
    return np.stack(leaves)
  return {name: jax.tree.map(stack, *map(functools.partial(jax.tree.map, np.subtract),
                                         weights[name], base[name])) for name in base}


@functools.cache
def look(kind, chunk):
  """(zeros, params, state, tokens, labels) -> (gradient, (nats, state, titan's (a, M(a))))."""
  c = settings(kind, chunk)
  apply = lm.build(c).apply

  def loss(own, params, fast, tokens_N, labels_N):
    learned = {name: level.delta for name, level in fast.layers.levels.items()}

    def token(fast, xs):
      token, label, own = xs
      weights = {name: jax.tree.map(jnp.add, delta, own["levels"][name])
                 for name, delta in learned.items()}
      probes = {"probes": {"block": own["block"]}} if "titan" in learned else {}
      logits, after, notes = apply({"params": params}, token[None, None],
                                   with_deltas(fast, weights), **probes)
      after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, fast)
      nats = jnp.where(label >= 0, -jax.nn.log_softmax(logits[0, 0])[jnp.maximum(label, 0)], 0.0)
      taps = notes.get("taps")
      seen = (taps["titan"][0][:, 0, 0], taps["titan_read"][:, 0, 0]) if taps else ()
      return with_deltas(after, learned), (nats, seen)

    fast, (nats_N, seen) = jax.lax.scan(token, fast, (tokens_N, labels_N, own))
    return jnp.sum(nats_N), (nats_N, fast, seen)

  return jax.jit(jax.grad(loss, has_aux=True))


def loop(kind, chunk, params, text):
  """(nats by token, {level: weights minus parameters, layers first}, updates, rest of state)."""
  c = settings(kind, chunk)
  fast, layers = double(lm.init_fast(c, 1)), range(c.model.layers)
  # inside a document: at its first token a call forgets its levels
  fast = fast.replace(segment_B=np.ones(1, np.int32))
  tokens, labels = np.array(text), np.array(text[1:] + [-1])
  base = {name: [jax.tree.map(lambda p: np.array(p[i]), lm.level_parameters(params["blocks"], name))
                 for i in layers]
          for name in fast.layers.levels}
  weights = jax.tree.map(np.array, base)
  m, v = (jax.tree.map(np.zeros_like, base) for _ in range(2))
  held, updates, nats = {name: [[] for _ in layers] for name in base}, dict.fromkeys(base, 0), []
  for first in range(0, len(text), chunk):
    now = slice(first, first + chunk)
    delta = jax.tree.map(lambda d: d[:, None], difference(weights, base))
    fast = with_deltas(fast, delta)
    own = {"levels": jax.tree.map(lambda d: np.zeros((len(tokens[now]), *d.shape)), delta),
           "block": np.zeros((len(tokens[now]), len(layers), 1, 1, c.model.dim))}
    gradient, (some, fast,
               seen) = jax.device_get(look(kind,
                                           chunk)(own, params, fast, tokens[now], labels[now]))
    nats += some.tolist()
    read = jax.tree.map(np.array, weights)
    for t in range(len(some)):
      for name, i in ((name, i) for name in base for i in layers):
        if name == "titan":
          a_D, read_D, teach_D = (seen[0][t, i], seen[1][t, i],
                                  c.teach.scale * gradient["block"][t, i, 0, 0])
          modifier = jax.tree.map(lambda p: p[i], params["blocks"]["titan"].get("modifier"))
          signal_D = titan.signal(modifier, PERIODS["titan"], a_D, read_D, teach_D)
          g, _ = jax.device_get(reference.look(read[name][i], a_D, signal_D))
        else:
          g = jax.tree.map(lambda a: c.teach.scale * a[t, i, 0], gradient["levels"][name])
        if (labels[now] >= 0).any():  # a chunk that predicts nothing writes nothing
          held[name][i].append(g)
        if held[name][i] and ((first + t + 1) % PERIODS[name] == 0 or first + t + 1 == len(text)):
          total = jax.tree.map(lambda *leaves: np.sum(leaves, 0), *held[name][i])
          def change(*p):
            return reference.step(RULES[name], LR, 0.9, p[0], None, *p[1:])
          moved = jax.tree.map(change, total, weights[name][i], m[name][i], v[name][i])
          weights[name][i] = jax.tree.map(np.add, weights[name][i], moved)
          held[name][i] = []
          updates[name] += i == 0
  return np.array(nats), difference(weights, base), updates, fast


@pytest.mark.parametrize("kind, chunk", [
    ("hope_hybrid", 1), ("hope_hybrid", 8), ("hope_selfmod", 8), ("titan_hybrid", 8),
    *(pytest.param(*case, marks=pytest.mark.nightly) for case in (
        ("hope_selfmod", 1), ("titan_hybrid", 1), ("hope_attention", 1), ("hope_attention", 8)))])
def test_chunks_are_the_token_loop(x64, kind, chunk):
  """Also where the chunk does not divide the text, or is longer."""
  c, params = settings(kind, chunk), double(parameters(kind))
  for length in (21, 5):
    text, = texts(length)
    nats, learned, updates, state = loop(kind, chunk, params, text)
    fast, report = study.memorize(c, params, double(lm.init_fast(c, 1)), [text])
    np.testing.assert_allclose(report.nats_BxT[0][:length], nats, atol=1e-9)
    for name, level in fast.layers.levels.items():
      assert level.updates_B.tolist() == [[updates[name]]] * 2 and updates[
          name] >= length // PERIODS[name]
      jax.tree.map(lambda got, want: np.testing.assert_allclose(got[:, 0], want, atol=1e-9),
                   level.delta, learned[name])
    for got, want in zip(jax.tree.leaves(fast.layers.tokens),
                         jax.tree.leaves(state.layers.tokens), strict=True):
      np.testing.assert_allclose(got, want, atol=1e-9)
