"""Questions a second, as evals/zeroshot.py answers them and with one choice at a time.

    python evals/answering.py --checkpoint=runs/smollm --data_dir=data --output=answering.json

One choice at a time: prompt and choice are one text that is read whole, alone, with the logits of
every token. Both ways read the same questions, padded to the same lengths, each shape compiled
before; they are timed in turns, and their log-likelihoods must agree.
"""

import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax.model import lm
from hope_jax.reading import opening, reader
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import answers, choices, memorization, results, zeroshot


def alone(config):
  """(params, tokens, labels) -> log-likelihood of one text's labels."""
  model = lm.build(config)
  @jax.jit
  def read(params, tokens_T, labels_T):
    logits, _, _ = model.apply({"params": params}, tokens_T[None])
    return -jnp.sum(reader.token_losses(logits, labels_T[None]))
  return read


def one_at_a_time(read, params, prompts) -> list[float]:
  """The log-likelihood of every continuation of every prompt."""
  out = []
  for prompt in prompts:
    for own in prompt.continuations:
      ids = prompt.ids + own
      tokens, labels = np.zeros((2, choices.padded(len(ids) - 1)), np.int32)
      tokens[:len(ids) - 1] = ids[:-1]
      labels[:] = -1
      labels[len(prompt.ids) - 1:len(ids) - 1] = own
      out.append(float(read(params, tokens, labels)))
  return out


def measure(model, name: str, f: flags.FlagValues) -> dict:
  """Of one task: seconds of both ways for the same questions, and how far apart they are."""
  config, params, tokenizer = model
  asked = answers.Asked(config, params, tokenizer, memorization.Options(False))
  questions = zeroshot.read(name, f.data_dir)
  batches = asked.batches(questions)
  some = [questions[i] for i in batches[len(batches) // 2]][:f.batch]  # of middling length
  flat, read = [prompt for own in asked.encoded(some) for prompt in own], alone(config)
  ways = {"together": lambda: [value for row in asked.answer(some)
                               for value in row["baseline"]["log_likelihoods"]],
          "one_at_a_time": lambda: one_at_a_time(read, params, flat)}
  found, seconds = {way: run() for way, run in ways.items()}, {way: [] for way in ways}
  for _ in range(f.rounds):
    for way, run in ways.items():
      before = time.perf_counter(), time.process_time()
      run()
      seconds[way].append([time.perf_counter() - before[0], time.process_time() - before[1]])
  total = {way: np.median(own, 0) for way, own in seconds.items()}
  apart = float(np.max(np.abs(np.subtract(*found.values()))))
  if apart > 1e-2:
    raise RuntimeError(f"{name}: the two ways are {apart:.3g} nats apart")
  return {"questions": len(some), "apart": apart,
          "questions_per_second": {way: len(some) / own[0] for way, own in total.items()},
          "by_time": total["one_at_a_time"][0] / total["together"][0],
          "by_processor_time": total["one_at_a_time"][1] / total["together"][1]}


def define_flags(values: flags.FlagValues) -> None:
  for name, about in (("checkpoint", "Folder of a run."), ("output", "All numbers, as JSON."),
                      ("data_dir", "Folder with the questions' files.")):
    program.define_path(name, about, flag_values=values, required=True)
  flags.DEFINE_list("tasks", ["piqa", "hellaswag", "arc_easy", "boolq", "commonsense_qa"],
                    f"Of {', '.join(zeroshot.TASKS)}.", flag_values=values)
  for name, default, about in (("batch", 32, "Questions of each task."),
                               ("rounds", 3, "Times that each way is timed.")):
    flags.DEFINE_integer(name, default, about, lower_bound=1, flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, RuntimeError):
    startup.prepare()
    output, model = results.ready(f.output), opening.load(f.checkpoint)
    tasks = {name: measure(model, name, f) for name in tqdm(f.tasks, unit="task")}
    print(tables.markdown(
        ["task", "questions", "together, questions/s", "one choice at a time", "ratio",
         "by processor time"],
        [[name, own["questions"], *(f"{value:.2f}" for value in (
            *own["questions_per_second"].values(), own["by_time"], own["by_processor_time"]))]
         for name, own in tasks.items()]))
    results.write(output, results.stamp("evals/answering.py"), results.machine(),
                  results.of_model(*model[:2], model[2].digest), {"tasks": tasks})


if __name__ == "__main__":
  program.start(main, define_flags)
