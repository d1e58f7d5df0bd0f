"""Zero-shot tasks: a golden question of each file's form and way to count, and bad files."""

import gzip
import json
import re
import sys

import pytest

from hope_jax.scoring import published, zeroshot

LETTERS = {"text": ["red", "green", "blue", "grey"], "label": ["A", "B", "C", "D"]}
NUMBERS = {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}
FIVE = {"text": ["tin", "box", "jar", "bag", "cup"], "label": ["A", "B", "C", "D", "E"]}
# (task, a line of its file, the prompts, the right continuation, its index)
GOLDEN = [
    ("piqa", dict(goal="Dry a cup", sol1="Use a towel.", sol2="Use soup.", label=1),
     ["Question: Dry a cup\nAnswer:"], " Use soup.", 1),
    ("hellaswag", dict(ctx="Knitting: She takes wool. she", label=2, endings=["a b.", "c.", "d."]),
     ["Knitting: She takes wool. she"], " d.", 2),
    ("hellaswag", dict(activity_label="Knitting", ctx="", ctx_a="She takes wool [title] Blue.",
                       ctx_b="she", label="0", endings=["[step] knits  on.", "b"]),
     ["Knitting: She takes wool. Blue. She"], "  knits on.", 0),  # as the harness leaves it
    ("winogrande", dict(sentence="Ann saw Eve, so _ waved.", option1="Ann", option2="Eve",
                        answer="1"), ["Ann saw Eve, so Ann", "Ann saw Eve, so Eve"], " waved.", 0),
    ("winogrande", dict(sentence="Ann saw Eve, so _ waved.", option1="Ann", option2="Eve",
                        answer="2"), ["Ann saw Eve, so Ann", "Ann saw Eve, so Eve"], " waved.", 1),
    ("arc_easy", dict(question="Sky?", choices=LETTERS, answerKey="C"),
     ["Question: Sky?\nAnswer:"], " blue", 2),
    ("arc_challenge", dict(question="Sky?", choices=NUMBERS, answerKey="3"),
     ["Question: Sky?\nAnswer:"], " blue", 2),
    ("arc_challenge", dict(question="Sky?", choices=NUMBERS, answerKey="1"),
     ["Question: Sky?\nAnswer:"], " red", 0),
    ("boolq", dict(passage="Ice floats.", question="does ice float", answer=True),
     ["Ice floats.\nQuestion: does ice float?\nAnswer:"], " yes", 1),
    ("boolq", dict(passage="Ice floats.", question="does ice sink", answer=False),
     ["Ice floats.\nQuestion: does ice sink?\nAnswer:"], " no", 0),
    ("social_iqa", dict(context="Al ran.", question="Why?", answerA="late", answerB="bored",
                        answerC="old", label="1"), ["Q: Al ran. Why?\nA:"], " late", 0),
    ("social_iqa", dict(context="Al ran.", question="Why?", answerA="late", answerB="bored",
                        answerC="old", label="3"), ["Q: Al ran. Why?\nA:"], " old", 2),
    ("commonsense_qa", dict(question=" Jam is in a? ", choices=FIVE, answerKey="E"),
     ["Question: Jam is in a?\nA. tin\nB. box\nC. jar\nD. bag\nE. cup\nAnswer:"], " E", 4),
    ("openbookqa", dict(question_stem="Grass is", choices=LETTERS, answerKey="B"),
     ["Grass is"], " green", 1),
    ("lambada", dict(context="I sit in a", continuation="chair"), ["I sit in a"], " chair", 0),
    ("lambada", dict(text="I sit in a chair"), ["I sit in a"], " chair", 0)]


def put(folder, task, *lines):
  """The task's file, with these lines below a folder."""
  path = folder / zeroshot.TASKS[task].source.file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines))
  return path


@pytest.mark.parametrize("task, fields, prompts, right, gold", GOLDEN)
def test_a_question_and_its_right_answer(tmp_path, task, fields, prompts, right, gold):
  put(tmp_path, task, json.dumps(fields))
  question, = zeroshot.read(task, str(tmp_path))
  assert list(question.prompts) == prompts
  assert (question.gold, question.choices[question.gold]) == (gold, right)
  if len(prompts) == 1:
    assert question.sizes == tuple(len(choice) - 1 for choice in question.choices)
    assert question.answered == prompts[0] + right and question.text == prompts[0]
  else:
    assert question.answered == prompts[gold] + right and "_" in question.text


def test_every_task_has_a_golden_question():
  assert {task for task, *_ in GOLDEN} == set(zeroshot.TASKS)


