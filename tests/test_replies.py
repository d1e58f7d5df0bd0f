"""Laws of answers: as a loop over whole texts says, in any batch and pieces; a copier copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax import config
from hope_jax.data import recall
from hope_jax.model import checks, lm
from hope_jax.reading import study
from hope_jax.scoring import replies
from tests import tiny

CHOICES = [[[1], [2, 3]], [[4, 5, 6], [7]], [[8], [9, 10]]]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """So that a short text is read in several."""
  monkeypatch.setattr(replies, "PIECE", 16)


def naive(c, params, text, choices, tokens):
  """By whole texts from the start, one after the other."""
  model, size = lm.build(c), 80
  apply = jax.jit(lambda ids: model.apply({"params": params}, ids, lm.init_fast(c, 1))[0])
  def logits(ids):  # causal: what is padded changes nothing before it
    padded = np.zeros((1, size), np.int32)
    padded[0, :len(ids)] = ids
    return apply(padded)[0, :len(ids)]
  nats = []
  for choice in choices:
    p = jax.nn.log_softmax(logits([*text, *choice])[len(text) - 1:-1])
    nats.append(-float(sum(p[i, token] for i, token in enumerate(choice))))
  said = list(text)
  for _ in range(tokens):
    said.append(int(jnp.argmax(logits(said)[-1])))
  return said[len(text):], nats


@pytest.mark.parametrize("kind", ["hope_hybrid",
                                  pytest.param("hope_selfmod", marks=pytest.mark.slow),
                                  *(pytest.param(kind, marks=pytest.mark.nightly)
                                    for kind in ("hope_attention", "titan_hybrid"))])
def test_answers_are_those_of_whole_texts_in_any_batch(kind):
  c, params = tiny.tiny(kind), tiny.parameters(kind)
  contexts, prompts = tiny.texts(40, 37, 19), tiny.texts(5, 1, 9, seed=1)
  fast = replies.read(c, params, lm.init_fast(c, 3), contexts)
  ids_BxN, nats_BxK = replies.ask(c, params, fast, prompts, CHOICES, tokens=4)
  for b, (context, prompt) in enumerate(zip(contexts, prompts)):
    said, nats = naive(c, params, context + prompt, CHOICES[b], 4)
    assert ids_BxN[b].tolist() == said
    np.testing.assert_allclose(nats_BxK[b], nats, rtol=1e-4)


def test_after_a_text_was_memorized_what_was_learned_is_read_with():
  """As studying the prompt and a choice, without writing, says; and not as without memory."""
  kind = "hope_attention"
  c, params, contexts = tiny.tiny(kind, scale=10.0), tiny.parameters(kind), tiny.texts(21, 40, 33)
  prompts = tiny.texts(5, 1, 9, seed=1)
  def learned():
    fast, _ = study.memorize(c, params, lm.init_fast(c, 3), contexts)
    return lm.forget_context(c, fast)
  nats_BxK = replies.ask(c, params, learned(), prompts, CHOICES, tokens=1)[1]
  for k in range(2):
    texts = [[*prompt, *own[k]] for prompt, own in zip(prompts, CHOICES)]
    report = study.memorize(c, params, learned(), texts, write=False)[1]
    for b, own in enumerate(CHOICES):
      nats_T = report.nats_BxT[b][report.labels_BxT[b]]
      np.testing.assert_allclose(nats_BxK[b, k], nats_T[-len(own[k]):].sum(), rtol=1e-4)
  without = replies.ask(c, params, lm.init_fast(c, 3), prompts, CHOICES, tokens=1)[1]
  assert np.abs(without - nats_BxK).max() > 1e-3


def copier():
  """Recalls the value of a key: gated DeltaNet, whose state is the memory of what it read."""
  c = config.base()
  c.model.update(dict(config.PRESETS["gated_deltanet"], dim=32, layers=1, heads=1, vocab=21,
                      embed_std=0.125))
  c.channel.update(dict(kind="swiglu", hidden=1.0))
  c.gated_deltanet.chunk = 8
  c.data.update(dict(task="recall", recall_pairs=4, recall_keys=10, seq=24, align=8, batch=32))
  checks.validate(c)
  return c


def trained(c, steps: int):
  """Parameters after so many steps of 32 sequences."""
  params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  examples, model = recall.dataset(c, "train"), lm.build(c)
  optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 1e-2, 20, steps))

  @jax.jit
  def step(params, state, tokens, labels):
    def loss(params):
      nats = optax.softmax_cross_entropy_with_integer_labels(
          model.apply({"params": params}, tokens)[0], jnp.maximum(labels, 0))
      return jnp.sum(nats * (labels >= 0)) / jnp.sum(labels >= 0)
    grad = jax.grad(loss)(params)
    updates, state = optimizer.update(grad, state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for i in range(steps):
    batch = [examples[32 * i + j] for j in range(32)]
    params, state = step(params, state, *(np.stack([one[key] for one in batch])
                                          for key in ("tokens", "labels")))
  return params


def asked(c, params, count: int = 64):
  """(shares of questions answered rightly in own words, by choice among ten)."""
  examples, rng = recall.dataset(c, "validation"), np.random.default_rng(0)
  contexts, prompts, right = [], [], []
  for i in range(count):
    tokens = examples[i]["tokens"]
    pair = 2 * rng.integers(4)
    contexts.append(tokens[:8].tolist())
    prompts.append([0, int(tokens[pair])])
    right.append(int(tokens[pair + 1]))
  choices = [[[value], *([other] for other in range(11, 21) if other != value)] for value in right]
  fast = replies.read(c, params, lm.init_fast(c, count), contexts)
  ids_BxN, nats_BxK = replies.ask(c, params, fast, prompts, choices, tokens=1)
  return np.mean(ids_BxN[:, 0] == right), np.mean(nats_BxK.argmin(1) == 0)


def test_a_model_that_copies_gets_all_where_chance_is_a_tenth():
  c = copier()
  params = trained(c, 300)
  assert asked(c, params) == (1.0, 1.0)
  untrained = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(1))
  assert asked(c, untrained)[1] < 0.25  # of 64: chance is 0.1, more has a probability of 0.0002


def test_attention_to_everything_says_what_a_longer_context_takes():
  c = tiny.tiny("hope_attention")
  c.channel.in_context, c.attention.window, c.attention.context = False, 0, 64
  replies.check_room(c, 64, "context")
  with pytest.raises(ValueError, match=r"128 tokens .* the 64 .* takes 0\.0 MB .*--context=128"):
    replies.check_room(c, 128, "context")
  c.channel.in_context = True
  replies.check_room(c, 128, "context")  # what memories hold is asked for
  c.channel.in_context, c.attention.window = False, 8
  replies.check_room(c, 10 ** 6, "context")


@pytest.mark.parametrize("said, right", [
    (" 12, 34 and 5", [True, True]), ("123, 34", [False, True]), ("", [False, False])])
def test_answers_are_found_as_whole_words(said, right):
  assert replies.found(said, ("12", "34")) == right
