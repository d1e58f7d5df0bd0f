"""How well what lies in a long context is found, by length and depth; baseline and memorized.

    rows, seconds, _ = score(setting, cases)  # of needles.py, all of one length
    result = summary(rows, setting.ways, threshold=0.85)

Ways to read a context:

    baseline   read; nothing is written but self-modifying memories
    memorized  read through the writes; then the context that attention kept is dropped
    control    as memorized, else as the baseline, with text where what is asked for lay

Scores of a way: `exact`, all answers stand in what the model writes; `found`, the share of them
(RULER's); `choice`, the right answer is likelier than all distractors. Intervals are of 95 %:
Wilson's of shares, `paired` of differences (memorized - baseline).
"""

from collections.abc import Sequence
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from hope_jax.model import lm
from hope_jax.scoring import intervals, memorization, replies
from hope_jax.scoring.needles import Case

SCORES = ("exact", "found", "choice")


class Setting(NamedTuple):
  """How all of an evaluation is scored."""
  config: object
  params: dict
  tokenizer: object
  how: memorization.Options
  control: bool  # read the control, too
  saved: object = None  # the configuration of --memorize_state, where `config` has other room

  @property
  def ways(self) -> tuple[str, ...]:
    return ("baseline",) + ("memorized",) * self.how.on + ("control",) * self.control


def score(setting: Setting, some: Sequence[Case], fast=None) -> tuple[list[dict], dict, object]:
  """(a row of each case, seconds of each way, the streams that learned).

  fast: what earlier cases taught (--memorize_no_reset); None: as memorization.start has it.
  """
  rows = [{"kind": case.kind, "length": len(case.context_L), "depth": case.depth} for case in some]
  seconds, learned = {}, None
  for way in setting.ways:
    contexts = [case.without_L if way == "control" else case.context_L for case in some]
    if way == "control" and any(ids is None for ids in contexts):
      continue
    learns = way == "memorized" or way == "control" and setting.how.on
    if fast is not None and way == "memorized":
      streams = fast
    elif learns:
      streams = memorization.start(setting.config, setting.params, setting.how, len(some),
                                   setting.saved)
    else:
      streams = lm.init_fast(setting.config, len(some))
    began, busy = time.perf_counter(), time.process_time()
    if learns:
      streams, did = learn(setting, streams, some, contexts)
    else:
      streams, did = replies.read(setting.config, setting.params, streams, contexts), None
    jax.block_until_ready(streams)
    read, busy = time.perf_counter(), time.process_time() - busy
    if way == "memorized":
      rows = [row | {"memories": each} for row, each in zip(rows, did)]
      learned = None if setting.how.reset else jax.tree.map(np.array, streams)
    rows = [row | {way: own} for row, own in zip(rows, ask(setting, streams, some))]
    seconds[way] = {"read": read - began, "processor": busy, "answer": time.perf_counter() - read,
                    "tokens": sum(map(len, contexts)), "questions": len(some)}
  return rows, seconds, learned


def learn(setting: Setting, streams, some: Sequence[Case], contexts):
  """memorization.learn of the contexts, and of the answers where they are to leak."""
  if setting.how.leak:
    encode = setting.tokenizer.encode
    contexts = [[*ids, *encode(case.question + case.choices[0])]
                for ids, case in zip(contexts, some)]
  return memorization.learn(setting.config, setting.params, streams, contexts, setting.how)


def ask(setting: Setting, streams, some: Sequence[Case]) -> list[dict]:
  """What each stream says and prefers."""
  tok = setting.tokenizer
  prompts = tok.encode_batch([case.question for case in some])
  choices = [tok.encode_batch(list(case.choices)) for case in some]
  tokens = replies.bucket(max(len(row[0]) for row in choices) + 8)
  ids_BxN, nats_BxK = replies.ask(setting.config, setting.params, streams, prompts, choices, tokens,
                                  tok.size)
  out = []
  for case, ids, nats in zip(some, ids_BxN, nats_BxK):
    said = replies.text(tok, ids)
    if case.brief:
      said = re.split(r"[.\n]", said.strip(), maxsplit=1)[0]
    hits = replies.found(said, case.answers)
    wrong = case.brief and any(replies.found(said, [each.strip() for each in case.choices[1:]]))
    out.append({"said": said, "exact": all(hits) and not wrong, "found": sum(hits) / len(hits),
                "choice": bool(nats[0] < nats[1:].min()), "nats": float(nats[0])})
  return out


