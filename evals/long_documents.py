"""Long documents: what memory gains, and where in a document, over held-out documents streamed with
state.

    python evals/long_documents.py --checkpoint=runs/smoke --output=docs.json
    python evals/long_documents.py --checkpoint=runs/smoke --output=docs.json --documents=notes/
    python evals/long_documents.py --checkpoint=runs/plain --output=docs.json --in_context --lr=0.01

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
import hashlib
import heapq
import json
import math
from pathlib import Path
import re

from absl import app, flags
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.checkpoints import arrays
from hope_jax.data import corpus
from hope_jax.model import checks, lm, plan
from hope_jax.reading import opening, study
from hope_jax.reports.tables import markdown
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import memorization
from hope_jax.scoring.intervals import both_ways



@dataclasses.dataclass(frozen=True)
class Sample:
  """The start of a document: `ids` with <s>, the bytes of text that they stand for;
  `whole`: tokens of all of it.
  """
  source: str
  name: str
  domain: str
  ids: tuple[int, ...]
  bytes: int
  whole: int


# Which documents.


def sources(names: list[str], field: str, trained: tuple[ConfigDict, ...],
            val_fraction: float) -> list[tuple]:
  """[(source, val_fraction, or None where all its documents are held out)].

  trained: the checkpoint's sources. ValueError for text that training may have seen, and for equal
  names.
  """
  found = []
  for name in names:
    if name == "own":
      found += [(source, val_fraction) for source in trained]
      continue
    path = Path(name).expanduser().resolve()
    kind = (name if name == "embedded" else "jsonl" if any(map(_is_jsonl, [path, *path.rglob("*")]))
            else "text")
    stem = re.sub(r"\W+", "_", path.name.split(".")[0]) or "text"
    source = ConfigDict(dict(name=stem, kind=kind, path=name, field=field, domains="", weight=1.0))
    found.append((source, val_fraction if _is_trained_on(source, path, trained) else None))
  if len({source.name for source, _ in found}) < len(found):
    raise ValueError(f"--documents: two of {', '.join(names)} have the same name: rename one, or "
                     "give their folder")
  return found


def _is_jsonl(path: Path) -> bool:
  return re.search(r"\.jsonl?(\.gz)?$", path.name) is not None


def _is_trained_on(source: ConfigDict, path: Path, trained: tuple[ConfigDict, ...]) -> bool:
  """ValueError where documents overlap under other names: their split is not known."""
  if source.kind == "embedded":
    return any(other.kind == "embedded" for other in trained)
  for other in trained:
    at = Path(other.path).expanduser().resolve()
    if other.kind == "embedded":
      continue
    if (at, other.kind) == (path, source.kind):
      return True
    if path.is_relative_to(at) or at.is_relative_to(path):
      raise ValueError(f"--documents={source.path} overlaps with {other.path}, which the "
                       "checkpoint was trained on: give --documents=own for its validation "
                       "documents, or other text")
  return False


def choose(found: list[tuple], tokenizer, *, tokens: int, min_tokens: int, skip: int, count: int,
           seed: int) -> list[Sample]:
  """`count` documents of `min_tokens` or more, cut to `tokens`:
  after `skip`, those of the smallest hashes.
  """
  best = []  # a heap of (-hash, Sample), the largest hash on top
  for source, val_fraction in found:
    for document in tqdm(corpus.read(source), desc=f"read {source.name}", unit=" documents",
                         mininterval=1):
      if val_fraction is not None and corpus.split_of(document.name, val_fraction) != "validation":
        continue
      key = f"{seed} {source.name}/{document.name}".encode("utf-8", "surrogateescape")
      order = -int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
      full = len(best) == skip + count
      if full and order < best[0][0]:
        continue  # before it is encoded: of many documents few are
      ids = tokenizer.encode(document.text)
      if len(ids) >= max(min_tokens, 2):
        kept = (tokenizer.bos, *ids[:tokens])
        size = int(tokenizer.token_bytes[[*kept]].sum())
        sample = Sample(source.name, document.name, document.domain, kept, size, len(ids))
        (heapq.heappushpop if full else heapq.heappush)(best, (order, sample))
  chosen = [sample for _, sample in sorted(best, key=lambda entry: -entry[0])][skip:]
  if len(chosen) < 2:
    raise ValueError(f"{len(chosen)} documents of {min_tokens} tokens or more, after {skip} "
                     "skipped: an interval needs 2: lower --min_tokens or --skip, or give more "
                     "--documents")
  return chosen


# How they are read.


def change(config: ConfigDict, f: flags.FlagValues) -> ConfigDict:
  """The configuration, with what the flags say of writing.
  ValueError for a flag that would have no effect.
  """
  config = config.copy_and_resolve_references()
  memorization.override(config, f)
  if f.mode is not None:
    config.teach.mode = f.mode
  if f.in_context:
    if config.mixer.kind != "cms":
      raise ValueError(f"--in_context: {configs.describe(config)} has no CMS levels")
    config.mixer.in_context = True
  titan = config.model.titan != "none"
  levels = (list(config.mixer.levels) if config.mixer.kind == "cms" and config.mixer.in_context
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
    config.mixer.levels = tuple(levels)
  checks.validate(config)
  if f.period and len(plan.of(config).levels) < len(names):
    raise ValueError("--period: a level is written in context if its period is at most "
                     f"data.seq={config.data.seq}")
  return config


def switched_off(config, selfmod: bool):
  """The configuration for reading with memory off;
  `selfmod`: self-modifying memories still write.
  """
  config = config.copy_and_resolve_references()
  config.teach.paths = ("selfmod",
                        ) if selfmod and "selfmod" in plan.of(config).enabled else ("none",)
  return config


def edges(chunk: int, tokens: int) -> np.ndarray:
  """Of the bins of positions: [0, chunk), in which nothing has been written yet,
  then two an octave.
  """
  steps = max(0, math.ceil(2 * math.log2(tokens / chunk)))
  return np.unique([0, *(round(chunk * 2 ** (k / 2)) for k in range(steps)), tokens])


def read(params, on, off, samples: list[Sample], at: np.ndarray) -> list[dict]:
  """One batch, both ways: a row of the file for each document. `at`: edges of the bins."""
  texts = [sample.ids for sample in samples]
  def fresh(config):
    return lm.init_fast(config, len(texts))
  reports = {"off": study.memorize(off, params, fresh(off), texts, write=False)[1],
             "on": study.memorize(on, params, fresh(on), texts)[1]}
  return [row(on, sample, {name: one_stream(on, report, b, len(sample.ids))
                           for name, report in reports.items()}, at)
          for b, sample in enumerate(samples)]


def one_stream(config, report: study.Report, b: int, tokens: int) -> study.Report:
  """Of one text of a batch, without the padding after it.
  Statistics of self-modifying memories are the batch's.
  """
  chunks = -(-tokens // study.size(config))
  def cut(stats):
    return {key: value[:chunks, :, b:b + 1] for key, value in stats.items()}
  stats = {name: values if name == "selfmod" else cut(values)
           for name, values in report.stats.items()}
  return study.Report(report.nats_BxT[b:b + 1, :tokens], report.labels_BxT[b:b + 1, :tokens], stats)


def row(config, sample: Sample, reports: dict[str, study.Report], at: np.ndarray) -> dict:
  """All numbers of a document. A token's position: tokens of text before it."""
  losses = {name: report.nats_BxT[report.labels_BxT].astype(np.float64)
            for name, report in reports.items()}
  count = len(sample.ids) - 1
  where = np.digitize(np.arange(count), at[1:-1])
  def by_bin(a_N):
    return np.bincount(where, a_N, len(at) - 1).tolist()
  nats, on = {name: float(nats_N.sum()) for name, nats_N in losses.items()}, reports["on"]
  return {"source": sample.source, "document": sample.name, "domain": sample.domain,
          "tokens": count, "whole": sample.whole, "bytes": sample.bytes, "nats": nats,
          "bits_per_byte": {name: value / math.log(2) / sample.bytes
                            for name, value in nats.items()},
          "bins": {"tokens": by_bin(np.ones(count))}
          | {name: by_bin(nats_N) for name, nats_N in losses.items()},
          "memories": on.totals(plan.of(config).enabled),
          "selfmod": {key: float(np.mean(value[-1]))
                      for key, value in on.stats.get("selfmod", {}).items()}}


