"""Segments of text learned one after the other: what is forgotten, and what is gained.

    python evals/continual.py --checkpoint=runs/smollm_levels --memorize --output=continual.json \\
        --domains=data/corpora/fiction.jsonl.gz,data/corpora/news.jsonl.gz
    python evals/continual.py --checkpoint=runs/online --memorize --output=years.json \\
        --years=data/corpora/news.jsonl.gz
    python evals/continual.py --checkpoint=runs/a/checkpoints/100,runs/a/checkpoints/200,... \\
        --domains=... --output=trained.json

One checkpoint learns while it reads (--memorize): its memories are carried through the segments.
Several, in order, are a run before any segment and after each; nothing is memorized then. After
every segment all of them are tested. The file holds the whole matrix and what
`hope_jax/scoring/forgetting.py` makes of it, with 95 % intervals: final average, forgetting,
backward and forward transfer, beside the bounds: frozen (nothing is ever learned) and joint (all
segments in one mixture). A segment that is not learned even alone is flagged: the protocol then
says nothing about forgetting. A picture lies next to the file where matplotlib is there. An
interrupted run goes on (OUTPUT.partial).
"""

from absl import app, flags
import numpy as np
from tqdm import tqdm

from hope_jax.reading import opening
from hope_jax.reports import learned, tables
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import forgetting, memorization, results, segments
from hope_jax.scoring.sequence import Learner, stages


def found(f: flags.FlagValues, tokenizer) -> list[segments.Segment]:
  """The segments that the flags name."""
  if bool(f.domains) == bool(f.years):
    raise ValueError("name either the files of --domains, one a segment, or the file of --years")
  groups = (segments.domains(f.domains, f.field) if f.domains
            else segments.years(f.years, f.field, f.date))
  if f.years and f.at_most:
    groups = dict(list(groups.items())[-f.at_most:])
  return segments.cut(groups, tokenizer, learn=f.learn_tokens, tests=f.test_documents,
                      tokens=f.test_tokens, seed=f.seed)


