"""Laws of choices.py: scores are those of a whole reading, whatever is read together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.model import attention, lm
from hope_jax.reading import study
from hope_jax.scoring import choices, intervals, memorization
from hope_jax.scoring.choices import Prompt
from tests.tiny import KINDS, parameters, texts, tiny

WIDTH = 40


def prompts():
  """Of lengths around the chunk of 8, one of a single token; 1 to 3 continuations, 1 to 9 long."""
  ids = texts(1, 7, 8, 9, 23, 12, seed=1)
  ends = [texts(*lengths, seed=i) for i, lengths in enumerate(
      [(1, 2), (3, 9, 1), (4,), (1, 1), (2, 2, 5), (9, 8)])]
  return list(map(Prompt, ids, ends))


@functools.cache
def whole(kind):
  """(tokens) -> logits of one document without state, compiled once."""
  apply, params = jax.jit(lm.build(tiny(kind)).apply), parameters(kind)
  def logits(ids):
    padding = [0] * (WIDTH - len(ids))  # causal: what follows changes nothing
    return apply({"params": params}, jnp.array([[*ids, *padding]]))[0][0, :len(ids)]
  return logits


def recomputed(kind, prompt, ids):
  """(log-likelihood, greedy) of one continuation, all read anew."""
  logits_TxV = whole(kind)([*prompt.ids, *ids])[len(prompt.ids) - 1:-1]
  log_p_TxV = jax.nn.log_softmax(logits_TxV)
  return (float(log_p_TxV[np.arange(len(ids)), np.array(ids)].sum()),
          bool((jnp.argmax(logits_TxV, -1) == jnp.array(ids)).all()))


def same(got, want):
  np.testing.assert_allclose([each.log_likelihood for own in got for each in own],
                             [each.log_likelihood for own in want for each in own], rtol=2e-4)
  assert [[each.greedy for each in own] for own in got] == [[each.greedy for each in own]
                                                            for own in want]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_read_once_equals_reading_all_anew(kind):
  got = choices.score(tiny(kind), parameters(kind), prompts())
  want = [[choices.Score(*recomputed(kind, prompt, ids)) for ids in prompt.continuations]
          for prompt in prompts()]
  same(got, want)
  assert np.ptp([each.log_likelihood for own in got for each in own]) > 1


def test_batches_order_and_padding_change_nothing():
  c, params, some = tiny("hope_hybrid"), parameters("hope_hybrid"), prompts()
  want = choices.score(c, params, some)
  same(choices.score(c, params, some[::-1])[::-1], want)
  got = [None] * len(some)
  for batch in choices.batches(some, 4):
    for i, own in zip(batch, choices.score(c, params, [some[i] for i in batch], size=4)):
      got[i] = own
  same(got, want)


def test_the_likeliest_continuation_is_greedy():
  c, params = tiny("hope_hybrid"), parameters("hope_hybrid")
  ids = texts(12, seed=3)[0]
  first = int(jnp.argmax(whole("hope_hybrid")(ids)[-1]))
  second = int(jnp.argmax(whole("hope_hybrid")([*ids, first])[-1]))
  other = (second + 1) % 11
  ends = [[first], [first, second], [first, other], [other]]
  scores, = choices.score(c, params, [Prompt(ids, ends)])
  assert [each.greedy for each in scores] == [True, True, False, other == first]


def test_less_room_in_attention_changes_nothing():
  """And a cache that is too short does: then a token sees less."""
  c, params, some = tiny("hope_attention"), parameters("hope_attention"), prompts()
  c.attention.window, c.attention.context = 0, 64
  want = choices.score(c, params, some)
  same(choices.score(attention.with_room(c, choices.room(choices.longest(some))), params, some),
       want)
  short = choices.score(attention.with_room(c, 8), params, some)
  assert abs(short[4][0].log_likelihood - want[4][0].log_likelihood) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_before_is_read_with(kind):
  """As a chunk-wise reading without writes has it, from each stream's own memories."""
  c, params, some = tiny(kind, scale=10.0), parameters(kind), prompts()[1:4]
  how = memorization.Options(True)
  learned, _ = memorization.learn(c, params, lm.init_fast(c, 3), texts(30, 9, 17, seed=7), how)
  got = choices.score(c, params, some, fast=learned)
  asked = [prompt.ids + prompt.continuations[0] for prompt in some]
  _, report = study.memorize(c, params, jax.tree.map(jnp.copy, learned), asked, write=False)
  for b, prompt in enumerate(some):
    nats = report.nats_BxT[b][report.labels_BxT[b]][-len(prompt.continuations[0]):]
    assert got[b][0].log_likelihood == pytest.approx(-nats.sum(), rel=2e-4)
  off = choices.score(c, params, some)
  assert max(abs(on[0].log_likelihood - own[0].log_likelihood) for on, own in zip(got, off)) > 1e-3


