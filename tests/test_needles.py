"""Laws of contexts with needles: exact lengths, true depths, honest controls, one seed one case."""

import re

import numpy as np
import pytest

from hope_jax.data import tokenizer
from hope_jax.scoring import facts, haystack, needles

LENGTH = 3000
FUNCTION_WORDS = set("a an the of in to is are was has not cannot or and at all for by with within "
                     "who whose which as than them any every so on often more".split())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("needles")
  prose = [f"The {a} {n} sat by the {m}. It was {b}!\n" for a, b, n, m in
           zip(facts.ADJECTIVES, facts.ADJECTIVES[40:], facts.NOUNS, facts.NOUNS[60:])]
  (folder / "prose.txt").write_text("".join(prose))
  tokenizer.train(prose, folder / "tokenizer.model", 400)
  return needles.make_world(tokenizer.load(folder), [str(folder / "prose.txt")], "text", LENGTH, 3)


def decoded(world, ids):
  return world.tokenizer.decode([i for i in map(int, ids) if i != world.tokenizer.bos])


@pytest.mark.parametrize("kind", needles.BUILDERS)
def test_a_context_has_its_length_and_the_answers_and_the_control_has_not(world, kind):
  for length, depth in ((LENGTH, 0.5), (2901, 0.0), (2902, 1.0)):
    one = needles.case(world, kind, length, depth, 0)
    assert len(one.context_L) == length and one.context_L[0] == world.tokenizer.bos
    text = decoded(world, one.context_L)
    assert all(answer in text for answer in one.answers)
    assert one.choices[0] == " " + ", ".join(one.answers)
    assert len(one.choices) == len(set(one.choices)) == 11
    if one.without_L is None:
      assert kind in ("common_words", "frequent_words")
      continue
    assert len(one.without_L) == length
    assert not any(answer in decoded(world, one.without_L) for answer in one.answers)


def test_the_settings_are_those_that_are_stated(world):
  def text(kind):
    one = needles.case(world, kind, LENGTH, 0.5, 0)
    return one, decoded(world, one.context_L)
  secret = r"The secret (number|uuid) of (\S+) is: (\S+)\."
  for kind, keys, values in (("single_1", 1, 1), ("single_2", 1, 1), ("single_3", 1, 1),
                             ("multikey_1", 4, 4), ("multivalue", 1, 4), ("multiquery", 4, 4)):
    found = re.findall(secret, text(kind)[1])
    assert (len({key for _, key, _ in found}), len({value for *_, value in found})) == (keys,
                                                                                       values)
  for kind, form in (("multikey_2", r"\d{7}"), ("multikey_3", r"[0-9a-f]{8}-.{27}")):
    one, said = text(kind)
    found = [value for *_, value in re.findall(secret, said)]
    assert len(found) > 15 and all(re.fullmatch(form, value) for value in found)
    assert {choice.strip() for choice in one.choices} <= {*re.findall(form, said)} | {
        *one.choices[0].split()}  # what is wrong stands in the context, too
  one, said = text("common_words")
  counts = {word: said.split().count(word) for word in set(said.split())}
  assert sorted(one.answers) == sorted(sorted(counts, key=counts.get)[-10:])
  assert {counts[word] for word in one.answers} <= {10, 30}
  one, said = text("frequent_words")
  counts = {word: said.split().count(word) for word in set(said.split())}
  assert sorted(counts, key=counts.get)[-4:][::-1] == ["...", *one.answers]
  one, said = text("variable_tracking")
  places = [said.index(f"VAR {name} = ") for name in one.answers]
  assert len(places) == 5 and places == sorted(places)


def test_a_needle_lies_at_its_depth_at_the_end_of_a_sentence(world):
  for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
    one = needles.case(world, "passkey", LENGTH, depth, 1)
    text = decoded(world, one.context_L)
    at = text.index(" The pass key is")
    assert abs(at / len(text) - depth) < 0.06
    assert at == 0 or depth == 1 or text[:at].rstrip().endswith(".")


def test_the_example_of_hide():
  ends = np.array([False, True])
  hay = np.array([0, 0, 0, 1, 0, 0, 0, 0])  # It is late . They all go home
  ids, spans = haystack.hide(hay, [(0.6, [7, 7]), (0.6, [8]), (1.0, [9])], np.pad(ends, (0, 8)),
                             [5])
  assert ids.tolist() == [5, 0, 0, 0, 1, 7, 7, 8, 0, 0, 0, 0, 9]
  assert spans == [(5, 7), (7, 8), (12, 13)]


def test_a_literal_free_question_shares_no_content_word_with_its_fact():
  for fact, question in facts.PAIRS:
    said, asked = (set(re.findall(r"[a-z]+", text.format(name="").lower())) - FUNCTION_WORDS
                   for text in (fact, question))
    assert said and asked and not said & asked


def test_a_case_depends_on_its_seed_and_place_alone(world):
  def case(world, kind="multikey_1", index=0):
    return needles.case(world, kind, 500, 0.5, index)
  one = case(world)
  case(world, "single_2")  # what came before changes nothing
  again = case(world)
  assert one.choices == again.choices and one.context_L.tolist() == again.context_L.tolist()
  others = [case(world, index=1), case(world._replace(seed=4))]
  assert all(other.answers != one.answers for other in others)


@pytest.mark.parametrize("kind, told", [
    ("single_2", "takes .* tokens and the context has 20"), ("passkey", "choose a longer one"),
    ("common_words", "common words need"), ("frequent_words", "choose a longer context"),
    ("variable_tracking", "the context has 20"),
    ("hay", "no kind 'hay' of needles: choose of single_1, single_2")])
def test_what_does_not_fit_is_told(world, kind, told):
  with pytest.raises(ValueError, match=told):
    needles.case(world, kind, 20, 0.5, 0)
