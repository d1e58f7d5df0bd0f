"""Test-time memorization: a text is learned through the same writes as in training (spec s. 10).

    fast, report = memorize(config, params, lm.init_fast(config, batch), texts)

texts: lists of token ids, one a stream.

What is written, where and how strongly is config.teach (at_evaluation: as at which step of the
training). Texts may come in pieces of any length (`final=False`): a chunk is learned from when it
is whole, so the outcome does not depend on how a text was cut. Memory does not grow with the text.
Parameters never change.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax.model import lm, mixers, plan
from hope_jax.model.state import FastState
from hope_jax.reading import reader

FETCH = 16  # chunks between two looks at what happened


class Report(NamedTuple):
  """What happened while a text was read, chunk by chunk: N chunks, L layers, B streams."""
  nats_BxT: np.ndarray  # loss of every token learned from, as it was read; 0 at padding
  labels_BxT: np.ndarray  # bool: a token that was predicted
  stats: dict  # {level: {updates, open, moved, surprise, teach, pending: (N, L, B)}}

  @property
  def loss_B(self) -> np.ndarray:
    """Nats per predicted token."""
    return self.nats_BxT.sum(1) / np.maximum(self.labels_BxT.sum(1), 1)

  def stream(self, config, b: int, tokens: int) -> "Report":
    """Of one text of a batch, without its padding; token mixers' (N, L) stay the whole batch's."""
    chunks = -(-tokens // size(config))
    stats = jax.tree.map(lambda a: a[:chunks, :, b:b + 1] if a.ndim == 3 else a, self.stats)
    return Report(self.nats_BxT[b:b + 1, :tokens], self.labels_BxT[b:b + 1, :tokens], stats)

  def totals(self, paths: Sequence[str] | None = None) -> dict:
    """{path: {...}} of these paths, or all; means over layers and streams.

    updates, gate_hits, moved: summed over chunks. pending: after the last one. surprise: mean over
      chunks too, and the largest.
    """
    def total(a):
      return float(np.mean(np.sum(a, 0)))
    return {plan.path(level): {"updates": total(s["updates"]), "gate_hits": total(s["open"]),
                               "moved": total(s["moved"]),
                                  "pending": float(np.mean(s["pending"][-1])),
                               "surprise": float(np.mean(s["surprise"])),
                                  "surprise_max": float(np.max(s["surprise"]))}
            for level, s in self.stats.items() if "updates" in s
            and (paths is None or plan.path(level) in paths)}


def size(config) -> int:
  """Tokens read at once: the chunk of the writes, or the grid of memories that write themselves."""
  return (plan.of(config).chunk if plan.of(config).levels
          else max(lm.chunk_grid(config), config.teach.chunk))


def pieces(config, fast: FastState, texts: Sequence[Sequence[int]], final: bool):
  """((N, B, C) int32 tokens, labels, segments; ends (N, B); the tokens that wait, (B, C)).

  The texts follow what waits. A chunk is whole when the token after it is known: it is the last
  one's label.
  """
  width, batch = size(config), len(texts)
  waiting = np.full((batch, width), -1) if fast.held_BxC is None else np.asarray(fast.held_BxC)
  rows = [np.concatenate([old[old >= 0], np.asarray(new, np.int64)])
          for old, new in zip(waiting, texts)]
  # a stream that was read on without writing goes on inside a chunk
  offsets = np.asarray(fast.count_B) % width
  reach = [len(row) + at - (not final) for row, at in zip(rows, offsets)]
  counts = [max(-(-n // width) if final else n // width, 0) for n in reach]
  shape = (batch, max(counts, default=0) * width)
  out = {"tokens": np.zeros(shape, np.int32), "labels": np.full(shape, -1, np.int32),
         "segments": np.zeros(shape, np.int32)}
  ends, rest = np.zeros((batch, max(counts, default=0)),
                        bool), np.full((batch, width), -1, np.int32)
  for b, (row, at, number) in enumerate(zip(rows, offsets, counts)):
    now = min(len(row), max(number * width - at, 0))
    out["tokens"][b, at:at + now] = row[:now]
    out["labels"][b, at:at + now][:len(row) - 1] = row[1:now + 1]
    out["segments"][b, at:at + now] = max(int(fast.segment_B[b]), 1)
    rest[b, :len(row) - now] = row[now:]
    if final and number:
      ends[b, number - 1] = True
  def split(a):
    return np.moveaxis(a.reshape(batch, -1, width), 1, 0)
  return jax.tree.map(split, out) | {"ends": ends.T}, rest


@functools.lru_cache
def _program(config, write: bool):
  """(params, fast, a chunk of every stream) -> (fast, {"nats_BxC", "stats"}); `fast` is donated."""
  def read(params, fast, piece):
    out, fast, _ = reader.chunk(config, params, fast, piece,
                                reader.at_evaluation(config) if write else None)
    return fast, {"nats_BxC": out["nats_BxC"], "stats": out["stats"]}

  return jax.jit(read, donate_argnums=1)


def memorize(config, params, fast: FastState, texts: Sequence[Sequence[int]], *, final: bool = True,
             write: bool = True, progress: bool = False) -> tuple[FastState, Report]:
  """Reads one text per stream and learns from it.

  Args:
    fast: the streams as they are; it is donated.
    texts: token ids, one sequence a stream, of any lengths.
    final: the texts end here: what waits is learned from, unfinished periods are used or dropped
      (teach.flush_partial). Otherwise the last tokens wait in the state for the rest of their
      chunk, where a model has anything to learn from it.
    write: False: only read, with what has been learned so far (self-modifying memories write: that
      is how they read).

  Raises ValueError for texts without a pair to learn from, ids outside the vocabulary, another
  number of streams; FloatingPointError for a loss that is not finite.
  """
  batch, vocab = fast.segment_B.shape[0], config.model.vocab
  if len(texts) != batch:
    raise ValueError(f"{len(texts)} texts for a state of {batch} streams: give one text a stream, "
                     f"or init_fast(config, {len(texts)})")
  waits = (np.zeros(batch, int) if fast.held_BxC is None
           else np.sum(np.asarray(fast.held_BxC) >= 0, 1))
  for b, text in enumerate(texts):
    if final and len(text) + waits[b] < 2:
      raise ValueError(f"text {b} has {len(text) + waits[b]} tokens: there is nothing to learn "
                       "from fewer than 2")
    if len(text) and not (0 <= min(text) and max(text) < vocab):
      raise ValueError(f"text {b} has a token outside the vocabulary of {vocab}: encode with the "
                       "run's tokenizer")
  reader.tell_long(config, int(np.max(fast.count_B)) + max(map(len, texts)))
  chunks, rest = pieces(config, fast, texts, final or fast.held_BxC is None)
  read, outs = _program(lm.frozen(config), write), []
  for i in tqdm(range(len(chunks["tokens"])), unit="chunk", disable=not progress):
    fast, out = read(params, fast, jax.tree.map(lambda a: a[i], chunks))
    outs.append(out)
    if i % FETCH == FETCH - 1:  # so that nothing piles up on the device
      outs[-FETCH:] = jax.device_get(outs[-FETCH:])
  outs = jax.device_get(outs) or [{"nats_BxC": np.zeros((batch, 0)), "stats": {}}]
  joined = jax.tree.map(lambda *a: np.stack(a), *outs)
  def rows(a):
    return np.moveaxis(a, 0, 1).reshape(batch, -1)
  if fast.held_BxC is not None:
    fast = fast.replace(held_BxC=jnp.asarray(rest))
  if not np.isfinite(joined["nats_BxC"]).all():
    raise FloatingPointError("the loss is not finite while memories are written: try a smaller lr "
                             "of the levels, a smaller teach.scale, teach.clip > 0, or the rule "
                             "nl_l2_precond")
  return fast, Report(rows(joined["nats_BxC"]), rows(chunks["labels"] >= 0), joined["stats"])


def replay(config, params, fast: FastState, texts: Sequence[Sequence[int]], steps: int = 1,
           progress: bool = False) -> tuple[FastState, list[Report]]:
  """One text per stream, read `steps` times, each time without what attention kept of the last.

  `fast` is donated: lm.init_fast for every sample (reset), or what an earlier call returned
  (carried).
  """
  reports = []
  for _ in range(steps):
    fast, report = memorize(config, params, lm.forget_context(config, fast), texts,
                            progress=progress)
    reports.append(report)
  return fast, reports


def study(config, params, ids: Sequence[int], steps: int = 1, progress: bool = True,
          fast: FastState | None = None):
  """One text, read `steps` times: (fast, {"before", "read", "after": Report}).

  fast: the stream that reads it; None: a fresh one.

  before: read without writing. read: as the first reading went. after: read again without writing
  and without the context that attention kept, so that only what was learned can help.
  """
  def fresh():
    return lm.init_fast(config, 1) if fast is None else jax.tree.map(jnp.copy, fast)
  reports = {"before": memorize(config, params, fresh(), [ids], write=False, progress=progress)[1]}
  learned, readings = replay(config, params, fresh(), [ids], steps, progress)
  check(config, readings)
  reports["read"], copy = readings[0], jax.tree.map(jnp.copy, lm.forget_context(config, learned))
  return (learned,
          reports
          | {"after": memorize(config, params, copy, [ids], write=False, progress=progress)[1]})


def describe(config, reports: dict[str, Report]) -> dict:
  """A study of a text as JSON, by the first reading's chunks: losses summed, memories by layer."""
  first, entries = reports["read"], plan.of(config).levels
  chunks = first.nats_BxT.shape[1] // size(config)
  # token by token, not column by column: a text that is read again starts inside a chunk
  def by_chunk(a_N):
    return np.bincount(np.arange(len(a_N)) // size(config), a_N, chunks).tolist()
  losses = {name: report.nats_BxT[report.labels_BxT].astype(np.float64)
            for name, report in reports.items()}
  ones = np.ones(len(losses["read"]))
  return {"chunk": size(config), "threshold": config.teach.threshold, "predicted": by_chunk(ones),
          "nats": {name: by_chunk(nats_N) for name, nats_N in losses.items()},
          "memories": {plan.path(name): {"period": entries[name].period}
                       | {key: value[..., 0].tolist() for key, value in stats.items()}
                       for name, stats in first.stats.items() if name in entries},
          "selfmod": {key: value.tolist() for key, value in first.stats.get("selfmod", {}).items()},
          "totals": first.totals()}


def mean_totals(totals: Sequence[dict]) -> dict:
  """Several Report.totals as one: their means, and the largest surprise of all."""
  def join(key, values):
    return float(np.max(values) if key == "surprise_max" else np.mean(values))
  return {path: {key: join(key, [each[path][key] for each in totals]) for key in total}
          for path, total in totals[0].items()}


def check(config, readings: Sequence[Report]) -> None:
  """RuntimeError, with the reason, if an enabled memory was written in none of the readings."""
  check_strength(config)
  enabled = plan.of(config).enabled
  check_updates(mean_totals([report.totals(enabled) for report in readings]))
  for mixer in [name for name in mixers.of(config) if name in enabled]:
    check_moved(readings[-1].stats[mixer])


def check_strength(config) -> None:
  """ValueError if the schedule leaves nothing of a memory's writes."""
  strengths = reader.shares(config)
  if still := [path for path in plan.of(config).enabled if not strengths.get(path, 1)]:
    raise ValueError(f"with teach.at_evaluation={config.teach.at_evaluation} {', '.join(still)} "
                     "would be written with a strength of 0, by the schedule of the teach signal: "
                     "set it to full (--at_evaluation=full), or leave the memory out (teach.paths)")


def check_moved(stats: dict) -> None:
  """RuntimeError if self-modifying memories have not moved: `stats` of a report, or their means."""
  if not any(np.any(value) for name, value in stats.items() if name.startswith("moved/")):
    raise RuntimeError("the self-modifying memories have not moved: their step size is 0 (see "
                       "selfmod.eta_init), or restrict teach.paths to the memories you want")


def check_updates(totals: dict) -> None:
  """RuntimeError, with the reason, if one of these memories (Report.totals) was not written."""
  for path, total in totals.items():
    if not total["updates"]:
      why = (f"no gate opened: the largest surprise was {total['surprise_max']:.3g}, lower "
             "teach.threshold"
             if not total["gate_hits"]
             else "no period ended: the text is shorter than one, or teach.flush_partial is off")
      raise RuntimeError(f"memory {path} made no update: {why}; or restrict teach.paths to the "
                         "memories you want")