# What came out.


def scores(rows: list[dict], seed: int) -> dict:
  """Of all text of some documents: bits per byte and nats per token."""
  def column(key):
    return np.array([each[key] for each in rows])
  off_D, on_D = (np.array([each["nats"][name] for each in rows]) for name in ("off", "on"))
  return {"documents": len(rows), "tokens": int(column("tokens").sum()),
          "bytes": int(column("bytes").sum()), "better": int(np.sum(on_D < off_D)),
          "bits_per_byte": both_ways(off_D / math.log(2), on_D / math.log(2), column("bytes"),
                                     seed),
          "nats_per_token": both_ways(off_D, on_D, column("tokens"), seed)}


def positions(rows: list[dict], at: np.ndarray, seed: int) -> list[dict]:
  """Nats per token in the bins that any document reaches."""
  tokens, off, on = (np.array([each["bins"][key] for each in rows])
                     for key in ("tokens", "off", "on"))
  return [{"from": int(at[i]), "to": int(at[i + 1]),
           "documents": int(np.count_nonzero(tokens[:, i])),
           "tokens": int(tokens[:, i].sum())} | both_ways(off[:, i], on[:, i], tokens[:, i], seed)
          for i in range(len(at) - 1) if tokens[:, i].any()]


def memories(rows: list[dict]) -> dict:
  """What each did, mean over documents and layers.
  RuntimeError, saying why, for one that was never written.
  """
  out = study.mean_totals([each["memories"] for each in rows])
  study.check_updates(out)
  return out


