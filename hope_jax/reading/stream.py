"""A text that is written: a prompt is read in one call, then token by token in constant memory.

    config, params, tokenizer = opening.load("runs/smoke")
    stream = Stream(config, params, temperature=0.8, seed=1)
    ids = [*tokenizer.begin, *tokenizer.encode("import ")]
    for token in stream.generate(ids, tokens=100, stop=tokenizer.stops): ...

No level is written, so a token is read with weights that are added up once, not for each token.

All that a model remembers of a text is its fast state: memories, or a ring buffer of keys and
values. A token's random key is folded from the number of tokens before it, so a conversation that
was saved goes on as if it had not stopped.
"""

from collections.abc import Collection, Iterator, Sequence
import functools
import math
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model import attention, lm
from hope_jax.model.state import FastState
from hope_jax.reading import conversation, reader

# tokens read in a call: powers of two, so few compilations; a call holds all its logits
SHORTEST, LONGEST = 16, 2048
ROOM = 512  # tokens that a new text's cache has room for; then twice as many, up to the context


def _grown(fast: FastState, length: int) -> FastState:
  """With room for so many tokens in attention's cache."""
  tokens = fast.layers.tokens
  if "attention" not in tokens or tokens["attention"].position_BxW.shape[-1] == length:
    return fast
  more = tokens | {"attention": attention.grown(tokens["attention"], length)}
  return fast.replace(layers=fast.layers.replace(tokens=more))


def greedy(logits_V, _):
  """The likeliest token."""
  return jnp.argmax(logits_V)


def nucleus(logits_V, key, temperature: float, top_p: float):
  """A token drawn from the fewest that hold `top_p` of the probability (arXiv 1904.09751)."""
  order_V = jnp.argsort(logits_V, descending=True)
  # the largest is 0 at any temperature
  scaled_V = (logits_V[order_V] - logits_V[order_V[0]]) / temperature
  p_V = jax.nn.softmax(scaled_V)
  likelier_V = jnp.cumsum(p_V) - p_V
  return order_V[jax.random.categorical(key, jnp.where(likelier_V < top_p, scaled_V, -jnp.inf))]


@functools.lru_cache
def _step(model, temperature: float, top_p: float, never: tuple[int, ...]):
  """(params, weights, tokens_T, count, fast, key) -> (next token (1,), fast).

  Reads `count` tokens, donates fast.
  """
  choose = functools.partial(nucleus, temperature=temperature,
                             top_p=top_p) if temperature else greedy
  def step(params, weights, tokens_T, count, fast, key):
    segments_T = (jnp.arange(tokens_T.shape[0]) < count).astype(jnp.int32)  # padding is 0
    logits, fast, _ = model.apply({"params": params}, tokens_T[None], fast, segments_T[None],
                                  weights=weights)
    logits_V = logits[0, count - 1].at[jnp.array(never, jnp.int32)].set(-jnp.inf)
    return choose(logits_V, jax.random.fold_in(key, fast.count_B[0]))[None], fast
  return jax.jit(step, donate_argnames="fast")


@functools.lru_cache
def _adder(config):
  """(params, fast) -> current weights of the levels."""
  return jax.jit(functools.partial(lm.current_weights, config))


