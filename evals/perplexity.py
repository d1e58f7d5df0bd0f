"""Perplexity and bits per byte of whole documents, streamed with state, by domain.

    python evals/perplexity.py --checkpoint=runs/smoke --output=perplexity.json
    python evals/perplexity.py --checkpoint=runs/online --documents=notes/ --memorize \\
        --output=perplexity.json

Every document is read from its first token to its last, in constant memory; nothing is cut. What
is given is weighted by tokens (perplexity) or bytes (bits per byte, which compares models of
different tokenizers), with 95 % intervals over documents. With --memorize each is read twice: with
all memories off, and with what the options say written while it is read (a text that is read more
than once is scored the last time); gain is off - on.

Of a source that the checkpoint was trained on, only validation documents are read. An interrupted
run goes on from the documents already read (OUTPUT.partial).
"""

import math
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax.data import heldout
from hope_jax.model import attention, lm, plan
from hope_jax.reading import study
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import choices, documents, memorization, results

WHOLE = 10**12  # tokens: no document has so many


def read(model, how, samples, learned) -> tuple[list[dict], object]:
  """(a row for each document of a batch, the streams as they were left, where that counts)."""
  config, params = model
  texts = [sample.ids for sample in samples]
  room = attention.with_room(config, choices.room(max(map(len, texts))))
  off = documents.switched_off(room, True)  # self-modifying memories write: that is how they read
  def timed(*args, **options):
    before = time.perf_counter()
    out = study.memorize(*args, **options)
    return *out, time.perf_counter() - before
  _, report, seconds = timed(off, params, lm.init_fast(off, len(texts)), texts, write=False)
  reports, speed, before_B = {"off": report}, {"off": seconds}, {"off": np.zeros(len(texts), int)}
  if how.on:
    fast = (memorization.start(room, params, how, len(texts), config) if learned is None
            else memorization.fitted(room, learned))
    fast, _ = study.replay(room, params, fast, texts, how.steps - 1)
    before_B["on"] = np.asarray(fast.count_B)
    fast, reports["on"], speed["on"] = timed(room, params, lm.forget_context(room, fast), texts)
    learned = None if how.reset else jax.tree.map(jnp.copy, fast)
  at = np.array([0, max(map(len, texts))])
  def of_stream(name, b):
    reach = memorization.reach(room, before_B[name][b], len(texts[b]))
    return reports[name].stream(room, b, reach)
  return [documents.row(room, sample, {name: of_stream(name, b) for name in reports}, at)
          | {"seconds": {name: value / len(texts) for name, value in speed.items()}}
          for b, sample in enumerate(samples)], learned


def evaluate(f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """(all that the file holds but its date and command, what goes when it is written)."""
  config, params, tokenizer, how = memorization.begin(f)
  if how.leak or how.on and not how.steps:
    raise ValueError("a text is its own answer, and is read at least once: leave out "
                     "--memorize_use_correct_answer, and --memorize_steps=0")
  found = heldout.sources(f.documents, f.field, config.data.sources, config.data.val_fraction)
  samples = heldout.choose(found, tokenizer, tokens=WHOLE, min_tokens=2, skip=0,
                           count=f.max_samples, seed=f.seed)
  batch = f.batch if how.reset else 1
  if how.reset:
    samples.sort(key=lambda sample: -len(sample.ids))  # so that a batch holds little padding
  settings = results.of_model(config, params, tokenizer.digest) | how.facts() | {
      "checkpoint": f.checkpoint, "seed": f.seed, "batch": batch}
  kept = results.Partial(f.output + ".partial", settings | {
      "documents": [[sample.source, sample.name] for sample in samples]})
  learned, done = None, len(kept.batches)
  with tqdm(total=sum(len(sample.ids) for sample in samples), unit="token") as bar:
    for number, first in enumerate(range(0, len(samples), batch)):
      some = samples[first:first + batch]
      if number >= done or not how.reset:  # what an interrupted run had learned is learned again
        rows, learned = read((config, params), how, some, learned)
      if number >= done:
        kept.add(rows)
      bar.update(sum(len(sample.ids) for sample in some))
  rows = [row for rows in kept.batches for row in rows]
  return settings | summary(rows, plan.of(config).enabled if how.on else (), f.seed) | {
      "rows": rows}, kept


def summary(rows: list[dict], enabled, seed: int) -> dict:
  """All scores with their intervals, tokens per second, and what the memories did."""
  scores = documents.scores(rows, seed)
  tokens, ways = scores["tokens"], [way for way in scores["nats_per_token"] if way != "gain"]
  return scores | {
      "perplexity": {way: {key: value if value is None else math.exp(value)
                           for key, value in scores["nats_per_token"][way].items()}
                     for way in ways},
      "tokens_per_second": {way: tokens / sum(row["seconds"][way] for row in rows)
                            for way in ways},
      "domains": documents.by_domain(rows, seed)} | (
          documents.memories(rows, enabled) if enabled else {"memories": {}})


def show(result: dict) -> str:
  """A row for each domain."""
  ways = list(result["bits_per_byte"])
  lines = [[name, part["documents"], f"{part['tokens']:,}",
            *(tables.score(part["bits_per_byte"][way]) for way in ways)]
           for name, part in [("all", result), *result["domains"].items()]]
  return "\n".join([
      tables.markdown(["bits per byte", "documents", "tokens", *ways], lines),
      tables.markdown(["perplexity", *result["perplexity"]],
                      [["all", *map(tables.score, result["perplexity"].values())]]),
      tables.memories(result["memories"], "document")])


def define_flags(values: flags.FlagValues) -> None:
  for name, about in (("checkpoint", "Folder of a run."), ("output", "All numbers, as JSON.")):
    program.define_path(name, about, flag_values=values, required=True)
  flags.DEFINE_list("documents", ["own"], "JSON lines (plain or .gz), text files, folders of "
                    "either; embedded: the text that every Python carries; own: the checkpoint's "
                    "sources.", flag_values=values)
  flags.DEFINE_string("field", "text", "Of JSON lines: where the text is.", flag_values=values)
  for name, default, about, least in (("max_samples", 32, "Documents.", 2),
                                      ("seed", 0, "Of the choice of documents.", 0),
                                      ("batch", 8, "Documents read at a time.", 1)):
    flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)
  memorization.define_options(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    result, partial = evaluate(f)
    print(show(result))
    results.write(output, results.stamp("evals/perplexity.py"), result)
    partial.close()


if __name__ == "__main__":
  program.start(main, define_flags)
