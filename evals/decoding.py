"""Time per token of generation: a model whose levels write in context, beside its plain twin.

    python evals/decoding.py --model=attention_1 --tokens=64

The twin has the same levels, and nothing writes them. Both take turns of so many tokens;
the ratio is that of the summed times, its 95 % interval over the rounds. A stream that has learned
a text costs what a fresh one does: the same arrays are read.
"""

import os
import time

from absl import flags
import jax

from hope_jax.evals import speed
from hope_jax.model import lm
from hope_jax.reading.stream import Stream
from hope_jax.reports import tables
from hope_jax.runtime import program
from hope_jax.scoring import intervals, results

FLAGS = flags.FLAGS


def writer(config):
  """A stream of random parameters, begun: () -> (seconds, processor seconds) a token."""
  stream = Stream(config, lm.init_params(config, jax.random.key(0)))
  list(stream.generate([1] * 16, 2))

  def turn() -> tuple[float, float]:
    began, processor = time.perf_counter(), time.process_time()
    list(stream.generate([], FLAGS.tokens))
    return ((time.perf_counter() - began) / FLAGS.tokens,
            (time.process_time() - processor) / FLAGS.tokens)
  return turn


def define_flags(values: flags.FlagValues) -> None:
  speed.define_flags(values)  # preset, batch, chunk, rounds, output
  flags.DEFINE_string("model", "attention_1", "One of speed.py that writes in context.",
                      flag_values=values)
  flags.DEFINE_integer("tokens", 64, "In a turn.", lower_bound=1, flag_values=values)


def main(_):
  c = speed.configuration(FLAGS.model)
  plain = speed.configuration(FLAGS.model)
  plain.channel.in_context = False
  turns, taken = {"plain": writer(plain), "writes": writer(c)}, {"plain": [], "writes": []}
  for _ in range(FLAGS.rounds):
    for name, turn in turns.items():
      taken[name].append(turn())
  rows, report = [], {}
  for i, kind in enumerate(("seconds", "processor_seconds")):
    own = {name: [each[i] for each in rounds] for name, rounds in taken.items()}
    ratio = intervals.interval(own["plain"], own["writes"], 0)
    report[kind] = own | {"ratio": ratio}
    rows.append([kind.replace("_", " "), *(f"{1e3 * min(own[name]):.2f}" for name in own),
                 tables.score(ratio)])
  head = [f"{FLAGS.model}, load {os.getloadavg()[0]:.1f}", "plain, fastest ms a token",
          "with levels, fastest ms", "speed, with / plain (95 %)"]
  print(tables.markdown(head, rows))
  if FLAGS.output:
    results.write(FLAGS.output, results.stamp("evals/decoding.py"), results.machine(), report)


if __name__ == "__main__":
  program.start(main, define_flags)
