"""Laws of bAbI in long text: the files' questions, facts in order in exactly L tokens, refusals."""

import io
import json
from pathlib import Path
import sys
import tarfile

from absl import flags
import numpy as np
import pytest

from hope_jax.data import tokenizer
from hope_jax.scoring import babi
from tests import tiny_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import babi as program

QA1 = """1 Ann went to the garden.
2 Bob walked to the cellar.
3 Where is Ann? \tgarden\t1
4 Ann walked to the attic.
5 Where is Ann? \tattic\t4
1 Cid went to the cellar.
2 Where is Cid? \tcellar\t1
"""
QA5 = "1 Ann gave the milk to Bob.\n2 Who gave the milk? \tAnn\t1\n"


def put(folder: Path, packed: bool, **texts) -> Path:
  """A data folder with files of tasks."""
  (folder / "babi").mkdir(parents=True)
  if not packed:
    (folder / "babi" / "en").mkdir()
    for name, text in texts.items():
      (folder / "babi" / "en" / f"{name}_x_test.txt").write_text(text)
    return folder
  with tarfile.open(folder / "babi" / "babi_en.tar.gz", "w:gz") as file:
    for name, text in texts.items():
      member = tarfile.TarInfo(f"tasks_1-20_v1-2/en/{name}_single-fact_test.txt")
      member.size = len(text)
      file.addfile(member, io.BytesIO(text.encode()))
  return folder


@pytest.mark.parametrize("packed", [True, False])
def test_a_question_has_the_facts_of_its_story_so_far(tmp_path, packed):
  found = babi.load(put(tmp_path / "data", packed, qa1=QA1, qa5=QA5, qa20="?"), (1, 5))
  first, second, third = found[1]
  assert first == (("Ann went to the garden.", "Bob walked to the cellar."), "Where is Ann?",
                   "garden")
  assert second.facts == (*first.facts, "Ann walked to the attic.") and second.answer == "attic"
  assert third.facts == ("Cid went to the cellar.",) and len(found[5]) == 1


def test_what_is_missing_or_malformed_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no test file of bAbI task 1, 5: put .*babi_en"):
    babi.load(tmp_path, (1, 5))
  for line, told in (("Ann", "line 3: 'Ann' is no line"), ("1 Who? \tAnn\t1", "before any fact")):
    with pytest.raises(ValueError, match=told):
      list(babi.read(f"1 Ann left.\n2 Bob left.\n{line}\n", "qa1"))
  (tmp_path / "babi").mkdir()
  (tmp_path / "babi" / "babi_en.tar.gz").write_bytes(b"no archive")
  with pytest.raises(ValueError, match="babi_en.tar.gz cannot be unpacked"):
    babi.load(tmp_path, (1,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("babi")
  tiny_run.save(folder / "run", tiny_run.configured("hope_attention"))
  (folder / "hay.txt").write_text("".join(tiny_run.tiny_text(i) for i in range(40)))
  put(folder / "data", True, qa1=QA1, qa5=QA5.replace("Ann\t1", "Ann\t1\n3 Who got it? \tBob\t1"))
  return folder


def test_facts_lie_in_their_order_in_exactly_so_many_tokens(folder):
  values = flags.FlagValues()
  program.define_flags(values)
  values(["", "--checkpoint=x", "--output=y", f"--data_dir={folder / 'data'}", "--tasks=1",
          f"--haystack={folder / 'hay.txt'}", "--lengths=400"])
  tok = tokenizer.load(folder / "run")
  plan = program.make(values, tok)
  assert plan.kinds == ["qa1"] and plan.chance == pytest.approx(1 / 3)
  for index in range(3):
    one = plan.case("qa1", 400, None, index)
    text, control = (tok.decode(map(int, ids[1:])) for ids in (one.context_L, one.without_L))
    facts = [fact for fact in QA1.splitlines() if fact.endswith(".") and fact[2:] in text]
    places = [text.index(fact[2:]) for fact in facts]
    assert len(one.context_L) == len(one.without_L) == 400 and places == sorted(places)
    assert facts and "went to" not in control
    assert {choice.strip() for choice in one.choices} == {"garden", "attic", "cellar"}



def test_facts_that_fill_half_a_context_are_not_asked_for(folder):
  tok, stories = tokenizer.load(folder / "run"), {1: list(babi.read(QA1, "qa1"))}
  most = max(len(tok.encode(" " + " ".join(story.facts))) for story in stories[1])
  assert babi.fitting(stories, tok, most) == stories
  assert len(babi.fitting(stories, tok, most - 1)[1]) == 2
  with pytest.raises(ValueError, match="no question of bAbI task 1 has facts of at most 3 tokens"):
    babi.fitting(stories, tok, 3)


def test_the_score_is_the_average_of_the_tasks(folder):
  values = flags.FlagValues()
  program.define_flags(values)
  program.main(values([
      "", f"--checkpoint={folder / 'run'}", f"--output={folder / 'out.json'}", "--tasks=1,5",
      f"--data_dir={folder / 'data'}", f"--haystack={folder / 'hay.txt'}", "--lengths=200",
      "--samples=4", "--batch=4", "--memorize"]), values)
  result = json.loads((folder / "out.json").read_text())
  assert [part["kind"] for part in result["kinds"]] == ["qa1", "qa5"]
  assert result["lengths"][0]["choice"]["baseline"]["value"] == pytest.approx(
      np.mean([part["choice"]["baseline"]["value"] for part in result["kinds"]]))
  assert len(result["rows"]) == 8 and result["memories"]["cms_slow"]["updates"] > 0
  assert result["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
  assert (folder / "out.png").stat().st_size > 1000