def share(hits: Sequence[float]) -> dict:
  """A mean of values from 0 to 1 with Wilson's interval, which is wide for those between."""
  value = float(np.mean(hits))
  low, high = intervals.wilson(value, len(hits))
  return {"value": value, "low": low, "high": high}


def paired(gains: Sequence[float]) -> dict:
  """A mean of paired differences from -1 to 1, with an interval that has a width where all are 0.

  Agresti and Min's (2005): half a pair is added to each cell of the two-by-two table.
  """
  count, total = len(gains) + 2, float(np.sum(gains))
  middle = total / count
  half = intervals.Z * math.sqrt(float(np.sum(np.square(gains))) + 1 - total ** 2 / count) / count
  return {"value": float(np.mean(gains)), "low": max(-1.0, middle - half),
          "high": min(1.0, middle + half)}


def scores(rows: Sequence[dict], ways: Sequence[str]) -> dict:
  """{score: {way: with its interval, "difference"}} of some rows."""
  out = {"samples": len(rows)}
  for name in SCORES:
    own = {way: [float(row[way][name]) for row in rows if way in row] for way in ways}
    out[name] = {way: share(hits) for way, hits in own.items() if hits}
    if "memorized" in own:
      out[name]["difference"] = paired(np.subtract(own["memorized"], own["baseline"]))
  return out


def effective(by_length: Sequence[dict], ways: Sequence[str], threshold: float) -> dict:
  """{way: the longest length at which, as at all shorter ones, `found` reaches the threshold}."""
  out = {}
  for way in ways:
    out[way] = None
    for entry in sorted(by_length, key=lambda entry: entry["length"]):
      if entry["found"][way]["value"] < threshold:
        break
      out[way] = entry["length"]
  return out


def summary(rows: Sequence[dict], ways: Sequence[str], threshold: float) -> dict:
  """All scores: of each kind, length and depth; of each kind by length; of all by length."""
  def grouped(*keys):
    groups = {}
    for row in rows:
      groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, group)) | scores(own, ways) for group, own in groups.items()]
  by_length = grouped("length")
  reached = [way for way in ways if way != "control"]
  kinds = grouped("kind", "length")
  names = list(dict.fromkeys(entry["kind"] for entry in kinds))
  return {"lengths": by_length, "kinds": kinds, "cells": grouped("kind", "length", "depth"),
          "threshold": threshold,
          "effective_length": {"all": effective(by_length, reached, threshold)}
          | {name: effective([each for each in kinds if each["kind"] == name], reached, threshold)
             for name in names}}


def speed(seconds: Sequence[dict], ways: Sequence[str]) -> list[dict]:
  """Of each length and way, of the median batch: tokens read a second, this program's processor
  seconds to read one context, seconds to answer a question. The first batch of a shape compiles,
  too.
  """
  groups = {}
  for each in seconds:
    for way, own in each.items():
      groups.setdefault((own["tokens"] // own["questions"], way), []).append(own)
  return [{"length": length, "way": way, "batches": len(own),
           "processor_seconds": float(np.median([s["processor"] / s["questions"] for s in own])),
           "tokens_per_second": float(np.median([s["tokens"] / s["read"] for s in own])),
           "seconds_per_question": float(np.median([s["answer"] / s["questions"] for s in own]))}
          for (length, way), own in sorted(groups.items(),
                                           key=lambda item: (item[0][0], ways.index(item[0][1])))]
