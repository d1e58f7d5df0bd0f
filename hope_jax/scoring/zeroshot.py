"""The zero-shot tasks: where their questions are, and how a question is put to a language model.

    questions = read("piqa", data_dir="data")            # or None: from the hub

A model is asked which choice follows the prompt. The forms are those of EleutherAI's harness (its
names, zero examples, a space between prompt and choice), so that numbers compare; HellaSwag's local
file has its context made already. Each task says how its files count the right answer.
"""

from collections.abc import Callable
import re
from typing import NamedTuple

from hope_jax.scoring import published
from hope_jax.scoring.published import Row, Source


class Question(NamedTuple):
  """What may follow what.

  prompts: one, or one for each choice; choices: continuations of the prompt, each with the space in
  front; gold: index of the right one; sizes: characters by which scores are normalised; text: what
  is there to be memorized; answered: the same with its right answer.
  """
  prompts: tuple[str, ...]
  choices: tuple[str, ...]
  gold: int
  sizes: tuple[int, ...]
  text: str
  answered: str


class Task(NamedTuple):
  """A row of the table. metrics: the first is the one that tables show."""
  source: Source
  ask: Callable[[dict], Question]
  metrics: tuple[str, ...]
  labels: str | None = None  # file of one label a line, where the questions' file has none


def counted_from(first: int, label, choices: int) -> int:
  """The index that a number means which counts from 0 or 1; it may be text."""
  index = int(str(label).strip()) - first
  if isinstance(label, bool) or not 0 <= index < choices:
    raise ValueError(f"label {label!r} is none of {first} to {first + choices - 1}")
  return index


def keyed(label: str, keys: list[str]) -> int:
  """The index that one of the question's own keys means, A to E or 1 to 4."""
  text = str(label).strip()
  if text not in keys:
    raise ValueError(f"answerKey {label!r} is none of {', '.join(map(str, keys))}")
  return keys.index(text)


def truth(label) -> int:
  """The index that true (1) or false (0) means."""
  if label not in (True, False):
    raise ValueError(f"answer {label!r} is neither true nor false")
  return int(label)


def _chosen(prompt: str, choices: list[str], gold: int) -> Question:
  continuations = tuple(f" {choice}" for choice in choices)
  return Question((prompt,), continuations, gold, tuple(map(len, choices)), prompt,
                  prompt + continuations[gold])


def _piqa(row):
  return _chosen(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]],
                 counted_from(0, row["label"], 2))


def _without_markup(text: str) -> str:
  """WikiHow's titles and brackets are no language."""
  text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
  return text.replace("  ", " ")


def _hellaswag(row):
  context = row["ctx"]
  if "ctx_a" in row:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
  endings = list(map(_without_markup, row["endings"]))
  return _chosen(_without_markup(context), endings, counted_from(0, row["label"], len(endings)))


def _winogrande(row):
  """Which name makes the rest of the sentence likelier."""
  before, _, after = row["sentence"].partition("_")
  if not after.strip():
    raise ValueError("sentence has no _ with text behind it")
  prompts = tuple(before + row[name] for name in ("option1", "option2"))
  gold, rest = counted_from(1, row["answer"], 2), f" {after.strip()}"
  return Question(prompts, (rest, rest), gold, tuple(map(len, prompts)), row["sentence"],
                  prompts[gold] + rest)


def _arc(row):
  return _chosen(f"Question: {row['question']}\nAnswer:", row["choices"]["text"],
                 keyed(row["answerKey"], row["choices"]["label"]))


def _boolq(row):
  return _chosen(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"],
                 truth(row["answer"]))


def _social(row):
  return _chosen(f"Q: {row['context']} {row['question']}\nA:",
                 [row[f"answer{letter}"] for letter in "ABC"], counted_from(1, row["label"], 3))


def _commonsense(row):
  """The choices stand in the prompt; a letter is the answer."""
  keys, texts = row["choices"]["label"], row["choices"]["text"]
  shown = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCDE", texts))
  return _chosen(f"Question: {row['question'].strip()}\n{shown}Answer:", list("ABCDE")[:len(texts)],
                 keyed(row["answerKey"], keys))


def _openbook(row):
  return _chosen(row["question_stem"], row["choices"]["text"],
                 keyed(row["answerKey"], row["choices"]["label"]))


def _lambada(row):
  """One continuation, the last word: is it what the model would write?"""
  if "text" in row:
    context, _, word = row["text"].rpartition(" ")
  else:
    context, word = row["context"], row["continuation"]
  return _chosen(context, [word.strip()], 0)


BOTH = ("acc_norm", "acc")
TASKS = {
    "piqa": Task(Source("zeroshot/piqa_valid.jsonl", "baber/piqa"), _piqa, BOTH,
                 "zeroshot/piqa_valid_labels.lst"),
    "hellaswag": Task(Source("zeroshot/hellaswag_val.jsonl", "Rowan/hellaswag"), _hellaswag, BOTH),
    "winogrande": Task(Source("zeroshot/winogrande_xl_validation.jsonl", "allenai/winogrande",
                              "winogrande_xl"), _winogrande, ("acc",)),
    "arc_easy": Task(Source("zeroshot/ARC-Easy_validation.jsonl", "allenai/ai2_arc", "ARC-Easy"),
                     _arc, BOTH),
    "arc_challenge": Task(Source("zeroshot/ARC-Challenge_validation.jsonl", "allenai/ai2_arc",
                                 "ARC-Challenge"), _arc, BOTH),
    "boolq": Task(Source("zeroshot/boolq_validation.jsonl", "google/boolq"), _boolq, ("acc",)),
    "social_iqa": Task(Source("zeroshot/social_i_qa_validation.jsonl", "lighteval/siqa"), _social,
                       ("acc",)),
    "commonsense_qa": Task(Source("zeroshot/commonsense_qa_validation.jsonl", "tau/commonsense_qa"),
                           _commonsense, ("acc",)),
    "openbookqa": Task(Source("zeroshot/openbookqa_main_validation.jsonl", "allenai/openbookqa",
                              "main"), _openbook, BOTH),
    "lambada": Task(Source("zeroshot/lambada_openai.jsonl", "EleutherAI/lambada_openai", "default",
                           "test"), _lambada, ("acc",)),
}


def read(name: str, data_dir: str | None) -> list[Question]:
  """All questions of a task. ValueError for an unknown task, or a row that is no question (by its
  line); otherwise as published.rows.
  """
  if name not in TASKS:
    raise ValueError(f"no task {name}: choose from {', '.join(TASKS)}")
  task = TASKS[name]
  found = published.rows(task.source, data_dir)
  if data_dir is not None and task.labels and "label" not in found[0].fields:
    found = _with_labels(task, found, data_dir)
  return [_question(task, row) for row in found]


def _with_labels(task: Task, found: list[Row], data_dir: str) -> list[Row]:
  labels = published.lines(task.source._replace(file=task.labels), data_dir)
  if len(labels) != len(found):
    raise ValueError(f"{task.labels} has {len(labels)} lines, {task.source.file} has {len(found)}: "
                     "fetch both again")
  return [Row(row.where, row.fields | {"label": label}) for row, label in zip(found, labels)]


def _question(task: Task, row: Row) -> Question:
  try:
    question = task.ask(row.fields)
  except KeyError as error:
    raise row.wrong(f"it has no field {error}") from None
  except (ValueError, TypeError, AttributeError, IndexError) as error:
    raise row.wrong(error) from None
  if not all(choice.strip() for choice in question.choices):
    raise row.wrong("a choice is empty")
  return question