def self_modifying(rows: list[dict], paths: list[str]) -> dict:
  """Mean distances from the start and gates.
  RuntimeError where nothing has moved that was to be written.
  """
  means = {key: float(np.mean([each["selfmod"][key] for each in rows]))
           for key in rows[0]["selfmod"]}
  if "selfmod" in paths:
    study.check_moved(means)
  return means


def summary(rows: list[dict], at: np.ndarray, seed: int, paths: list[str]) -> dict:
  """All scores with their intervals."""
  domains = {}
  for each in rows:
    domains.setdefault(f"{each['source']}/{each['domain']}", []).append(each)
  return scores(rows, seed) | {"domains": {name: scores(own, seed)
                                           for name, own in sorted(domains.items())},
                               "positions": positions(rows, at, seed), "memories": memories(rows),
                               "selfmod": self_modifying(rows, paths)}


def draw(result: dict):
  """Left: nats per token by position, off and on. Right: the gain. Bands are the 95 % intervals."""
  from matplotlib.figure import Figure  # an extra: plots
  figure = Figure(figsize=(10, 3.6), layout="constrained")
  left, right = figure.subplots(1, 2)
  bins = [entry for entry in result["positions"] if entry["gain"]["low"] is not None]
  middle = [math.sqrt(max(entry["from"], 1) * entry["to"]) for entry in bins]
  for axis, name, colour in ((left, "off", "tab:gray"), (left, "on", "tab:blue"),
                             (right, "gain", "tab:green")):
    value, low, high = ([entry[name][key] for entry in bins] for key in ("value", "low", "high"))
    axis.plot(middle, value, marker=".", label=f"memory {name}", color=colour)
    axis.fill_between(middle, low, high, alpha=0.2, color=colour)
  right.axhline(0, color="black", linewidth=0.8)
  for axis, label in ((left, "nats per token"), (right, "gain, nats per token")):
    axis.set(xscale="log", xlabel="tokens of the document before", ylabel=label)
    axis.grid(alpha=0.3)
  left.legend()
  right.set_title(f"{result['documents']} documents, 95 % intervals", fontsize="small")
  return figure


def tables(result: dict) -> str:
  """Scores by domain, by position, and what was written."""
  def show(score):
    return f"{score['value']:.4f}" + ("" if score["low"] is None
                                      else f" ({score['low']:.4f} to {score['high']:.4f})")
  def three(part):
    return [show(part[name]) for name in ("off", "on", "gain")]
  parts = [("all", result)] + (list(result["domains"].items()) if len(result["domains"]) > 1
                               else [])
  out = [
      markdown(["bits per byte", "documents", "better with memory", "off", "on",
                "gain (95 % interval)"],
            [[name, part["documents"], part["better"], *three(part["bits_per_byte"])]
             for name, part in parts]),
      markdown(["nats per token after", "documents", "off", "on", "gain (95 % interval)"],
            [[f"{p['from']:,} to {p['to']:,}", p["documents"], *three(p)]
             for p in result["positions"]]),
      markdown(["memory, a document and layer", "updates", "chunks let through", "surprise",
                "sum of moves"],
            [[path, f"{t['updates']:,.1f}", f"{t['gate_hits']:,.1f}", f"{t['surprise']:.3g}",
              f"{t['moved']:.3g}"]
             for path, t in result["memories"].items()])]
  out.append(markdown(["self-modifying", "mean"],
                      [[key, f"{mean:.4g}"] for key, mean in result["selfmod"].items()]))
  return "\n".join(out[:2] + out[2:3] * bool(result["memories"]) + out[3:]
                   * bool(result["selfmod"]))


