"""Contexts of exactly L tokens in which something is to be found: RULER's kinds, and two more.

    world = make_world(tokenizer, ["embedded"], "text", longest=8192, seed=0)
    one = case(world, "single_2", length=8192, depth=0.5, index=0)

The settings are those of RULER (arXiv 2404.06654), the sentences our own:

    single_1        a word's number among a few sentences that repeat
    single_2        the same, in text
    single_3        a word's uuid, in text
    multikey_1      one of four words with numbers, in text
    multikey_2      one of as many words with numbers as the context holds
    multikey_3      one of as many uuids with uuids as the context holds
    multivalue      all four numbers of a word, in text
    multiquery      the numbers of four words, in text
    variable_tracking  one chain of five variables, four of which are set to another
    common_words    ten words that occur 30 times among those that occur 3 times (in contexts too
                    short for that: 10 times and once)
    frequent_words  the three most frequent of made-up words, frequency ~ rank^-2, the first "..."
    literal_free    a name; the question shares no content word with the fact (as NoLiMa asks)
    passkey         five digits among sentences that repeat (arXiv 2305.16300)

RULER draws the words of common_words from a dictionary and numbers them; here they are made up, so
that 512k tokens have enough of them, and not numbered. What is asked for lies at the depth; the
other needles, and all of the kinds in SPREAD, anywhere. A case depends on (seed, kind, length,
depth, index) and the text alone.
"""

from collections.abc import Sequence
import functools
import hashlib
from typing import NamedTuple
import zlib

import numpy as np

from hope_jax.scoring import facts, haystack

COMMON = 10  # words asked for
SPREAD = ("variable_tracking", "common_words", "frequent_words")  # kinds without a depth


class World(NamedTuple):
  """What all contexts of an evaluation are made of; text_N and noise_N are rings of ids."""
  tokenizer: object
  text_N: np.ndarray
  noise_N: np.ndarray
  ends_V: np.ndarray
  seed: int
  distractors: int

  @property
  def digest(self) -> str:
    """Of the text that needles are hidden in."""
    return hashlib.sha256(self.text_N.tobytes()).hexdigest()


class Case(NamedTuple):
  """A context and what is asked about it; choices begin with the right one."""
  kind: str
  depth: float | None
  context_L: np.ndarray  # ids with <s>
  without_L: np.ndarray | None  # the control: text where what is asked for lay
  question: str
  answers: tuple[str, ...]  # all are to be said
  choices: tuple[str, ...]  # that may follow the question
  brief: bool = False  # the answer ends with its line or sentence, and names no other choice


class Kind(NamedTuple):
  """Needles that give keys their values."""
  hay: str  # text | noise | needles
  keys: str  # words | uuids
  values: str  # numbers | uuids
  asked: int = 1
  others: int = 0  # keys that are not asked for
  each: int = 1  # values of a key


RETRIEVAL = {
    "single_1": Kind("noise", "words", "numbers"),
    "single_2": Kind("text", "words", "numbers"),
    "single_3": Kind("text", "words", "uuids"),
    "multikey_1": Kind("text", "words", "numbers", others=3),
    "multikey_2": Kind("needles", "words", "numbers"),
    "multikey_3": Kind("needles", "uuids", "uuids"),
    "multivalue": Kind("text", "words", "numbers", each=4),
    "multiquery": Kind("text", "words", "numbers", asked=4),
}


def make_world(tokenizer, names: Sequence[str], field: str, longest: int, seed: int,
               distractors: int = 10) -> World:
  """names: as --haystack; longest: tokens of the longest context."""
  return World(tokenizer, haystack.text(names, field, tokenizer, longest),
               haystack.noise(tokenizer, longest), haystack.sentence_ends(tokenizer), seed,
               distractors)


def case(world: World, kind: str, length: int, depth: float | None, index: int) -> Case:
  """One context. ValueError for an unknown kind, or a needle that is longer than the context."""
  if kind not in BUILDERS:
    raise ValueError(f"there is no kind {kind!r} of needles: choose of {', '.join(BUILDERS)}")
  if kind in SPREAD:
    depth = None
  at = 1001 if depth is None else round(1000 * depth)
  rng = np.random.default_rng([world.seed, zlib.crc32(kind.encode()), length, at, index])
  return BUILDERS[kind](world, rng, length, depth)._replace(kind=kind)


