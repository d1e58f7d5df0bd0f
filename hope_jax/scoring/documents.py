"""Whole documents, read with memory off and on: nats and bits per byte, by domain and position.

    rows = read(params, on, off, samples, at=edges(study.size(on), 8192))       # one batch
    summary(rows, at, seed=0, paths=plan.of(on).enabled)
"""

import math

import numpy as np

from hope_jax.data.heldout import Sample
from hope_jax.model import lm, plan
from hope_jax.reading import study
from hope_jax.scoring import results
from hope_jax.scoring.intervals import both_ways, interval


def switched_off(config, selfmod: bool):
  """The configuration to read with memory off; `selfmod`: self-modifying memories still write."""
  config = config.copy_and_resolve_references()
  config.teach.paths = ("selfmod",
                        ) if selfmod and "selfmod" in plan.of(config).enabled else ("none",)
  return config


def edges(chunk: int, tokens: int) -> np.ndarray:
  """Of the bins of positions: [0, chunk), in which nothing is written yet, then two an octave."""
  steps = max(0, math.ceil(2 * math.log2(tokens / chunk)))
  return np.unique([0, *(round(chunk * 2 ** (k / 2)) for k in range(steps)), tokens])


def read(params, on, off, samples: list[Sample], at: np.ndarray) -> list[dict]:
  """One batch, both ways: a row of the file for each document. `at`: edges of the bins."""
  texts = [sample.ids for sample in samples]
  def fresh(config):
    return lm.init_fast(config, len(texts))
  reports = {"off": study.memorize(off, params, fresh(off), texts, write=False)[1],
             "on": study.memorize(on, params, fresh(on), texts)[1]}
  return [row(on, sample, {name: report.stream(on, b, len(sample.ids))
                           for name, report in reports.items()}, at)
          for b, sample in enumerate(samples)]


def row(config, sample: Sample, reports: dict[str, study.Report], at: np.ndarray) -> dict:
  """All numbers of a document. A token's position: tokens of text before it.

  reports: of the reading "off" and, where memory was on, of "on".
  """
  losses = {name: report.nats_BxT[report.labels_BxT].astype(np.float64)
            for name, report in reports.items()}
  count = len(sample.ids) - 1
  where = np.digitize(np.arange(count), at[1:-1])
  def by_bin(a_N):
    return np.bincount(where, a_N, len(at) - 1).tolist()
  nats, on = {name: float(nats_N.sum()) for name, nats_N in losses.items()}, reports.get("on")
  return {"source": sample.source, "document": sample.name, "domain": sample.domain,
          "tokens": count, "whole": sample.whole, "bytes": sample.bytes, "nats": nats,
          "bits_per_byte": {name: value / math.log(2) / sample.bytes
                            for name, value in nats.items()},
          "bins": {"tokens": by_bin(np.ones(count))}
          | {name: by_bin(nats_N) for name, nats_N in losses.items()},
          "memories": on.totals(plan.of(config).enabled) if on else {},
          "selfmod": {key: float(np.mean(value[-1]))
                      for key, value in (on.stats if on else {}).get("selfmod", {}).items()}}


def scores(rows: list[dict], seed: int) -> dict:
  """Of all text of some documents: bits per byte and nats per token."""
  def column(key):
    return np.array([each[key] for each in rows])
  nats = {name: np.array([each["nats"][name] for each in rows]) for name in rows[0]["nats"]}
  better = {"better": int(np.sum(nats["on"] < nats["off"]))} if "on" in nats else {}
  return {"documents": len(rows), "tokens": int(column("tokens").sum()),
          "bytes": int(column("bytes").sum())} | better | {
              "bits_per_byte": ways({name: own / math.log(2) for name, own in nats.items()},
                                    column("bytes"), seed),
              "nats_per_token": ways(nats, column("tokens"), seed)}


def ways(tops: dict, bottom_D, seed: int) -> dict:
  """Intervals of "off", and where there is "on", of it and what it gains."""
  if "on" not in tops:
    return {"off": interval(tops["off"], bottom_D, seed)}
  return both_ways(tops["off"], tops["on"], bottom_D, seed)


def positions(rows: list[dict], at: np.ndarray, seed: int) -> list[dict]:
  """Nats per token in the bins that any document reaches."""
  tokens, off, on = (np.array([each["bins"][key] for each in rows])
                     for key in ("tokens", "off", "on"))
  return [{"from": int(at[i]), "to": int(at[i + 1]),
           "documents": int(np.count_nonzero(tokens[:, i])),
           "tokens": int(tokens[:, i].sum())} | both_ways(off[:, i], on[:, i], tokens[:, i], seed)
          for i in range(len(at) - 1) if tokens[:, i].any()]


def memories(rows: list[dict], paths: list[str]) -> dict:
  """What each did, mean over documents and layers; of self-modifying ones, distances from the start
  and gates. RuntimeError, saying why, for one of `paths` that was never written.
  """
  means = {key: float(np.mean([each["selfmod"][key] for each in rows]))
           for key in rows[0]["selfmod"]}
  did = results.memories([each["memories"] for each in rows], means if "selfmod" in paths else None)
  return {"memories": did, "selfmod": means}


def by_domain(rows: list[dict], seed: int) -> dict:
  """{source/domain: its scores}."""
  domains = {}
  for each in rows:
    domains.setdefault(f"{each['source']}/{each['domain']}", []).append(each)
  return {name: scores(own, seed) for name, own in sorted(domains.items())}


def summary(rows: list[dict], at: np.ndarray, seed: int, paths: list[str]) -> dict:
  """All scores with their intervals."""
  return scores(rows, seed) | {"domains": by_domain(rows, seed),
                               "positions": positions(rows, at, seed)} | memories(rows, paths)