class Partial:
  """Rows of the batches scored so far, in a file beside the output;
  a run with other settings starts anew.
  """

  def __init__(self, path: Path, settings: dict):
    self._path, head = path, json.dumps(settings) + "\n"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # the last may be cut
    lines = [line for line in lines if line.endswith("\n")] if lines[:1] == [head] else [head]
    self.batches = [json.loads(line) for line in lines[1:]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))

  def add(self, rows: list[dict]) -> None:
    self.batches.append(rows)
    with self._path.open("a") as file:
      file.write(json.dumps(rows) + "\n")


def evaluate(config, params, tokenizer, f: flags.FlagValues, partial: Path) -> dict:
  """All that the file holds but its date and command."""
  on = change(config, f)
  off = switched_off(on, f.selfmod_always)
  paths = [path for path in plan.of(on).enabled if path not in plan.of(off).enabled]
  if not paths:
    raise ValueError(f"this model ({configs.describe(on)}) writes nothing more with memory on than "
                     "with memory off: add --in_context --period=64 --lr=0.01 if its levels were "
                     "trained without writes, or correct --paths and --layers")
  found = sources(f.documents, f.field, config.data.sources, config.data.val_fraction)
  samples = choose(found, tokenizer, tokens=f.tokens, min_tokens=f.min_tokens, skip=f.skip,
                   count=f.max_samples, seed=f.seed)
  samples.sort(key=lambda sample: -len(sample.ids))  # so that a batch holds little padding
  cut = sum(sample.whole > f.tokens for sample in samples)
  say(f"{len(samples)} documents, {sum(len(sample.ids) - 1 for sample in samples):,} tokens; {cut} "
      f"of them were cut to {f.tokens:,} tokens; written: {', '.join(paths)}")
  settings = {"checkpoint": f.checkpoint, "fingerprint": arrays.fingerprint(params),
              "tokenizer": tokenizer.digest,
              "seed": f.seed, "skip": f.skip, "tokens_at_most": f.tokens,
              "min_tokens": f.min_tokens, "batch": f.batch,
              "written": paths, "chunk": study.size(on), "config": json.loads(configs.to_json(on))}
  chosen = [[sample.source, sample.name, sample.whole, sample.bytes] for sample in samples]
  kept = Partial(partial, settings | {"documents": chosen})
  at = edges(study.size(on), f.tokens)
  with tqdm(total=len(samples), desc="score", unit="document") as bar:
    for number, first in enumerate(range(0, len(samples), f.batch)):
      if number == len(kept.batches):
        kept.add(read(params, on, off, samples[first:first + f.batch], at))
      bar.update(len(kept.batches[number]))
  rows = [each for batch in kept.batches for each in batch]
  return settings | {"cut": cut} | summary(rows, at, f.seed, paths) | {"rows": rows}


def define_flags(values: flags.FlagValues) -> None:
  string, whole, several, yes = (functools.partial(define, flag_values=values) for define in (
      flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_list, flags.DEFINE_bool))
  string("checkpoint", None, "Folder of a run.", required=True)
  string("output", None, "All numbers, as JSON; the picture lies next to it.", required=True)
  several("documents", ["own"], "JSON lines (plain or .gz), text files, folders of either; "
          "embedded: the text that every Python carries; own: the checkpoint's sources.")
  string("field", "text", "Of JSON lines: where the text is.")
  whole("max_samples", 32, "Documents.", lower_bound=2)
  whole("skip", 0, "Documents left out, before --max_samples.", lower_bound=0)
  whole("seed", 0, "Of the choice of documents and of the intervals.")
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
  startup.prepare()
  output, partial = Path(f.output), Path(f.output + ".partial")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    result = evaluate(*opening.load(f.checkpoint), f, partial)
  output.write_text(json.dumps(program.stamp("evals/long_documents.py") | result, indent=1) + "\n")
  partial.unlink()
  print(tables(result))
  try:
    draw(result).savefig(output.with_suffix(".png"), dpi=120)
  except ImportError:
    say("no picture without matplotlib: pip install hope_jax[plots]")


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
