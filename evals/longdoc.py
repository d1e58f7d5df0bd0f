"""What memory gains in long held-out documents, streamed with state, and where in a document.

    python evals/longdoc.py --checkpoint=runs/smoke --output=docs.json
    python evals/longdoc.py --checkpoint=runs/smoke --output=docs.json --documents=notes/
    python evals/longdoc.py --checkpoint=runs/plain --output=docs.json --in_context --lr=0.01

The first reads validation documents of the checkpoint's own sources; the last writes levels that
were trained without.

Every document is read twice from a fresh state, the same tokens: memory off (nothing is written)
and memory on. The file holds bits per byte both ways and the gain (off - on; positive: memory
helps), nats per token by position, what every memory did, all documents one by one, and a 95 %
interval beside every score: documents are drawn with replacement, both readings of one together. A
picture lies next to it where matplotlib is there (hope_jax[plots]).

Documents are chosen by a hash of --seed and their name; --skip leaves out the first ones, so that
settings can be chosen on documents that the final numbers do not see. Of a source that the
checkpoint was trained on, only validation documents are read. An interrupted run goes on from the
documents already scored (OUTPUT.partial).
"""

import dataclasses
import functools

from absl import app, flags
from ml_collections import ConfigDict
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.data import heldout
from hope_jax.model import checks, plan
from hope_jax.reading import opening, study
from hope_jax.reports import gain, tables
from hope_jax.reports.tables import markdown
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import documents, memorization, results


