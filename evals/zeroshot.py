"""Zero-shot questions with choices: PIQA to LAMBADA, with and without memorization.

    python evals/zeroshot.py --checkpoint=runs/smollm --data_dir=data --output=zeroshot.json
    python evals/zeroshot.py --checkpoint=runs/online --tasks=piqa,boolq --max_samples=200 \\
        --memorize --output=zeroshot.json

Without --data_dir the questions come from the Hugging Face hub (hope_jax[evals]); with it, from
files of the same form below that folder, as `hope_jax/scoring/zeroshot.py` names them. Prompts and
scores are those of EleutherAI's harness without examples.

The file holds accuracies with 95 % intervals, questions and tokens per second (batches that had to
compile left out), and every choice's log-likelihood. With --memorize every question is answered
twice, without and with what its own prompt taught, and the paired difference is given; with
--memorize_use_correct_answer the right answer is memorized, too, and the file says that it LEAKS.
An interrupted run goes on from the questions already answered (OUTPUT.partial).
"""

import hashlib
import json

from absl import app, flags
import numpy as np
from tqdm import tqdm

from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import answers, intervals, memorization, results, zeroshot


def chosen(questions: list, count: int, seed: int) -> list:
  """So many of the questions, drawn by seed, in their order; all for 0."""
  if not count or count >= len(questions):
    return questions
  drawn = np.random.default_rng(seed).permutation(len(questions))[:count]
  return [questions[i] for i in sorted(drawn)]


def digest(questions: list) -> str:
  """Of what is asked: other questions are other rows."""
  return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def evaluate(model, how, f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """(all that the file holds but its date and command, what goes when it is written)."""
  config, params, tokenizer = model
  asked = {name: chosen(zeroshot.read(name, f.data_dir), f.max_samples, f.seed) for name in f.tasks}
  settings = results.of_model(config, params, tokenizer.digest) | how.facts() | {
      "checkpoint": f.checkpoint, "seed": f.seed, "max_samples": f.max_samples,
      "questions": {name: digest(questions) for name, questions in asked.items()}}
  own = answers.Asked(config, params, tokenizer, how, f.batch)
  batches = {name: own.batches(questions) for name, questions in asked.items()}
  kept = results.Partial(f.output + ".partial", settings | {"batches": batches})
  rows, done = {name: [None] * len(questions) for name, questions in asked.items()}, 0
  with tqdm(total=sum(map(len, asked.values())), unit="question") as bar:
    for name, questions in asked.items():
      for batch in batches[name]:
        some = [questions[i] for i in batch]
        if done == len(kept.batches):
          kept.add(own.answer(some, len(batches[name][0])))
        elif how.on and not how.reset:
          own.learn(some)  # what an interrupted run had learned
        for i, row in zip(batch, kept.batches[done]):
          rows[name][i] = row
        done += 1
        bar.set_description(name)
        bar.update(len(batch))
  tasks = {name: answers.summary(rows[name], zeroshot.TASKS[name].metrics, f.seed)
           for name in asked}
  return settings | {"tasks": tasks, "average": average(tasks, rows, f.seed), "rows": rows}, kept


def average(tasks: dict, rows: dict, seed: int) -> dict:
  """Over the tasks, of the metric that each is told by."""
  return {kind: intervals.average([[row[kind][next(iter(tasks[name]["scores"]))] for row in own]
                                   for name, own in rows.items()], seed)
          for kind in ("baseline", "memorized") if all(kind in own[0] for own in rows.values())}


def show(result: dict) -> str:
  """A row for each task and metric."""
  kinds = [kind for kind in ("baseline", "memorized") if kind in result["average"]]
  columns = [*kinds, *["difference"] * (len(kinds) > 1)]
  lines = [[name, metric, task["samples"], "" if task["chance"] is None else
            f"{task['chance']:.3f}", *[tables.score(entry[column]) for column in columns],
            f"{task['speed']['baseline']['questions_per_second']:.2f}"]
           for name, task in result["tasks"].items() for metric, entry in task["scores"].items()]
  lines.append(["average", "", "", "", *[tables.score(result["average"][kind]) for kind in kinds],
                *[""] * (len(columns) - len(kinds) + 1)])
  leak = "LEAKS THE ANSWER: it was memorized before the question was asked\n\n"
  return leak * result["leaks_the_answer"] + "\n".join(
      [tables.markdown(["task", "", "questions", "chance", *columns, "questions/s"], lines),
       *[f"{name}\n\n{tables.memories(task['memories'], 'question')}"
         for name, task in result["tasks"].items() if task["memories"]]])


def define_flags(values: flags.FlagValues) -> None:
  for name, about in (("checkpoint", "Folder of a run."), ("output", "All numbers, as JSON.")):
    program.define_path(name, about, flag_values=values, required=True)
  program.define_path("data_dir", "Folder with the questions' files; without it, the hub.",
                      flag_values=values)
  flags.DEFINE_list("tasks", list(zeroshot.TASKS), f"Of {', '.join(zeroshot.TASKS)}.",
                    flag_values=values)
  flags.DEFINE_integer("max_samples", 0, "Questions of each task; 0: all.", lower_bound=0,
                       flag_values=values)
  flags.DEFINE_integer("batch", None, "Prompts at a time. Default: as many as fit.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the choice of questions and of the intervals.", lower_bound=0,
                       flag_values=values)
  memorization.define_options(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--tasks=piqa,boolq")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    if unknown := [name for name in f.tasks if name not in zeroshot.TASKS]:
      raise ValueError(f"--tasks={unknown[0]}: there is none; choose from "
                       f"{', '.join(zeroshot.TASKS)}")
    *model, how = memorization.begin(f)
    result, partial = evaluate(model, how, f)
    print(show(result))
    results.write(output, results.stamp("evals/zeroshot.py"), result)
    partial.close()


if __name__ == "__main__":
  program.start(main, define_flags)