class Stream:
  """One text that a model reads and writes; each `generate` goes on where the last one was left.

  pending: the last token written, not read yet.
  """

  def __init__(self, config, params, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
               never: Sequence[int] = ()):
    """temperature: 0 is greedy; top_p: share of probability drawn from; never: ids never chosen."""
    if not 0 <= temperature < math.inf:
      raise ValueError(f"temperature is {temperature}: set it to 0 (the likeliest token) or more")
    if not 0 <= seed < 2**32:
      raise ValueError(f"seed is {seed}: set it to 0 or more and below 2^32")
    if not 0 < top_p <= 1:
      raise ValueError(f"top_p is {top_p}: set it above 0 and to at most 1 (draw from all tokens)")
    self.config, self.params = config, params
    self._step = _step(lm.build(config), float(temperature), float(top_p),
                       tuple(self._known(never)))
    # a step's inputs are always committed there: one compilation
    self._place = jax.tree.leaves(params)[0].sharding
    self._key = jax.device_put(jax.random.key(seed), self._place)
    self._seen: dict[Path, list[int]] = {}  # steps that a folder held when it was last looked at
    self.reset()

  def reset(self) -> None:
    """Forgets everything."""
    # a token that is decoded reads all that there is room for
    self.start(lm.init_fast(attention.with_room(self.config, ROOM), 1))

  def start(self, fast: FastState, pending: int | None = None) -> None:
    """Goes on from a copy of a state, of study.py or of another stream."""
    self._unread = ([] if fast.held_BxC is None
                    else [int(i) for i in np.asarray(fast.held_BxC[0]) if i >= 0])
    self._fast, self.pending = jax.device_put(fast, self._place, may_alias=False), pending
    self._weights = _adder(lm.frozen(self.config))(self.params, self._fast)
    self._read = int(fast.count_B[0])

  @property
  def fast(self) -> FastState:
    """What the model has read, donated by the next step."""
    return _grown(self._fast, attention.context(self.config))

  def _step_on(self, tokens_T, count: int):
    """Reads so many of the tokens; the next one."""
    whole, self._read = attention.context(self.config), self._read + count
    cache = self._fast.layers.tokens.get("attention")
    room = whole if cache is None else cache.position_BxW.shape[-1]
    if room < min(self._read, whole):
      self._fast = _grown(self._fast, min(whole, 1 << (self._read - 1).bit_length()))
    token, self._fast = self._step(self.params, self._weights, tokens_T, count, self._fast,
                                   self._key)
    return token

  @property
  def count(self) -> int:
    """Tokens in the text so far."""
    return self._read + len(self._unread) + (self.pending is not None)

  def generate(self, ids: Sequence[int], tokens: int,
               stop: Collection[int] = ()) -> Iterator[int]:
    """Reads `ids`, then writes up to `tokens` ids on demand; ends before one of `stop`, unread.

    More ids than attention keeps are read in pieces: those too far back are forgotten.

    The caller may leave at any token and go on later, without ids as if it had not left. Raises
    ValueError at once.
    """
    if tokens < 1:
      raise ValueError(f"tokens is {tokens}: ask for 1 or more")
    ids = self._known(ids)
    if not (ids or self._unread or self.pending is not None):
      raise ValueError("the prompt is empty: give some text with --prompt, or at least one token "
                       "(tokenizer.begin)")
    reader.tell_long(self.config, self.count + len(ids))
    return self._write(ids, tokens, stop)

  def _known(self, ids: Sequence[int]) -> list[int]:
    ids, vocab = [operator.index(i) for i in ids], self.config.model.vocab
    if unknown := [i for i in ids if not 0 <= i < vocab]:
      raise ValueError(f"token {unknown[0]} is not in the vocabulary of {vocab}: encode with the "
                       "run's tokenizer")
    return ids

  def _write(self, ids, tokens, stop):
    if self._unread:
      nothing = np.full(self._fast.held_BxC.shape, -1, np.int32)
      self._fast = self._fast.replace(held_BxC=jax.device_put(nothing, self._place))
    ids, self._unread = [*self._unread, *([] if self.pending is None else [self.pending]), *ids], []
    for first in range(0, len(ids), LONGEST):
      piece = ids[first:first + LONGEST]
      # 1: the step that writes
      size = 1 if len(piece) == 1 else max(SHORTEST, 1 << (len(piece) - 1).bit_length())
      padded_T = jax.device_put(np.array(piece + [0] * (size - len(piece)), np.int32), self._place)
      token = self._step_on(padded_T, len(piece))
    for written in range(tokens):
      if written:
        token = self._step_on(token, 1)
      self.pending = None if token.item() in stop else token.item()
      if self.pending is None:
        return
      yield self.pending

  def save(self, directory: str | Path) -> None:
    """Saves the conversation, replacing the one that is there. Raises as conversation.writing."""
    place = Path(directory).resolve()
    with conversation.writing(directory, self._seen.get(place)) as write:
      write(self.fast, self._owner() | {"pending": self.pending})
      self._seen[place] = conversation.steps(directory)

  def load(self, directory: str | Path) -> None:
    """Goes on from a saved one. FileNotFoundError: there is none; ValueError: another model's."""
    if not (found := conversation.steps(directory)):
      raise FileNotFoundError(f"no conversation in {directory}: save one there with /save "
                              f"{directory} (--interactive)")
    like = jax.eval_shape(lambda: lm.init_fast(self.config, 1))
    fast, meta = conversation.load(directory, like, self._owner())
    self.start(fast, meta["pending"])
    self._seen[Path(directory).resolve()] = found

  def _owner(self) -> dict:
    return conversation.owner(self.config, self.params)