def change(config: ConfigDict, f: flags.FlagValues) -> ConfigDict:
  """The configuration with what the flags say of writing; ValueError for a flag without effect."""
  config = config.copy_and_resolve_references()
  memorization.override(config, f)
  if f.mode is not None:
    config.teach.mode = f.mode
  if f.in_context:
    if config.channel.kind != "cms":
      raise ValueError(f"--in_context: {configs.describe(config)} has no CMS levels")
    config.channel.in_context = True
  titan = config.model.titan != "none"
  levels = (list(config.channel.levels) if config.channel.kind == "cms"
            and config.channel.in_context
            else [])
  names = ["titan"] * titan + [plan.path(entry.name) for entry in levels]
  for field, parse, texts in (("period", int, f.period), ("rule", str, f.rule),
                              ("lr", float, f.lr)):
    if texts is None:
      continue
    if not names:
      raise ValueError(f"--{field}: this model ({configs.describe(config)}) has nothing that is "
                       "written so: add --in_context")
    if len(texts) not in (1, len(names)):
      raise ValueError(f"--{field}: {len(texts)} values for {', '.join(names)}: give one for all, "
                       "or one each")
    values = [parse(text) for text in texts] * (len(names) // len(texts))
    if titan:
      config.titan[field] = values[0]
    levels = [dataclasses.replace(entry, **{field: value})
              for entry, value in zip(levels, values[titan:])]
  if levels:
    config.channel.levels = tuple(levels)
  checks.validate(config)
  if f.period and len(plan.of(config).levels) < len(names):
    raise ValueError("--period: a level is written in context if its period is at most "
                     f"data.seq={config.data.seq}")
  return config


def show(result: dict) -> str:
  """Scores by domain, by position, and what was written."""
  def three(part):
    return [tables.score(part[name]) for name in ("off", "on", "gain")]
  domains = result["domains"].items() if len(result["domains"]) > 1 else ()
  texts = [
      markdown(["bits per byte", "documents", "better with memory", "off", "on",
                "gain (95 % interval)"],
               [[name, part["documents"], part["better"], *three(part["bits_per_byte"])]
                for name, part in [("all", result), *domains]]),
      markdown(["nats per token after", "documents", "off", "on", "gain (95 % interval)"],
               [[f"{p['from']:,} to {p['to']:,}", p["documents"], *three(p)]
                for p in result["positions"]]),
      tables.memories(result["memories"], "document")]
  if result["selfmod"]:
    texts.append(markdown(["self-modifying", "mean"],
                          [[key, f"{mean:.4g}"] for key, mean in result["selfmod"].items()]))
  return "\n".join(text for text in texts if text)


def evaluate(config, params, tokenizer, f: flags.FlagValues) -> tuple[dict, results.Partial]:
  """(all that the file holds but its date and command, what goes when it is written)."""
  on = change(config, f)
  off = documents.switched_off(on, f.selfmod_always)
  paths = [path for path in plan.of(on).enabled if path not in plan.of(off).enabled]
  if not paths:
    raise ValueError(f"this model ({configs.describe(on)}) writes nothing more with memory on than "
                     "with memory off: add --in_context --period=64 --lr=0.01 if its levels were "
                     "trained without writes, or correct --paths and --layers")
  found = heldout.sources(f.documents, f.field, config.data.sources, config.data.val_fraction)
  samples = heldout.choose(found, tokenizer, tokens=f.tokens, min_tokens=f.min_tokens,
                           skip=f.skip, count=f.max_samples, seed=f.seed)
  samples.sort(key=lambda sample: -len(sample.ids))  # so that a batch holds little padding
  cut = sum(sample.whole > f.tokens for sample in samples)
  say(f"{len(samples)} documents, {sum(len(sample.ids) - 1 for sample in samples):,} tokens; {cut} "
      f"of them were cut to {f.tokens:,} tokens; written: {', '.join(paths)}")
  settings = results.of_model(on, params, tokenizer.digest) | {
      "checkpoint": f.checkpoint, "seed": f.seed, "skip": f.skip, "tokens_at_most": f.tokens,
      "min_tokens": f.min_tokens, "batch": f.batch, "written": paths}
  chosen = [[sample.source, sample.name, sample.whole, sample.bytes] for sample in samples]
  kept = results.Partial(f.output + ".partial", settings | {"documents": chosen})
  at = documents.edges(study.size(on), f.tokens)
  with tqdm(total=len(samples), desc="score", unit="document") as bar:
    for number, first in enumerate(range(0, len(samples), f.batch)):
      if number == len(kept.batches):
        kept.add(documents.read(params, on, off, samples[first:first + f.batch], at))
      bar.update(len(kept.batches[number]))
  rows = [each for batch in kept.batches for each in batch]
  return settings | {"cut": cut} | documents.summary(rows, at, f.seed, paths) | {"rows": rows}, kept


def define_flags(values: flags.FlagValues) -> None:
  string, whole, several, yes = (functools.partial(define, flag_values=values) for define in (
      flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_list, flags.DEFINE_bool))
  for name, about in (("checkpoint", "Folder of a run."),
                      ("output", "All numbers, as JSON; the picture lies next to it.")):
    program.define_path(name, about, flag_values=values, required=True)
  several("documents", ["own"], "JSON lines (plain or .gz), text files, folders of either; "
          "embedded: the text that every Python carries; own: the checkpoint's sources.")
  string("field", "text", "Of JSON lines: where the text is.")
  whole("max_samples", 32, "Documents.", lower_bound=2)
  whole("skip", 0, "Documents left out, before --max_samples.", lower_bound=0)
  whole("seed", 0, "Of the choice of documents and of the intervals.", lower_bound=0)
  whole("tokens", 8192, "Of each document at most.", lower_bound=2)
  whole("min_tokens", 2048, "Shorter documents are left out.", lower_bound=2)
  whole("batch", 8, "Documents read at a time.", lower_bound=1)
  yes("in_context", False, "Write CMS levels that were trained without writes.")
  yes("selfmod_always", False, "Self-modifying memories write with memory off, too.")
  string("mode", None, "Of periods below the chunk: chunked | exact. Default: as trained.")
  memorization.define_flags(values)
  each = "one for the Titan memory and all CMS levels, or one each. Default: as trained."
  several("period", None, f"Tokens between updates: {each}")
  several("rule", None, f"Inner optimizer: {each}")
  several("lr", None, f"Learning rate of the inner optimizer: {each}")


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--documents=a.jsonl,b.jsonl")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    result, partial = evaluate(*opening.load(f.checkpoint), f)
    print(show(result))
    results.write(output, results.stamp("evals/longdoc.py"), result)
    partial.close()
  try:
    gain.draw(result).savefig(output.with_suffix(".png"), dpi=120)
  except ImportError:
    say("no picture without matplotlib: pip install hope_jax[plots]")


if __name__ == "__main__":
  program.start(main, define_flags)
