"""Filters of documents: length, symbols, alphabet, repetition (Gopher), sentences (C4), language.

    chain = filters.of(recipe, source.filters)
    why = filters.judge(document, chain)            # None: it stays; else the rule that it broke

Rules and thresholds are datatrove's, which cites their papers: Gopher (Rae et al. 2021, table A1)
and C4 (Raffel et al. 2020). Words are what stands between blanks, as in Gopher's paper, so nothing
has to be downloaded; a language that is written without blanks needs other limits, or none.

datatrove's loops in Python over words are run for the few documents that may break a rule; that
the others break none is seen from sums and sorted arrays.
"""

import re

from datatrove.data import Document
from datatrove.pipeline.filters import (C4QualityFilter, GopherQualityFilter,
                                        GopherRepetitionFilter)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import PUNCTUATION_SET
from datatrove.utils.word_tokenizers import WordTokenizer
from ml_collections import ConfigDict
import numpy as np

from hope_jax.data.pipeline import words

_SENTENCE = re.compile(r"[^\s.!?][^.!?]*[.!?]*[\"')\]]*|[.!?]+")


class Blanks(WordTokenizer):
  """Words are what stands between blanks; a sentence ends with . ! or ?"""

  def word_tokenize(self, text: str) -> list[str]:
    return text.split()

  def sent_tokenize(self, text: str) -> list[str]:
    return [found.group().strip() for found in _SENTENCE.finditer(text)]

  def span_tokenize(self, text: str) -> list[tuple[int, int]]:
    return [found.span() for found in _SENTENCE.finditer(text)]


BLANKS = Blanks()


class Language(BaseFilter):
  """Keeps what py3langid, whose model is in the package, takes for one of these languages.

  It sees the document's first `chars` characters; `least`: the share of certainty that is needed.
  """

  name = "language"

  def __init__(self, languages: tuple[str, ...], least: float, chars: int):
    super().__init__()
    self.languages, self.least, self.chars = languages, least, chars
    self._identify = None

  def filter(self, doc: Document) -> bool | tuple[bool, str]:
    if self._identify is None:
      from py3langid.langid import LanguageIdentifier, MODEL_FILE
      self._identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify
    language, certain = self._identify(doc.text[:self.chars])
    if language not in self.languages:
      return False, f"language_{language}"
    return True if certain >= self.least else (False, "language_uncertain")


class Quality(GopherQualityFilter):
  """Gopher's rules of quality: the same verdicts, found faster."""

  def filter(self, doc: Document) -> bool | tuple[bool, str]:
    return True if self._passes(doc.text) else super().filter(doc)

  def _passes(self, text: str) -> bool:
    found = text.split()
    odd = [word for word in found if not word.isalpha()]
    symbols = [word for word in odd if PUNCTUATION_SET.issuperset(word)]
    count = len(found) - len(symbols)
    if not max(self.min_doc_words or 1, 1) <= count <= (self.max_doc_words or count):
      return False
    mean = (sum(map(len, found)) - sum(map(len, symbols))) / count
    lettered = len(found) - sum(not any(map(str.isalpha, word)) for word in odd)
    most = len(found) * (self.max_symbol_word_ratio or np.inf)
    return ((self.min_avg_word_length or 0) <= mean <= (self.max_avg_word_length or np.inf)
            and text.count("#") <= most and text.count("...") + text.count("…") <= most
            and lettered >= len(found) * (self.max_non_alpha_words_ratio or 0)
            and len(self.stop_words.intersection(found)) >= (self.min_stop_words or 0)
            and self._lines_pass(text.splitlines()))

  def _lines_pass(self, lines: list[str]) -> bool:
    starts = sum(line.lstrip()[:1] in ("•", "-") and line.strip() != "" for line in lines)
    ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    return (starts <= len(lines) * (self.max_bullet_lines_ratio or np.inf)
            and ends <= len(lines) * (self.max_ellipsis_lines_ratio or np.inf))


class Repetition(GopherRepetitionFilter):
  """Gopher's rules of repetition: the same verdicts, found faster."""

  def __init__(self, **options):
    super().__init__(**options)
    self._of_lines = GopherRepetitionFilter(**options | dict(top_n_grams=(), dup_n_grams=()))

  def filter(self, doc: Document) -> bool | tuple[bool, str]:
    return (self._of_lines if self._varied(doc.text) else super()).filter(doc)

  def _varied(self, text: str) -> bool:
    """Whether runs of words repeat too little to break a rule: by an upper limit of how much."""
    found = text.split()
    ids, lengths = words.ids(found), np.fromiter(map(len, found), np.int64, len(found))
    ends = np.cumsum(np.concatenate([[0], lengths]))
    top, again = dict(self.top_n_grams), dict(self.dup_n_grams)
    # every word of a run that comes again is in a shorter run that comes again
    shortest = {min(again): min(again.values())} if again else {}
    for n, numbers in words.runs(ids, {*top, *shortest}):
      if n in top and not _top_is_below(numbers, ends, n, top[n] * len(text)):
        return False
      if n in shortest and _covered(numbers, lengths, n) <= shortest[n] * len(text):
        return True
    return all(_covered(numbers, lengths, n) <= again[n] * len(text)
               for n, numbers in words.runs(ids, again))


def _top_is_below(runs, ends, n: int, limit: float) -> bool:
  """Whether the commonest run of n words has at most so many characters, blanks too, together."""
  if not len(runs):
    return True
  ordered = np.sort(runs)
  edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
  counts, chars = np.diff(edges), ends[n:] - ends[:-n] + n - 1
  most = counts.max()
  if most * chars.max() <= limit:
    return True
  common = ordered[edges[:-1][counts == most]]
  return most * chars[np.isin(runs, common)].max() <= limit


def _covered(runs, lengths, n: int) -> int:
  """Characters of words in a run of n that was there before."""
  ordered = np.sort(runs)
  repeated = ordered[1:][ordered[1:] == ordered[:-1]]
  if not len(repeated):
    return 0
  places = np.minimum(np.searchsorted(repeated, runs), len(repeated) - 1)
  places = np.flatnonzero(repeated[places] == runs)
  again = np.delete(places, np.unique(runs[places], return_index=True)[1])
  steps = np.zeros(len(lengths) + 1, np.int64)  # +1 where a repeated run begins, -1 behind its end
  steps[again] += 1
  steps[again + n] -= 1
  return int(lengths[np.cumsum(steps[:-1]) > 0].sum())


class Sentences(C4QualityFilter):
  """C4's rules. `rewrite`: lines that break one go, as in C4; else the text stays as it is."""

  def __init__(self, rewrite: bool, **options):
    super().__init__(**options)
    self.rewrite = rewrite

  def filter(self, doc: Document) -> bool | tuple[bool, str]:
    before = doc.text
    verdict = super().filter(doc)
    if not self.rewrite:
      doc.text = before
    return verdict


def of(recipe: ConfigDict, names: tuple[str, ...]) -> list[BaseFilter]:
  """The filters of these names whose section of recipe.filters is on, cheap ones first."""
  kinds = dict(quality=Quality, language=Language, repetition=Repetition, sentences=Sentences)
  found = []
  for name, kind in kinds.items():
    options = recipe.filters[name].to_dict()
    if options.pop("on") and name in names:
      found.append(kind(**options) if name == "language" else kind(**options, language=BLANKS))
  return found


def judge(document: Document, chain: list[BaseFilter]) -> str | None:
  """The rule that a document breaks first; None if it stays. It may be rewritten."""
  for each in chain:
    verdict = each.filter(document)
    if verdict is not True:
      return verdict[1]
  return None