def hidden(world: World, length: int, hay: tuple[np.ndarray, int],
           needles: list[tuple[float, str]], asked: int) -> tuple[np.ndarray, np.ndarray]:
  """(context, control) of (pool, its start) and needles, of which the first `asked` are asked for.

  The control has the text that follows in the pool where they lay. ValueError for needles that are
  longer than the context.
  """
  tok, (pool_N, start) = world.tokenizer, hay
  encoded = tok.encode_batch([text for _, text in needles])
  room = length - len(tok.begin) - sum(map(len, encoded))
  if room < 0:
    raise ValueError(f"what is to be found takes {length - room} tokens and the context has "
                     f"{length}: choose a longer one")
  context_L, spans = haystack.hide(haystack.ring(pool_N, start, room),
                                   [(depth, ids) for (depth, _), ids in zip(needles, encoded)],
                                   world.ends_V, tok.begin)
  without_L, at = context_L.copy(), start + room
  for first, last in spans[:asked]:
    without_L[first:last] = haystack.ring(pool_N, at, last - first)
    at += last - first
  return context_L, without_L


def _said(kind: Kind, key: str, value: str) -> str:
  return f" The secret {kind.values.removesuffix('s')} of {key} is: {value}."


def _hay(world, rng, kind: Kind, length: int, taken) -> tuple[np.ndarray, int, list[str]]:
  """(pool, start in it, values that stand in it)."""
  if kind.hay == "text":
    return world.text_N, int(rng.integers(len(world.text_N))), []
  if kind.hay == "noise":
    return world.noise_N, 0, []
  each = len(world.tokenizer.encode(_said(kind, *taken[:2])))
  pool, values = [], []
  while len(pool) < 2 * length:  # as much again for the control
    pairs = [(facts.DRAW[kind.keys](rng), facts.DRAW[kind.values](rng))
             for _ in range(2 * length // each + 1)]
    pairs = [pair for pair in pairs if not {*pair} & {*taken}]
    values += [value for _, value in pairs]
    for ids in world.tokenizer.encode_batch([_said(kind, *pair) for pair in pairs]):
      pool += ids
  return np.array(pool, np.int32), 0, values


def _retrieval(world, rng, length, depth, kind: Kind) -> Case:
  """The kinds of RETRIEVAL."""
  keys = facts.different(rng, facts.DRAW[kind.keys], kind.asked + kind.others)
  values = facts.different(rng, facts.DRAW[kind.values], len(keys) * kind.each, keys)
  wanted = kind.asked * kind.each
  needles = [(depth if i == 0 else rng.random(), _said(kind, keys[i // kind.each], value))
             for i, value in enumerate(values)]
  pool_N, start, around = _hay(world, rng, kind, length, [*keys, *values])
  contexts = hidden(world, length, (pool_N, start), needles, wanted)
  what = kind.values.removesuffix("s") + "s" * (wanted > 1)
  asked = " and ".join(filter(None, [", ".join(keys[:kind.asked][:-1]), keys[kind.asked - 1]]))
  question = (f"\nWhat {'are' if wanted > 1 else 'is'} the secret {what} of {asked} in the text "
              f"above? The secret {what} of {asked} in the text above "
              f"{'are' if wanted > 1 else 'is'}:")
  def other():
    return ", ".join(facts.different(rng, facts.DRAW[kind.values], wanted, values))
  near = [*values[wanted:], *dict.fromkeys(around)] if wanted == 1 else []
  return _with_choices(world, contexts, question, values[:wanted], near, other, depth)


def _with_choices(world, contexts, question, answers, near, other, depth=None) -> Case:
  """`near`: wrong answers that stand in the context, which come first; other(): one more."""
  right = ", ".join(answers)
  wrong = list(dict.fromkeys(each for each in near if each != right))[:world.distractors]
  while len(wrong) < world.distractors:
    wrong += [each for each in [other()] if each not in (right, *wrong)]
  return Case("", depth, *contexts, question, tuple(answers),
              tuple(f" {each}" for each in (right, *wrong)))


def _variable_tracking(world, rng, length, _) -> Case:
  names, value = facts.different(rng, facts.capitals, 5), facts.number(rng, 5)
  said = [f" VAR {names[0]} = {value}.",
          *(f" VAR {name} = VAR {before}." for before, name in zip(names, names[1:]))]
  needles = list(zip(np.sort(rng.random(5)), said))
  contexts = hidden(world, length, (world.noise_N, 0), needles, 5)
  question = (f"\nWhich variables have the value {value}, given to them or to the one that they "
              f"were set to? Five variables have the value {value}:")
  def other():
    return ", ".join(facts.different(rng, facts.capitals, 5, names))
  return _with_choices(world, contexts, question, names, [], other)


def _listed(world, rng, length, words_N: list[list[int]]) -> tuple[np.ndarray, None]:
  """Words in any order, and text in front of them where room is left; there is no control."""
  ids = [i for n in rng.permutation(len(words_N)) for i in words_N[n]]
  begin = world.tokenizer.begin
  room = length - len(begin) - len(ids)
  start = int(rng.integers(len(world.text_N)))
  return np.array([*begin, *haystack.ring(world.text_N, start, room), *ids], np.int32), None


def _common_words(world, rng, length, _) -> Case:
  room = length - len(world.tokenizer.begin)
  words = facts.different(rng, facts.made_up, 2 * COMMON + room // 4)
  encoded = world.tokenizer.encode_batch([f" {word}" for word in words])
  common = sum(map(len, encoded[:COMMON]))
  often, seldom = (30, 3) if 60 * common <= room else (10, 1)
  sizes = often * common + seldom * np.cumsum([len(ids) for ids in encoded[COMMON:]])
  others = int(np.searchsorted(sizes, room, "right"))
  if others < COMMON:
    raise ValueError(f"common words need {int(sizes[COMMON - 1])} tokens and the context has "
                     f"{length}: choose a longer one")
  listed = often * encoded[:COMMON] + seldom * encoded[COMMON:COMMON + others]
  seen = words[COMMON:COMMON + others]
  def other():
    return ", ".join(rng.choice(seen, COMMON, replace=False))
  question = ("\nWhich ten words occur most often in the list above? The ten most common words "
              "are:")
  return _with_choices(world, _listed(world, rng, length, listed), question, words[:COMMON], [],
                       other)


def _frequent_words(world, rng, length, _) -> Case:
  room = length - len(world.tokenizer.begin)
  words = ["...", *facts.different(rng, facts.made_up, max(length // 50, 16))]
  encoded = world.tokenizer.encode_batch([f" {word}" for word in words])
  share = np.arange(1, len(words) + 1) ** -2.0
  sizes = np.array([len(ids) for ids in encoded])
  counts = np.floor(room / (share @ sizes) * share).astype(int)
  if len({*counts[1:5]}) < 4:
    raise ValueError(f"in {length} tokens no three words are more frequent than the others: choose "
                     "a longer context")
  listed = [ids for ids, count in zip(encoded, counts) for _ in range(count)]
  def other():
    return ", ".join(rng.choice(words[4:], 3, replace=False))
  question = ("\nWhich three made-up words occur most often in the text above, beside the dots? "
              "The three most frequent words are:")
  return _with_choices(world, _listed(world, rng, length, listed), question, words[1:4], [], other)


def _literal_free(world, rng, length, depth) -> Case:
  if world.distractors >= len(facts.NAMES):
    raise ValueError(f"literal_free has {len(facts.NAMES) - 1} wrong names: set --distractors="
                     f"{len(facts.NAMES) - 1} or fewer, or leave the kind out")
  fact, question = facts.PAIRS[rng.integers(len(facts.PAIRS))]
  name = str(rng.choice(facts.NAMES))
  contexts = hidden(world, length, (world.text_N, int(rng.integers(len(world.text_N)))),
                     [(depth, " " + fact.format(name=name))], 1)
  return _with_choices(world, contexts, f"\nQuestion: {question}? Answer:", [name], [],
                       lambda: facts.DRAW["names"](rng), depth)


def _passkey(world, rng, length, depth) -> Case:
  key = facts.number(rng, 5)
  said = f" The pass key is {key}. Remember it. {key} is the pass key."
  contexts = hidden(world, length, (world.noise_N, 0), [(depth, said)], 1)
  return _with_choices(world, contexts, "\nWhat is the pass key? The pass key is", [key], [],
                       lambda: facts.number(rng, 5), depth)


BUILDERS = {name: functools.partial(_retrieval, kind=kind) for name, kind in RETRIEVAL.items()} | {
    "variable_tracking": _variable_tracking, "common_words": _common_words,
    "frequent_words": _frequent_words, "literal_free": _literal_free, "passkey": _passkey}
