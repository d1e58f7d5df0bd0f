"""Intervals: bootstrap, of scores over documents and of paired differences; Wilson's, of shares;
Student's, of few runs.
"""

from collections.abc import Sequence
import math

import numpy as np
from scipy import stats

RESAMPLES = 10_000
Z = 1.959964  # 95 % of a normal distribution


def interval(top_D, bottom_D, seed: int) -> dict:
  """sum(top) / sum(bottom) over documents, its 95 % bootstrap interval; None for fewer than 2."""
  used_D = np.asarray(bottom_D) > 0
  top_D, bottom_D = np.asarray(top_D, float)[used_D], np.asarray(bottom_D, float)[used_D]
  count = len(bottom_D)
  low = high = None
  if count > 1:
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    low, high = map(float, np.quantile(drawn @ top_D / (drawn @ bottom_D), (0.025, 0.975)))
  return {"value": float(top_D.sum() / bottom_D.sum()) if count else None, "low": low, "high": high}


def both_ways(off_D, on_D, bottom_D, seed: int) -> dict:
  """Intervals of the two readings and of their paired difference."""
  tops = {"off": off_D, "on": on_D, "gain": off_D - on_D}
  return {name: interval(top_D, bottom_D, seed) for name, top_D in tops.items()}


def with_and_without(baseline_D, memorized_D, seed: int) -> dict:
  """Means over samples and their paired difference, positive where memorizing helps.

  memorized_D: None where nothing was memorized: the baseline alone.
  """
  ones_D = np.ones(len(baseline_D))
  means = {"baseline": interval(baseline_D, ones_D, seed)}
  if memorized_D is not None:
    difference_D = np.asarray(memorized_D, float) - np.asarray(baseline_D, float)
    means |= {"memorized": interval(memorized_D, ones_D, seed),
              "difference": interval(difference_D, ones_D, seed)}
  return means


def average(groups: Sequence[Sequence[float]], seed: int) -> dict:
  """The mean of several groups' means; each group is drawn from by itself."""
  def drawn(number, own):
    random = np.random.default_rng((seed, number))
    return random.multinomial(len(own), np.full(len(own), 1 / len(own)), RESAMPLES) @ own / len(own)
  groups = [np.asarray(own, float) for own in groups]
  means = np.mean([drawn(number, own) for number, own in enumerate(groups)], 0)
  low, high = map(float, np.quantile(means, (0.025, 0.975)))
  return {"value": float(np.mean([own.mean() for own in groups])), "low": low, "high": high}


def wilson(share: float, samples: int) -> tuple[float, float]:
  """The 95 % interval of a share of independent samples."""
  centre = (share + Z * Z / (2 * samples)) / (1 + Z * Z / samples)
  spread = math.sqrt(share * (1 - share) / samples + Z * Z / (4 * samples * samples))
  half = Z / (1 + Z * Z / samples) * spread
  return max(0.0, centre - half), min(1.0, centre + half)


def student(values_N) -> dict:
  """Mean of runs that differ by their seed, its 95 % interval by Student's t; None for one run."""
  values_N = np.asarray(values_N, float)
  mean, count = float(values_N.mean()), len(values_N)
  if count < 2:
    return {"value": mean, "low": None, "high": None}
  half = float(stats.t.ppf(0.975, count - 1) * values_N.std(ddof=1) / math.sqrt(count))
  return {"value": mean, "low": mean - half, "high": mean + half}
