"""Learning one segment after the other: what is forgotten, and what one does for another.

    R[j, i]   bits per byte of segment i after the first j of T segments were learned; R[0]: before

    final       mean over i of R[T, i]
    gain        mean over i of R[0, i] - R[T, i]: what all that learning was worth; R[0] is frozen
    forgetting  mean over i < T of R[T, i] - min over j in i..T-1 of R[j, i]: above 0, something was
                better known before
    backward    mean over i < T of R[i, i] - R[T, i]: above 0, later segments helped
    forward     mean over i > 1 of R[0, i] - R[i-1, i]: above 0, earlier segments helped
    joint       mean over i of J[i], all segments having been learned in one mixture: a bound

(Lopez-Paz and Ranzato 2017, Chaudhry 2018, for losses; with i counted from 1.) Where a segment that
is learned alone is not learned, nothing can be forgotten: `learned` says so, and the protocol then
says nothing. Intervals: 95 %, test documents drawn with replacement within their segment, the same
ones for all rows.
"""

from collections.abc import Sequence
import math

import numpy as np

RESAMPLES = 2000


def weights(documents: int, seed: int, segment: int) -> np.ndarray:
  """(S + 1, D) times that each document was drawn; the last row: each once."""
  drawn = np.random.default_rng((seed, segment)).multinomial(
      documents, np.full(documents, 1 / documents), RESAMPLES)
  return np.concatenate([drawn, np.ones((1, documents))])


def drawn(nats: Sequence[np.ndarray], sizes: Sequence[np.ndarray], seed: int) -> np.ndarray:
  """R, (J, T, S + 1) bits per byte, of nats[i] (J, D_i) and bytes sizes[i] (D_i,)."""
  columns = []
  for i, (nats_JxD, size_D) in enumerate(zip(nats, sizes)):
    w_SxD = weights(len(size_D), seed, i)
    columns.append(np.asarray(nats_JxD) @ w_SxD.T / (w_SxD @ np.asarray(size_D)) / math.log(2))
  return np.stack(columns, 1)


def entry(value_S: np.ndarray) -> dict:
  """A value with its interval, of draws of which the last is the value."""
  low, high = map(float, np.quantile(value_S[:-1], (0.025, 0.975)))
  return {"value": float(value_S[-1]), "low": low, "high": high}


def metrics(R: np.ndarray) -> dict:
  """As above, of R (T + 1, T, S + 1), each with its interval."""
  T = R.shape[1]
  if len(R) != T + 1:
    raise ValueError(f"{len(R)} rows for {T} segments: one before any, and one after each")
  def mean(values):
    return entry(np.mean(list(values), 0))
  return {"final": entry(R[T].mean(0)), "gain": entry((R[0] - R[T]).mean(0)),
          "forgetting": mean(R[T, i] - R[i + 1:T, i].min(0) for i in range(T - 1)),
          "backward": mean(R[i + 1, i] - R[T, i] for i in range(T - 1)),
          "forward": mean(R[0, i] - R[i, i] for i in range(1, T))}


def learned(before: np.ndarray, alone: np.ndarray) -> list[dict]:
  """Of each segment, (T, S + 1) losses: what learning it alone gained, and whether it is learned,
  which is that the interval lies above 0.
  """
  gains = [entry(off - on) for off, on in zip(before, alone)]
  return [gain | {"learned": gain["low"] > 0} for gain in gains]