def of_one(f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """A checkpoint that memorizes: (all that the file holds, what goes when it is written)."""
  config, params, tokenizer, how = memorization.begin(f)
  if not how.on or how.leak or not how.steps:
    raise ValueError("one checkpoint learns by --memorize, at least once and without an answer; or "
                     "give several: before any segment, and after each")
  own = found(f, tokenizer)
  order, learner = stages(own, f.seed), Learner(config, params, how, own, f.batch)
  settings = results.of_model(config, params, tokenizer.digest) | how.facts() | about(f, own)
  kept, reached = results.Partial(f.output + ".partial", settings), 0
  for number, stage in enumerate(tqdm(order, unit="stage")):
    if number < len(kept.batches):
      continue
    for before in order[reached:number]:  # an interrupted run's state is learned again
      if not stage.fresh:
        learner.learn(before)
    reached, did = number + 1, learner.learn(stage)
    kept.add([{"stage": stage.name, "nats": learner.test(),
               "memories": results.memories(did) if did else {}}])
  rows = [row for batch in kept.batches for row in batch]
  nats, T = [row["nats"] for row in rows], len(own)
  R = table(nats, own, f.seed)
  matrix, alone = R[:T + 1], np.stack([R[T + 1 + i, i] for i in range(T)])
  return settings | summary(matrix, own) | {
      "joint": forgetting.entry(R[-1].mean(0)),
      "over_joint": forgetting.entry((R[T] - R[-1]).mean(0)),
      "alone": forgetting.learned(R[0], alone), "rows": rows}, kept


def of_several(f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """Checkpoints of a training: as `of_one`."""
  if f.memorize:
    raise ValueError("--memorize is for one checkpoint, whose memories are carried through the "
                     "segments")
  models = [opening.load(path) for path in f.checkpoint]
  own, rows = found(f, models[0][2]), []
  if len(models) != len(own) + 1:
    raise ValueError(f"{len(models)} checkpoints for {len(own)} segments: give one before any "
                     "segment, and one after each")
  if len({tokenizer.digest for _, _, tokenizer in models}) > 1:
    raise ValueError("the checkpoints have different tokenizers: nothing compares")
  settings = {"models": [results.of_model(config, params, tokenizer.digest)
                         for config, params, tokenizer in models]} | about(f, own)
  kept = results.Partial(f.output + ".partial", settings)
  for number, (config, params, _) in enumerate(tqdm(models, unit="checkpoint")):
    if number == len(kept.batches):
      learner = Learner(config, params, memorization.Options(False), own, f.batch)
      kept.add([{"stage": f.checkpoint[number], "nats": learner.test()}])
  rows = [row for batch in kept.batches for row in batch]
  R = table([row["nats"] for row in rows], own, f.seed)
  diagonal = np.stack([R[i + 1, i] for i in range(len(own))])
  before = np.stack([R[i, i] for i in range(len(own))])
  return settings | summary(R, own) | {"alone": forgetting.learned(before, diagonal),
                                       "rows": rows}, kept


def about(f: flags.FlagValues, own: list[segments.Segment]) -> dict:
  return {"checkpoint": f.checkpoint, "seed": f.seed, "learn_tokens": f.learn_tokens,
          "test_tokens": f.test_tokens, "segments": [segment.name for segment in own],
          "test_documents": [len(segment.test) for segment in own]}


def table(nats: list, own: list[segments.Segment], seed: int) -> np.ndarray:
  return forgetting.drawn([[row[i] for row in nats] for i in range(len(own))],
                          [segment.sizes for segment in own], seed)


def summary(R: np.ndarray, own: list[segments.Segment]) -> dict:
  return {"bits_per_byte": [[forgetting.entry(value) for value in row] for row in R],
          "frozen": forgetting.entry(R[0].mean(0)), "metrics": forgetting.metrics(R)}


def show(result: dict) -> str:
  """The matrix, what it says, and whether it says anything."""
  names, last = result["segments"], len(result["segments"]) + 1
  lines = [[row["stage"], *(f"{cell['value']:.4f}" for cell in cells)]
           for row, cells in zip(result["rows"][:last], result["bits_per_byte"])]
  scores = {"frozen": result["frozen"]} | result["metrics"] | {
      name: result[name] for name in ("joint", "over_joint") if name in result}
  still = [name for name, own in zip(names, result["alone"]) if not own["learned"]]
  return "\n".join([
      tables.markdown(["bits per byte of", *names], lines),
      tables.markdown(["mean over segments", "bits per byte (95 %)"],
                      [[name, tables.score(own)] for name, own in scores.items()]),
      *[f"NOT LEARNED, even alone: {', '.join(still)}; what is said of forgetting says nothing "
        "of them\n"] * bool(still),
      *(tables.memories(row["memories"], "document") for row in result["rows"][1:last]
        if row.get("memories"))])


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("checkpoint", None, "Folder of a run, or several.", flag_values=values,
                    required=True)
  program.define_path("output", "All numbers, as JSON.", flag_values=values, required=True)
  flags.DEFINE_list("domains", [], "Files of JSON lines (plain or packed), a segment each, in "
                                   "order.", flag_values=values)
  program.define_path("years", "A file of JSON lines with dates: a segment a year.",
                      flag_values=values)
  flags.DEFINE_string("field", "text", "Of JSON lines: where the text is.", flag_values=values)
  flags.DEFINE_string("date", "date", "Of --years: where the date is.", flag_values=values)
  for name, default, about, least in (
      ("at_most", 0, "Years, the last ones; 0: all.", 0),
      ("learn_tokens", 4096, "Learned of each segment.", 2),
      ("test_documents", 16, "Of each segment, none of those that are learned.", 2),
      ("test_tokens", 512, "Of each test document at most.", 2),
      ("seed", 0, "Of the choice of documents and of the intervals.", 0)):
    flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)
  flags.DEFINE_integer("batch", None, "Test documents at a time. Default: as many as fit.",
                       lower_bound=1, flag_values=values)
  memorization.define_options(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    several = len(f.checkpoint) > 1
    if not several:
      f.checkpoint = f.checkpoint[0]
    result, partial = (of_several if several else of_one)(f)
    print(show(result))
    results.write(output, results.stamp("evals/continual.py"), result)
    partial.close()
  try:
    learned.matrix(result).savefig(output.with_suffix(".png"), dpi=120)
  except ImportError:
    say("no picture without matplotlib: pip install hope_jax[plots]")


if __name__ == "__main__":
  program.start(main, define_flags)