def test_labels_of_a_file_beside_it(tmp_path):
  line = dict(goal="g", sol1="a", sol2="b")
  put(tmp_path, "piqa", *[json.dumps(line)] * 3)
  labels = tmp_path / zeroshot.TASKS["piqa"].labels
  labels.write_text("1\n0\n1\n")
  assert [each.gold for each in zeroshot.read("piqa", str(tmp_path))] == [1, 0, 1]
  labels.write_text("1\n0\n")
  with pytest.raises(ValueError, match="labels.lst has 2 lines, .*jsonl has 3"):
    zeroshot.read("piqa", str(tmp_path))


BOOLQ = json.dumps(GOLDEN[8][1])


@pytest.mark.parametrize("task, line, message", [
    ("boolq", "{", "line 2: .*each line is one JSON object"),
    ("boolq", "[]", "line 2: .* is no JSON object"),
    ("boolq", '{"question": "a", "answer": true}', "line 2: it has no field 'passage'"),
    ("boolq", '{"question": "a", "passage": "b", "answer": "maybe"}',
     "line 2: answer 'maybe' is neither true nor false"),
    ("social_iqa", json.dumps(GOLDEN[10][1] | {"label": "0"}), "line 2: label '0' is none of 1"),
    ("piqa", json.dumps(GOLDEN[0][1] | {"label": 2}), "line 2: label 2 is none of 0 to 1"),
    ("piqa", json.dumps(GOLDEN[0][1] | {"sol1": " "}), "line 2: a choice is empty"),
    ("arc_easy", json.dumps(GOLDEN[5][1] | {"answerKey": "4"}), "line 2: answerKey '4' is none of"),
    ("winogrande", json.dumps(GOLDEN[3][1] | {"sentence": "No gap."}), "line 2: sentence has no _"),
    ("openbookqa", '{"question_stem": "a", "choices": null, "answerKey": "A"}', "line 2: ")])
def test_a_malformed_line_is_named(tmp_path, task, line, message):
  good = next(json.dumps(fields) for name, fields, *_ in GOLDEN if name == task)
  path = put(tmp_path, task, good, line)
  with pytest.raises(ValueError, match=f"{re.escape(path.name)}, {message}"):
    zeroshot.read(task, str(tmp_path))


def test_what_is_missing_or_empty_is_said(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no task bool: choose from piqa, hellaswag"):
    zeroshot.read("bool", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="zeroshot/boolq_validation.jsonl: put the validation "
                                              "split of google/boolq there"):
    zeroshot.read("boolq", str(tmp_path))
  put(tmp_path, "boolq")
  with pytest.raises(ValueError, match="line 1: the file is empty"):
    zeroshot.read("boolq", str(tmp_path))
  monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
  with pytest.raises(FileNotFoundError, match=r"hope_jax\[evals\].*put the validation split of "
                                              "google/boolq into zeroshot/boolq_validation.jsonl"):
    zeroshot.read("boolq", None)


def test_a_packed_file_is_read(tmp_path):
  path = put(tmp_path, "boolq", BOOLQ)
  path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
  path.unlink()
  assert zeroshot.read("boolq", str(tmp_path))[0].gold == 1


def test_tables_with_commas(tmp_path):
  source = published.Source("own/table.csv", "own/table")
  (tmp_path / "own").mkdir()
  (tmp_path / source.file).write_text('text,category\n"a, ""b""\nc",x\nd,y\n')
  assert [row.fields for row in published.rows(source, str(tmp_path))] == [
      {"text": 'a, "b"\nc', "category": "x"}, {"text": "d", "category": "y"}]
  for bad, message in (("d\n", "line 3: it has not as many"), ('"d" e,f\n', "line 3: ")):
    (tmp_path / source.file).write_text("text,category\na,x\n" + bad)
    with pytest.raises(ValueError, match=message):
      published.rows(source, str(tmp_path))


def test_the_hub_gives_the_same_as_a_file(tmp_path, monkeypatch):
  """A local folder stands for a name on the hub: `datasets` loads both alike."""
  pytest.importorskip("datasets")
  monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
  path = put(tmp_path, "boolq", BOOLQ, BOOLQ)
  source = published.Source("zeroshot/boolq_validation.jsonl", str(path.parent))
  assert [row.fields for row in published.rows(source, None)] == [
      row.fields for row in published.rows(source, str(tmp_path))]
  nothing = source._replace(hub=str(tmp_path / "nothing"))
  with pytest.raises(FileNotFoundError, match="could not be had from the hub .*put the valid"):
    published.rows(nothing, None)
