"""Questions about a memorized text: nats per token of the right answer, and what memory gains.

    python evals/questions.py --checkpoint=runs/online --questions=questions.jsonl --output=out.json

Every line of the file is {"text": ..., "prompt": ..., "answer": ...}; without "text", the prompt
itself is memorized.

    off  the prompt is read by a stream that knows nothing, and the answer is scored.
    on   first the text is memorized: read --steps times through the writes. The context that
         attention kept is then dropped, so only what was learned can help. No level is written
         while a question is asked (self-modifying memories are, off and on: so they read).

Every sample starts from a fresh state; with --noreset it starts from what the samples before it
have taught. With --use_correct_answer the prompt and its answer are memorized after the text: an
upper bound that LEAKS THE ANSWER, and the output says so. Intervals are of 95 %, over samples that
are drawn with replacement, both readings of one together.
"""

import json
from typing import NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax.data import files
from hope_jax.model import lm, plan
from hope_jax.reading import study
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import memorization, results
from hope_jax.scoring.intervals import both_ways


class Sample(NamedTuple):
  """Token ids, each with <s> in front but the answer's."""
  text: list[int]
  prompt: list[int]
  answer: list[int]


def read(path: str, tokenizer) -> list[Sample]:
  """The samples of a file of JSON lines. ValueError names the line that is none."""
  samples = []
  # not splitlines, which ends lines within JSON's texts
  for number, line in enumerate(files.text(path).split("\n"), 1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      prompt, answer = entry["prompt"], entry["answer"]
      text, prompt, answer = (tokenizer.encode(part)
                              for part in (entry.get("text", prompt), prompt, answer))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise ValueError(f"{path}, line {number}: {error!r}; write one JSON object a line with the "
                       "texts \"prompt\" and \"answer\", and \"text\" if something else than the "
                       "prompt is to be memorized") from None
    if not answer or not text:
      raise ValueError(f"{path}, line {number}: the {'text' if answer else 'answer'} is empty")
    samples.append(Sample([*tokenizer.begin, *text], [*tokenizer.begin, *prompt], answer))
  if len(samples) < 2:
    raise ValueError(f"{path} has {len(samples)} questions: an interval needs 2")
  return samples


def ask(config, params, fast, samples: list[Sample]) -> list[float]:
  """Nats of each stream's answer, after its prompt; `fast` is donated."""
  report = study.memorize(config, params, fast,
                          [sample.prompt + sample.answer for sample in samples], write=False)[1]
  return [float(nats_T[known_T][-len(sample.answer):].astype(np.float64).sum())
          for nats_T, known_T, sample in zip(report.nats_BxT, report.labels_BxT, samples)]


def score(config, params, samples: list[Sample], *, steps: int, batch: int, reset: bool,
          leak: bool) -> tuple[list[dict], dict]:
  """(a row for each sample, what each memory did: means over samples, readings and layers).

  Raises RuntimeError for a memory that did nothing.
  """
  fresh, rows, totals = (lambda size: lm.init_fast(config, size)), [], []
  batch, state, enabled = (batch if reset else 1, None if reset else fresh(1),
                           plan.of(config).enabled)
  with tqdm(total=len(samples), unit="question") as bar:
    for some in (samples[i:i + batch] for i in range(0, len(samples), batch)):
      off = ask(config, params, fresh(len(some)), some)
      state, readings = study.replay(config, params, fresh(len(some)) if reset else state,
                                     [s.text for s in some], steps)
      if leak:
        state, _ = study.replay(config, params, state, [s.prompt + s.answer for s in some], steps)
      on = ask(config, params, jax.tree.map(jnp.copy, lm.forget_context(config, state)), some)
      totals += [study.mean_totals([report.totals(enabled) for report in readings])] * len(some)
      if "selfmod" in enabled:
        study.check_moved(readings[-1].stats["selfmod"])
      rows += [{"tokens": len(s.answer), "off": a, "on": b} for s, a, b in zip(some, off, on)]
      bar.update(len(some))
  return rows, results.memories(totals)


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Folder of a run.", flag_values=values, required=True)
  program.define_path("questions", "JSON lines with prompt, answer and text.",
                      flag_values=values, required=True)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)
  flags.DEFINE_integer("steps", 1, "Times a text is read.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("batch", 8, "Samples at once; with --noreset it is 1.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the intervals.", lower_bound=0, flag_values=values)
  flags.DEFINE_bool("reset", True, "Every sample starts afresh; --noreset: from what those before "
                                   "it taught.", flag_values=values)
  flags.DEFINE_bool("use_correct_answer", False, "Memorize the answer, too: an upper bound.",
                    flag_values=values)
  memorization.define_flags(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: name the file with --questions=...")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    config, params, tokenizer = memorization.load(f)
    if not plan.of(config).enabled:
      raise ValueError("nothing is memorized: correct --paths (known: "
                       f"{', '.join(plan.of(config).paths)}) and --layers, or train with a level's "
                       "lr above 0")
    if f.output is not None:
      results.ready(f.output)
    rows, memories = score(config, params, read(f.questions, tokenizer), steps=f.steps,
                           batch=f.batch, reset=f.reset, leak=f.use_correct_answer)
    def column(key):
      return np.array([row[key] for row in rows])
    gains = both_ways(column("off"), column("on"), column("tokens"), f.seed)
    if f.use_correct_answer:
      print("LEAKS THE ANSWER: it was memorized before the question was asked\n")
    print(tables.markdown(
        ["nats per token of the answer (95 %)", "memory off", "memory on", "gain"],
        [[f"{len(rows)} questions", *map(tables.score, gains.values())]]))
    print(tables.memories(memories, "reading"))
    if f.output is not None:
      results.write(f.output, results.stamp("evals/questions.py"),
                    results.of_model(config, params, tokenizer.digest),
                    {"seed": f.seed, "leaks_the_answer": f.use_correct_answer, "reset": f.reset,
                     "steps": f.steps, "samples": len(rows), "nats_per_token": gains,
                     "memories": memories, "rows": rows})


if __name__ == "__main__":
  program.start(main, define_flags)
