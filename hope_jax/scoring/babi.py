"""bAbI's stories (arXiv 1502.05698), and their facts scattered in a long text (as BABILong does).

    stories = load("data", tasks=(1, 2, 3, 4, 5))
    one = case(world, stories, task=1, length=8192, index=0)

The files are those of its authors: DATA_DIR/babi/babi_en.tar.gz, or the folder en/ that is in it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
import re
import tarfile
from typing import NamedTuple
import zlib

import numpy as np

from hope_jax.data import files
from hope_jax.scoring import needles

TASKS = (1, 2, 3, 4, 5)  # of which the leaderboard of long contexts takes the mean
_NAME = re.compile(r"(?:^|/)en/qa(\d+)_[\w-]+_test\.txt$")


class Story(NamedTuple):
  """A question about facts, in their order."""
  facts: tuple[str, ...]
  question: str
  answer: str


def load(data_dir: str | Path, tasks: Sequence[int] = TASKS) -> dict[int, list[Story]]:
  """{task: its test questions}.

  Raises FileNotFoundError that says which file belongs where, ValueError that names a bad line.
  """
  folder, found = Path(data_dir) / "babi", {}
  for name, text in _texts(folder):
    match = _NAME.search(name)
    if match and int(match[1]) in tasks:
      found[int(match[1])] = list(read(text, name))
  if missing := [task for task in tasks if task not in found]:
    raise FileNotFoundError(
        f"no test file of bAbI task {', '.join(map(str, missing))}: put the authors' "
        f"babi_en.tar.gz, or its folder en with qa{missing[0]}_..._test.txt, into {folder} "
        "(--data_dir names the folder around babi)")
  return {task: found[task] for task in tasks}


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
  """(name, text) of all files of questions, packed or not."""
  for path in sorted(folder.glob("**/en/qa*_test.txt")):
    yield path.as_posix(), files.text(path)
  for path in sorted(folder.glob("*.tar.gz")):
    try:
      with tarfile.open(path) as packed:
        for member in packed:
          if _NAME.search(member.name):
            yield f"{path}/{member.name}", files.decode(packed.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError) as error:
      raise ValueError(f"{path} cannot be unpacked ({error}): fetch it again") from None


def read(text: str, name: str) -> Iterator[Story]:
  """The questions of a file. ValueError names a line that is none of bAbI's."""
  facts = []
  for number, line in enumerate(text.splitlines(), 1):
    match = re.fullmatch(r"(\d+) ([^\t]+)(?:\t([^\t]+)\t[\d ]+)?", line)
    if match is None:
      raise ValueError(f"{name}, line {number}: {line[:60]!r} is no line of bAbI: write a number "
                       "and a fact, or a number, a question, tab, answer, tab, numbers of facts")
    if match[1] == "1":
      facts = []
    if match[3] is None:
      facts.append(match[2].strip())
    elif not facts:
      raise ValueError(f"{name}, line {number}: a question before any fact")
    else:
      yield Story(tuple(facts), match[2].strip(), match[3])


def fitting(stories: dict[int, list[Story]], tokenizer, tokens: int) -> dict[int, list[Story]]:
  """Those whose facts take at most so many tokens. ValueError for a task that has none."""
  found = {}
  for task, own in stories.items():
    sizes = map(len, tokenizer.encode_batch([" " + " ".join(story.facts) for story in own]))
    found[task] = [story for story, size in zip(own, sizes) if size <= tokens]
    if not found[task]:
      raise ValueError(f"no question of bAbI task {task} has facts of at most {tokens} tokens: "
                       "choose longer --lengths, or other --tasks")
  return found


def case(world: needles.World, stories: dict[int, list[Story]], task: int, length: int,
         index: int) -> needles.Case:
  """A question whose facts lie anywhere in a context of `length` tokens, in their order.

  Which one depends on (seed, task, index), so that every length asks the same. Choices are all
  answers of the task. ValueError where the facts are longer than the context.
  """
  order = np.random.default_rng([world.seed, task]).permutation(len(stories[task]))
  story = stories[task][order[index % len(order)]]
  rng = np.random.default_rng([world.seed, zlib.crc32(b"babi"), task, length, index])
  facts = [(depth, f" {fact}") for depth, fact in zip(np.sort(rng.random(len(story.facts))),
                                                     story.facts)]
  contexts = needles.hidden(world, length, (world.text_N, int(rng.integers(len(world.text_N)))),
                            facts, len(facts))
  others = sorted({each.answer for each in stories[task]} - {story.answer})
  question = f"\nAnswer with one word. Question: {story.question} Answer:"
  return needles.Case(f"qa{task}", None, *contexts, question, (story.answer,),
                      tuple(f" {answer}" for answer in (story.answer, *others)), brief=True)
