"""Filters give the verdicts of datatrove, with the published thresholds, and languages by name."""

import inspect
import random

import numpy as np
import pytest

pytest.importorskip("datatrove")
pytest.importorskip("py3langid")

from datatrove.data import Document
from datatrove.pipeline.filters import (C4QualityFilter, GopherQualityFilter,
                                        GopherRepetitionFilter)

from hope_jax.data.pipeline import contamination, filters, recipe, words
from tests import raw_data


def texts(count=400):
  """Texts near every threshold: short and long, of symbols, bullets, ellipses, and repeated."""
  rng = random.Random(3)
  odd = ["#", "...", "•", "-", "…", "12", "3.5", "é", "½", "ab1", "(", "wordwordwordword", "１"]
  for i in range(count):
    words_ = raw_data.english(rng, rng.choice([1, 4, 8, 20])).split(" ")
    kinds = rng.choice([odd, odd[:1], odd[1:2]])
    for _ in range(int(len(words_) * rng.choice([0, 0.02, 0.1, 0.12, 0.5]))):
      words_.insert(rng.randrange(len(words_)), rng.choice(kinds))
    text = " ".join(words_)
    if i % 3 == 0:  # a piece comes again
      start = rng.randrange(len(words_))
      piece = " ".join(words_[start:start + rng.choice([2, 3, 6, 15, 40])])
      text += rng.choice(["\n", "\n\n", " "]).join([""] + [piece] * rng.randint(1, 12))
    if i % 7 == 0:
      text = "\n".join(rng.choice(["- ", "• ", ""]) + line + rng.choice(["...", ""])
                       for line in text.split("."))
    yield text
  yield from ("", " ", "#", "one", "\n\n\n")


@pytest.mark.parametrize("ours, theirs", [(filters.Quality, GopherQualityFilter),
                                          (filters.Repetition, GopherRepetitionFilter)])
def test_verdicts_are_datatroves(ours, theirs):
  ours, theirs = ours(language=filters.BLANKS), theirs(language=filters.BLANKS)
  found = set()
  for text in texts():
    if not text.strip():  # which datatrove divides by; blank documents never come so far
      continue
    verdict = theirs.filter(Document(text, ""))
    assert ours.filter(Document(text, "")) == verdict
    found.add(verdict)
  assert True in found and len(found) > 6  # and six rules


def test_the_quick_look_sees_most_documents_through():
  quality = filters.Quality(language=filters.BLANKS)
  repetition = filters.Repetition(language=filters.BLANKS)
  rng = random.Random(1)
  some = [raw_data.english(rng, 16) for _ in range(50)]
  assert all(quality._passes(text) for text in some)
  assert sum(repetition._varied(text) for text in some) > 45


def test_thresholds_are_the_published_ones():
  c = recipe.base().filters
  for name, kind in (("quality", GopherQualityFilter), ("repetition", GopherRepetitionFilter),
                     ("sentences", C4QualityFilter)):
    own = {key: value for key, value in c[name].items() if key not in ("on", "rewrite")}
    parameters = inspect.signature(kind.__init__).parameters
    assert own == {key: parameters[key].default for key in own}


def test_sentences_drop_documents_and_rewrite_only_when_told():
  text = raw_data.english(random.Random(0)) + "a menu without an end\n"
  for rewrite in (False, True):
    document = Document(text, "")
    assert filters.Sentences(rewrite, language=filters.BLANKS).filter(document) is True
    assert document.text == (text[:text.rindex("\na menu")] if rewrite else text)
  few = Document("One sentence is here. Then two.", "")
  assert filters.Sentences(False, language=filters.BLANKS).filter(few) == (
      False, "too_few_sentences")


def test_languages_are_told_by_a_model_in_the_package():
  english = raw_data.english(random.Random(0))
  one = filters.Language(("en",), 0.0, 1000)
  assert one.filter(Document(english, "")) is True
  assert one.filter(Document(raw_data.GERMAN, "")) == (False, "language_de")
  assert filters.Language(("en", "de"), 0.0, 1000).filter(Document(raw_data.GERMAN, "")) is True
  assert filters.Language(("en",), 1.1, 1000).filter(Document(english, "")) == (
      False, "language_uncertain")


def test_a_source_goes_through_its_own_filters():
  c = recipe.base()
  assert [f.name for f in filters.of(c, ("language",))] == ["language"]
  assert len(filters.of(c, recipe.FILTERS)) == 4 and filters.of(c, ()) == []
  c.filters.quality.on = False
  assert len(filters.of(c, recipe.FILTERS)) == 3


def test_runs_of_words_have_a_number_by_their_order():
  ids = words.ids(words.split("The end. THE end! the The"))
  assert ids[0] == ids[2] == ids[4] and ids[1] == ids[3] != ids[0]
  a, b, c, d, e = words.grams(ids, 2)
  assert a == c and b == d and len({a, b, e}) == 3
  assert len(words.grams(ids, 6)) == 1 and len(words.grams(ids, 7)) == 0
  rng = np.random.default_rng(0)
  many = words.grams(rng.integers(0, 50, 20_000).astype(np.uint64), 3)
  assert len(np.unique(many)) > 0.9 * min(50**3, 20_000)


def test_short_evaluation_texts_count_as_a_whole():
  index = contamination.index(["one two three four five six", "a b", "c d e f"], n=5, least=4)
  assert {length: len(runs) for length, runs in index.items()} == {4: 1, 5: 2}
  known = contamination.Finder(index)
  assert known.found("and ONE two, three four-five") == "one two three four five"
  assert known.found("one two three four, and c d e") is None
  assert known.found("so c d e f") == "c d e f"
  assert known.found("a b a b") is None and contamination.Finder({}).found("c d e f") is None


def test_evaluation_files_are_all_their_strings(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"q": "one", "options": ["two", {"x": "three"}], "n": 1}\n\n')
  (tmp_path / "b.json").write_text('{\n "all": [["four", 4]]\n}')
  (tmp_path / "c.txt").write_text("five\nsix")
  assert sorted(contamination.texts([str(tmp_path)])) == ["five\nsix", "four", "one", "three",
                                                          "two"]
  (tmp_path / "a.jsonl").write_text('{"q": "one"}\n{"q"\n')
  with pytest.raises(ValueError, match="a.jsonl:2: not JSON"):
    list(contamination.texts([str(tmp_path)]))
  with pytest.raises(ValueError, match="none does not exist; give a file or a folder"):
    list(contamination.texts([str(tmp_path / "none")]))
