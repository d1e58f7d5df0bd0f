"""What a language model gives continuations of a prompt: log-likelihoods, many prompts at a time.

    prompts = encode(tokenizer, [("The sky is", [" blue", " made of tin"]), ...])
    for batch in batches(prompts, size=32):
      scores = score(config, params, [prompts[i] for i in batch])

A prompt is read once; all its continuations go on from the state that it left, whatever the model
keeps (keys and values, memories that are written while they read). Nothing else is written. A
prompt's last token gives the continuations' first tokens; most of the head's work is never done.
Lengths are padded to four an octave, so that few shapes compile; prompts of like lengths are
together. Scores depend on neither.

Letters: B prompts, C continuations of each, T tokens, V the vocabulary.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model import attention, lm
from hope_jax.model.state import FastState
from hope_jax.reading import reader


class Prompt(NamedTuple):
  """Token ids: of a prompt, one at least, and of each of its continuations, one at least."""
  ids: list[int]
  continuations: list[list[int]]


class Score(NamedTuple):
  """Of one continuation. greedy: whether each of its tokens is the likeliest where it stands."""
  log_likelihood: float  # natural, summed over its tokens
  greedy: bool


def encode(tokenizer, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Prompt]:
  """(prompt, its continuations) as token ids, as the harness does.

  Spaces at a prompt's end belong to its continuations. A continuation's tokens are those of both
  texts together after as many as the prompt has alone. A prompt begins with <s>, or is the token
  that ends a document where it would be empty.
  """
  pairs = []
  for prompt, continuations in asked:
    bare = prompt.rstrip()
    pairs.append((bare, [prompt[len(bare):] + text for text in continuations]))
  texts = [text for bare, ends in pairs for text in (bare, *(bare + end for end in ends))]
  ids, out = iter(tokenizer.encode_batch(texts)), []
  for bare, ends in pairs:
    own = next(ids)
    after = [next(ids)[len(own):] or tokenizer.encode(end) for end in ends]
    out.append(Prompt([*tokenizer.begin, *own] or [tokenizer.eos], after))
    if not all(after):
      raise ValueError(f"a continuation of {bare[-40:]!r} has no tokens: give it some text")
  return out


def padded(length: int) -> int:
  """The length that is compiled for so many tokens: one of four an octave, at least 4."""
  step = max(4, (1 << max(length - 1, 1).bit_length()) // 8)
  return -(-max(length, 1) // step) * step


def longest(prompts: Sequence[Prompt]) -> int:
  """Tokens of a prompt with its longest continuation."""
  return max(len(prompt.ids) + max(map(len, prompt.continuations)) for prompt in prompts)


def room(tokens: int) -> int:
  """What attention's cache is to hold for so many tokens: a power of two, so few compile."""
  return 1 << (padded(tokens) - 1).bit_length()


class Shape(NamedTuple):
  """What is compiled for: tokens of prompts but their last, of continuations but their first."""
  prompt: int
  rest: int
  continuations: int


def shape(prompts: Sequence[Prompt]) -> Shape:
  """Of a call of `score`, beside the number of streams and the configuration."""
  rest = max(len(ids) for prompt in prompts for ids in prompt.continuations) - 1
  return Shape(padded(max(len(prompt.ids) - 1 for prompt in prompts)), padded(rest) if rest else 0,
               max(len(prompt.continuations) for prompt in prompts))


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
  """Indices of prompts to score together, of like lengths: those of all, each once."""
  def lengths(i):
    ids, continuations = prompts[i]
    return padded(len(ids)), max(map(len, continuations)), i
  order = sorted(range(len(prompts)), key=lengths)
  return [order[i:i + size] for i in range(0, len(order), size)]


def _bare(fast: FastState) -> FastState:
  """Without levels, which nothing has written: the model then reads with its parameters."""
  return fast.replace(layers=fast.layers.replace(levels=None), held_BxC=None)


@functools.lru_cache
def _prompt(config):
  """Reads prompts: (log-probabilities of each continuation's first token, likeliest token, state).

  fast: None for streams that know nothing. Tokens: all but the last of each, `count_B`, padded.
  """
  apply = lm.build(config).apply

  @jax.jit
  def read(params, fast, tokens_BxT, count_B, last_B, first_BxC):
    if fast is None:
      fast = _bare(lm.init_fast(config, len(count_B)))
    weights = lm.current_weights(config, params, fast)
    segments_BxT = (jnp.arange(tokens_BxT.shape[1]) < count_B[:, None]).astype(jnp.int32)
    _, fast, _ = apply({"params": params}, tokens_BxT, fast, segments_BxT, weights=weights)
    logits_Bx1xV, fast, _ = apply({"params": params}, last_B[:, None], fast,
                                  jnp.ones_like(last_B)[:, None], weights=weights)
    log_p_BxV = jax.nn.log_softmax(logits_Bx1xV[:, 0])
    return (jnp.take_along_axis(log_p_BxV, first_BxC, 1), jnp.argmax(log_p_BxV, -1), fast)

  return read


