"""bAbI's questions 1 to 5, their facts scattered in L tokens of books, baseline and memorized.

    python evals/babi.py --checkpoint=runs/smoke --data_dir=data --output=babi.json
    python evals/babi.py --checkpoint=runs/online --data_dir=data --output=babi.json --memorize

DATA_DIR has babi/babi_en.tar.gz as its authors made it, and books in corpora/fiction*.jsonl.gz;
--haystack names other text, and where there is neither, the text that every Python carries is read.

Asked are questions whose facts take at most half of the shortest context, the same at all lengths.
The answer is what the model writes up to the end of its line or sentence: it must name the right
one and no other answer of the task. Beside it stands the choice among all answers of the task. The
score is the average of the tasks, which have equally many questions; contexts, controls, speed and
interruptions are as in evals/niah.py.
"""

import functools
from pathlib import Path

from absl import flags
import numpy as np

from hope_jax.reports import heatmap
from hope_jax.runtime import program
from hope_jax.scoring import babi, needles, recalled


def define_flags(values: flags.FlagValues) -> None:
  recalled.define_flags(values, samples=25, depths=("0",), haystack=())
  program.define_path("data_dir", "Folder around babi/ and corpora/.", flag_values=values,
                      required=True)
  flags.DEFINE_list("tasks", [str(task) for task in babi.TASKS], "Of bAbI.", flag_values=values)


def books(f: flags.FlagValues) -> list[str]:
  """--haystack, or what --data_dir has."""
  found = sorted(map(str, Path(f.data_dir).glob("corpora/fiction*.jsonl*")))
  return list(f.haystack) or found or ["embedded"]


def make(f: flags.FlagValues, tokenizer) -> recalled.Plan:
  """Contexts of babi.py."""
  if unknown := [task for task in f.tasks if not task.isdecimal()]:
    raise ValueError(f"--tasks={unknown[0]}: tasks are numbers, 1,2,3")
  every, hay = babi.load(f.data_dir, [int(task) for task in f.tasks]), books(f)
  stories = babi.fitting(every, tokenizer, min(map(int, f.lengths)) // 2)
  world = needles.make_world(tokenizer, hay, f.field, max(map(int, f.lengths)), f.seed)
  def case(kind, length, _, index):
    return babi.case(world, stories, int(kind.removeprefix("qa")), length, index)
  chances = [1 / len({story.answer for story in own}) for own in stories.values()]
  return recalled.Plan([f"qa{task}" for task in stories], [None], case, float(np.mean(chances)),
                       {"questions": {f"qa{task}": len(own) for task, own in stories.items()},
                        "data_dir": f.data_dir, "haystack": hay,
                        "haystack_digest": world.digest})


def main(argv, f: flags.FlagValues = flags.FLAGS):
  result = recalled.run(argv, f, "evals/babi.py", make)
  heatmap.report(result, f.output, functools.partial(heatmap.draw, by="kind",
                                                       scores=("exact", "choice")))


if __name__ == "__main__":
  program.start(main, define_flags)
