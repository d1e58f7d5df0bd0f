"""What streams answer after what they have read: in their own words, and which of some choices.

    fast = read(config, params, lm.init_fast(config, B), contexts)  # nothing is written
    ids_BxN, nats_BxK = ask(config, params, fast, prompts, choices, tokens=32)

Contexts are read in pieces, with all that streams remember in their fast state: memory does not
grow with them, but for what attention to everything keeps (`check_room`). Choices and answer start
from the same state, after the prompt, which is read once. No level is written; self-modifying
memories are, since so they read.
"""

from collections.abc import Sequence
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model import lm, plan, state
from hope_jax.model.state import FastState
from hope_jax.reading import reader

PIECE, SHORTEST = 512, 16  # tokens read in a call; a last one is a power of two


def check_room(config, tokens: int, flag: str) -> None:
  """ValueError where attention to everything keeps fewer tokens than a text has.

  It says what keeping them would take, and by which flag. A model that writes memories may be asked
  about more than attention keeps.
  """
  a = config.attention
  keeps = a.context or config.data.seq
  if "attention" not in config.model.pattern or a.window or tokens <= keeps:
    return
  wide = config.copy_and_resolve_references().unlock()
  wide.attention.context = tokens
  now, then = (state.fast_bytes(jax.eval_shape(lambda c=c: lm.init_fast(c, 1)))
               for c in (config, wide))
  if not plan.of(config).enabled:
    raise ValueError(f"a text of {tokens:,} tokens is longer than the {keeps:,} that attention "
                     f"keeps: keeping it takes {then / 1e6:,.1f} MB a stream (now "
                     f"{now / 1e6:,.1f}): set --{flag}={tokens}, or choose shorter ones")


@functools.lru_cache
def _weights(config):
  """(params, fast) -> current weights of the levels."""
  return jax.jit(functools.partial(lm.current_weights, config))


@functools.lru_cache
def _reader(config):
  """(params, weights, fast, tokens_BxT, count_B) -> fast, donated."""
  model = lm.build(config)
  def read(params, weights, fast, tokens_BxT, count_B):
    segments_BxT = (jnp.arange(tokens_BxT.shape[1]) < count_B[:, None]).astype(jnp.int32)
    return model.apply({"params": params}, tokens_BxT, fast, segments_BxT, weights=weights)[1]
  return jax.jit(read, donate_argnames="fast")


@functools.lru_cache
def _chooser(config):
  """(params, weights, fast, tokens_KxBxT, labels_KxBxT) -> nats_BxK; one choice after the other."""
  model = lm.build(config)
  def choose(params, weights, fast, tokens_KxBxT, labels_KxBxT):
    def nats(one):
      tokens_BxT, labels_BxT = one
      segments_BxT = (labels_BxT >= 0).astype(jnp.int32)
      logits = model.apply({"params": params}, tokens_BxT, fast, segments_BxT, weights=weights)[0]
      return jnp.sum(reader.token_losses(logits, labels_BxT), 1)
    return jax.lax.map(nats, (tokens_KxBxT, labels_KxBxT)).T
  return jax.jit(choose)


@functools.lru_cache
def _writer(config, tokens: int, known: int):
  """(params, weights, fast, token_B) -> the ids below `known` that follow greedily, (B, tokens)."""
  model = lm.build(config)
  def write(params, weights, fast, token_B):
    def step(carry, _):
      fast, token_B = carry
      logits, fast, _ = model.apply({"params": params}, token_B[:, None], fast,
                                    jnp.ones_like(token_B)[:, None], weights=weights)
      token_B = jnp.argmax(logits[:, 0, :known], -1).astype(jnp.int32)
      return (fast, token_B), token_B
    return jax.lax.scan(step, (fast, token_B), None, tokens)[1].T
  return jax.jit(write)


def padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
  """(B, width) int32."""
  out = np.full((len(rows), width), fill, np.int32)
  for row, ids in zip(out, rows):
    row[:len(ids)] = ids
  return out


def bucket(tokens: int) -> int:
  """The power of two that so many tokens are padded to."""
  return max(SHORTEST, 1 << (tokens - 1).bit_length())


def read(config, params, fast: FastState, texts: Sequence[Sequence[int]]) -> FastState:
  """One text a stream, of any lengths; `fast` is donated. Nothing is written to levels."""
  frozen, rows = lm.frozen(config), [np.asarray(ids, np.int32) for ids in texts]
  if fast.held_BxC is not None:  # tokens that waited for the rest of a chunk
    rows = [np.concatenate([held[held >= 0], ids])
            for held, ids in zip(np.asarray(fast.held_BxC), rows)]
    fast = fast.replace(held_BxC=jnp.full_like(fast.held_BxC, -1))
  weights, longest = _weights(frozen)(params, fast), max(map(len, rows))
  for first in range(0, longest, PIECE):
    piece = [ids[first:first + PIECE] for ids in rows]
    counts_B = np.array([len(ids) for ids in piece], np.int32)
    tokens_BxT = padded(piece, min(PIECE, bucket(int(counts_B.max()))), 0)
    fast = _reader(frozen)(params, weights, fast, tokens_BxT, counts_B)
  return fast


def ask(config, params, fast: FastState, prompts: Sequence[Sequence[int]],
        choices: Sequence[Sequence[Sequence[int]]], tokens: int,
        known: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """(ids written greedily after each prompt (B, tokens), nats of each choice after it (B, K)).

  fast: donated. prompts: of one id or more; choices: as many of each stream; known: ids of the
  tokenizer, where the vocabulary has more.
  """
  frozen = lm.frozen(config)
  fast = read(config, params, fast, [ids[:-1] for ids in prompts])
  weights, last_B = _weights(frozen)(params, fast), np.array([ids[-1] for ids in prompts], np.int32)
  by_choice = list(zip(*choices, strict=True))
  width = bucket(max(len(ids) for row in by_choice for ids in row))
  labels_KxBxT = np.stack([padded(row, width, -1) for row in by_choice])
  tokens_KxBxT = np.concatenate([np.broadcast_to(last_B[:, None], (len(by_choice), len(last_B), 1)),
                                 np.maximum(labels_KxBxT[..., :-1], 0)], -1)
  nats_BxK = _chooser(frozen)(params, weights, fast, tokens_KxBxT, labels_KxBxT)
  ids_BxN = _writer(frozen, tokens, known or config.model.vocab)(params, weights, fast, last_B)
  return np.asarray(ids_BxN), np.asarray(nats_BxK, np.float64)


def text(tokenizer, ids: Sequence[int]) -> str:
  """What was written, up to what ends it: one of tokenizer.stops."""
  kept = []
  for i in map(int, ids):
    if i in tokenizer.stops:
      break
    kept.append(i)
  return tokenizer.decode(kept, errors="replace")


def found(said: str, answers: Sequence[str]) -> list[bool]:
  """Which answers stand in a text, as whole words, in capitals or not."""
  return [re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", said, re.IGNORECASE) is not None
          for answer in answers]