@functools.lru_cache
def _rest(config):
  """Reads on, from one state, one continuation after the other: (log-likelihoods, greedy), CxB."""
  apply = lm.build(config).apply

  @jax.jit
  def read(params, fast, tokens_CxBxT, labels_CxBxT):
    weights = lm.current_weights(config, params, fast)

    def one(own):
      tokens_BxT, labels_BxT = own
      known_BxT = labels_BxT >= 0
      logits, _, _ = apply({"params": params}, tokens_BxT, fast, known_BxT.astype(jnp.int32),
                           weights=weights)
      hit_BxT = jnp.argmax(logits, -1) == labels_BxT
      return (-jnp.sum(reader.token_losses(logits, labels_BxT), 1),
              jnp.all(hit_BxT | ~known_BxT, 1))

    return jax.lax.map(one, (tokens_CxBxT, labels_CxBxT))

  return read


def _table(rows: Sequence[Sequence[int]], fill: int, width: int) -> np.ndarray:
  """Rows of ids, padded at their ends."""
  out = np.full((len(rows), width), fill, np.int32)
  for row, ids in zip(out, rows):
    row[:len(ids)] = ids
  return out


def score(config, params, prompts: Sequence[Prompt], size: int | None = None,
          fast: FastState | None = None) -> list[list[Score]]:
  """The scores of each prompt's continuations.

  Args:
    config: its attention keeps what fits; attention.with_room(config, room(longest(prompts))) is
      enough.
    size: streams that are compiled for: prompts are padded to so many. Default: as they are.
    fast: of as many streams, what each has learned before (memorization.learn); None: nothing.

  Raises ValueError for ids outside the vocabulary, FloatingPointError for scores that are no
  numbers.
  """
  _check(config, prompts)
  missing = (size or len(prompts)) - len(prompts)
  every = [*prompts, *[prompts[-1]] * missing]
  if fast is not None and len(fast.count_B) != len(every):
    raise ValueError(f"{len(every)} prompts for a state of {len(fast.count_B)} streams")
  config = lm.frozen(config)
  size_of = shape(every)
  ends = [[*prompt.continuations, *[[0]] * (size_of.continuations - len(prompt.continuations))]
          for prompt in every]
  first_BxC = np.array([[ids[0] for ids in own] for own in ends], np.int32)
  log_p_BxC, likeliest_B, fast = _prompt(config)(
      params, fast, _table([prompt.ids[:-1] for prompt in every], 0, size_of.prompt),
      np.array([len(prompt.ids) - 1 for prompt in every], np.int32),
      np.array([prompt.ids[-1] for prompt in every], np.int32), first_BxC)
  total_BxC = np.asarray(log_p_BxC, np.float64)
  greedy_BxC = np.asarray(likeliest_B)[:, None] == first_BxC
  if size_of.rest:
    tokens = np.stack([_table([ids[:-1] for ids in own], 0, size_of.rest) for own in zip(*ends)])
    labels = np.stack([_table([ids[1:] for ids in own], -1, size_of.rest) for own in zip(*ends)])
    more_CxB, hits_CxB = jax.device_get(_rest(config)(params, fast, tokens, labels))
    total_BxC, greedy_BxC = total_BxC + more_CxB.T, greedy_BxC & hits_CxB.T
  if not np.isfinite(total_BxC).all():
    raise FloatingPointError("a log-likelihood is not finite: the model's logits are not; look at "
                             "the checkpoint, or write less (teach.scale, a level's lr)")
  return [[Score(float(total_BxC[b, c]), bool(greedy_BxC[b, c]))
           for c in range(len(prompt.continuations))] for b, prompt in enumerate(prompts)]


def _check(config, prompts: Sequence[Prompt]) -> None:
  vocab = config.model.vocab
  for prompt in prompts:
    for ids in (prompt.ids, *prompt.continuations):
      if not ids or not (0 <= min(ids) and max(ids) < vocab):
        raise ValueError(f"{ids[:8]} is no text of a vocabulary of {vocab}: encode with the run's "
                         "tokenizer")
  reader.tell_long(config, longest(prompts))
