"""Classes that arrive in groups, read once: which of those seen so far is a text's?

    ways = Ways(config, params, tokenizer, how, batch=None)
    for group in groups: ways.read(group); right = ways.right(tests)

A class is chosen by its name's log-likelihood per character after the text (`query`), among all
names seen so far. The ways beside each other:

    nothing       the model knows no example
    memorized     every example was read through the writes, once, as it came (--memorize)
    one_period    the same, all levels being written at the period of the fastest
    in_context    one example of each class stands before the text, in attention's context
    nearest_mean, discriminant   of the frozen model's features of all examples so far
"""

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp

from hope_jax.model import attention, lm, state
from hope_jax.reading import study
from hope_jax.scoring import choices, features, memorization
from hope_jax.scoring.labelled import Example, Group


def query(text: str) -> str:
  return f"{text}\nLabel:"


def shown(example: Example) -> str:
  """An example as it is read."""
  return f"{query(example.text)} {example.label}\n"


def one_period(config):
  """The configuration with all CMS levels at the period of the fastest; None if they are."""
  periods = {level.period for level in config.channel.levels if level.period}
  if not config.channel.in_context or len(periods) < 2:
    return None
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.channel.levels = tuple(dataclasses.replace(level, period=min(periods))
                                  for level in config.channel.levels)
  return config


class Ways:
  """A model, and what it has read of one order of classes."""

  def __init__(self, config, params, tokenizer, how: memorization.Options, batch: int | None):
    self.params, self.tokenizer, self.how = params, tokenizer, how
    self._whole = config
    self.configs = {"memorized": config, "one_period": one_period(config)} if how.on else {}
    self.configs = {name: own for name, own in self.configs.items() if own is not None}
    self._plain, self._batch = attention.with_room(config, 1), batch
    self.examples, self.labels, self.did, self.fast = [], [], {}, {}

  def read(self, group: Group) -> None:
    """One pass over a group's examples."""
    self.labels += group.labels
    self.examples += group.train
    for name, config in self.configs.items():
      self.fast[name], did = self.learned(config, self.fast.get(name), group.train)
      self.did.setdefault(name, []).extend(did)

  def learned(self, config, fast, examples: Sequence[Example]):
    """(a stream that has read these examples, one after the other; what its memories did)."""
    texts, whole = [self._ids(shown(example)) for example in examples], config
    config = attention.with_room(config, choices.room(max(map(len, texts))))
    if fast is None:
      fast = memorization.start(config, self.params, self.how, 1, whole)
    fast, did = memorization.fitted(config, fast), []
    for ids in texts:
      fast, own = memorization.learn(config, self.params, fast, [ids], self.how)
      did += own
    return fast, did

  def _ids(self, text: str) -> list[int]:
    return [*self.tokenizer.begin, *self.tokenizer.encode(text)]

  def right(self, tests: Sequence[Example]) -> dict[str, list[bool]]:
    """{way: whether each test's class was found}."""
    guesses = {"nothing": self.guess(self._whole, None, tests),
               "in_context": self.guess(*self._in_context(), tests)} | self._by_features(tests)
    guesses |= {name: self.guess(config, self.fast[name], tests)
                for name, config in self.configs.items()}
    return {way: [guess == example.label for guess, example in zip(own, tests)]
            for way, own in guesses.items()}

  def joint(self, examples: Sequence[Example], tests: Sequence[Example]) -> list[bool]:
    """As "memorized", from all examples in one mixture."""
    fast, _ = self.learned(self._whole, None, examples)
    return [guess == example.label
            for guess, example in zip(self.guess(self._whole, fast, tests), tests)]

  def guess(self, config, fast, tests: Sequence[Example]) -> list[str]:
    """The likeliest class of each text, by a model that knows what the stream `fast` has read."""
    asked = [(query(example.text), [f" {label}" for label in self.labels]) for example in tests]
    prompts, out = choices.encode(self.tokenizer, asked), [None] * len(tests)
    tokens = choices.room(choices.longest(prompts))
    size = self._batch or (memorization.STREAMS if fast is None else memorization.fitting(config))
    if fast is None:
      config = attention.with_room(config, tokens)
    elif "attention" in fast.layers.tokens:  # what it keeps of its context stays
      config = attention.with_room(config,
                                   fast.layers.tokens["attention"].position_BxW.shape[-1])
    for batch in choices.batches(prompts, size):
      own = None if fast is None else state.select(fast, jnp.zeros(size, jnp.int32))
      scores = choices.score(config, self.params, [prompts[i] for i in batch], size, own)
      for i, each in zip(batch, scores):
        best = max(zip(each, self.labels), key=lambda two: two[0].log_likelihood / len(two[1]))
        out[i] = best[1]
    return out

  def _in_context(self):
    """(configuration, a stream that has read one example of each class and keeps them)."""
    first = {example.label: example for example in reversed(self.examples)}
    ids = self._ids("".join(shown(first[label]) for label in self.labels))
    config = attention.with_room(self._whole, choices.room(len(ids) + 256))
    fast = study.memorize(config, self.params, lm.init_fast(config, 1), [ids], write=False)[0]
    return config, fast

  def _by_features(self, tests: Sequence[Example]) -> dict[str, list[str]]:
    known, asked = (features.of(self._plain, self.params,
                                [self._ids(example.text) for example in own])
                    for own in (self.examples, tests))
    labels = [example.label for example in self.examples]
    return {"nearest_mean": features.nearest_mean(known, labels, asked),
            "discriminant": features.discriminant(known, labels, asked)}