class Letters:
  """A tokenizer: two letters are one token where the first stands at an even place."""
  begin, eos = [], 0

  def encode(self, text):
    return [hash(text[i:i + 2]) % 1000 + 1 for i in range(0, len(text), 2)]

  def encode_batch(self, all_texts):
    return list(map(self.encode, all_texts))


def test_continuations_are_encoded_with_their_prompt():
  tokens = Letters()
  one, two, none = choices.encode(tokens, [("abcd ", ["e", "fg"]), ("abc", ["de"]), ("", ["ab"])])
  assert one == Prompt(tokens.encode("abcd"), [tokens.encode(" e"), tokens.encode(" fg")])
  # what stands where two texts meet belongs to the prompt
  assert two == Prompt(tokens.encode("abc"), [tokens.encode("abcde")[2:]])
  assert none == Prompt([0], [tokens.encode("ab")])
  with pytest.raises(ValueError, match="of 'ab' has no tokens"):
    choices.encode(tokens, [("ab", [""])])


def test_four_lengths_an_octave():
  lengths = [choices.padded(n) for n in range(1, 2049)]
  assert all(have >= n for n, have in enumerate(lengths, 1)) and choices.padded(0) == 4
  assert len(set(lengths)) == 32
  assert max(have / n for n, have in enumerate(lengths, 1) if n > 16) < 1.3
  assert [choices.padded(n) for n in (1, 17, 33, 65, 129)] == [4, 20, 40, 80, 160]


def test_what_no_vocabulary_holds():
  c, params = tiny("hope_hybrid"), parameters("hope_hybrid")
  for bad in (Prompt([1, 11], [[1]]), Prompt([1], [[-1]]), Prompt([], [[1]]), Prompt([1], [[]])):
    with pytest.raises(ValueError, match="no text of a vocabulary of 11"):
      choices.score(c, params, [bad])
  with pytest.raises(ValueError, match="1 prompts for a state of 2 streams"):
    choices.score(c, params, [Prompt([1], [[1]])], fast=lm.init_fast(c, 2))


def test_a_model_that_learned_to_copy_is_always_right():
  """Ten continuations of which one repeats the prompt: 100 %, and chance before the training."""
  c = tiny("hope_attention")
  c.model.update(dict(dim=32, layers=1))
  c.channel.in_context = False
  params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  random, rule = np.random.default_rng(0), optax.adam(1e-2)
  apply = lm.build(c).apply

  @jax.jit
  def step(params, state, text_Bx3):
    tokens = jnp.concatenate([text_Bx3, jnp.full((len(text_Bx3), 1), 10), text_Bx3], 1)
    def loss(params):
      logits = apply({"params": params}, tokens)[0][:, 3:-1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, text_Bx3).mean()
    updates, state = rule.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  def right(params):
    drawn = [random.permutation(1000)[:10, None] // [100, 10, 1] % 10 for _ in range(64)]
    some = [[list(map(int, ids)) for ids in own] for own in drawn]
    scores = choices.score(c, params, [Prompt([*ends[i % 10], 10], ends)
                                       for i, ends in enumerate(some)])
    return np.mean([np.argmax([each.log_likelihood for each in own]) == i % 10
                    for i, own in enumerate(scores)])

  low, high = intervals.wilson(right(params), 64)
  assert low < 0.1 < high
  state = rule.init(params)
  for _ in range(400):
    params, state = step(params, state, random.integers(0, 10, (64, 3)))
  assert right(params) == 1.0
