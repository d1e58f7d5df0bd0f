"""Near duplicates by MinHash: datatrove's signatures, buckets and clusters, over numbers of words.

Two documents share a bucket with probability 1 - (1 - s^hashes)^buckets, where s is the share of
their runs of n words that both have; documents that share one, directly or through others, are a
cluster, of which one stays. A document of fewer than n words has no near duplicate.

What a step writes appears when it is whole, so that killed tasks can be run again.
"""

from collections.abc import Iterable
import os
from pathlib import Path
import shutil
import struct

from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (MinhashConfig, MinhashDedupBuckets,
                                              MinhashDedupCluster, MinhashDedupSignature)
from ml_collections import ConfigDict
import numpy as np

from hope_jax.data.pipeline import filters, words

_AT_ONCE = 4096  # runs of words whose hashes are in memory


def config(near: ConfigDict) -> MinhashConfig:
  """As datatrove wants it."""
  return MinhashConfig(n_grams=near.n, num_buckets=near.buckets, hashes_per_bucket=near.hashes,
                       seed=near.seed)


class Signatures(MinhashDedupSignature):
  """Signatures whose runs of words are numbered by numpy, in constant memory."""

  def get_shingles(self, text: str) -> np.ndarray:
    return words.grams(words.ids(words.split(text)), self.config.n_grams)[:, None]

  def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
    parts = [super(Signatures, self).get_signature(shingles[i:i + _AT_ONCE])
             for i in range(0, len(shingles), _AT_ONCE)]
    return np.min(np.array(parts, np.uint64), axis=0).tolist()


def sign(folder: Path, near: ConfigDict, rank: int, texts: Iterable[str]) -> None:
  """Writes the signatures of a part's documents; an empty text has none."""
  with _Appearing(folder, f"signatures.{rank}") as new:
    step = Signatures(str(new), config(near), language=filters.BLANKS)
    step.run((Document(text, "") for text in texts), rank)


def pair(folder: Path, near: ConfigDict, bucket: int) -> None:
  """Writes which documents share one bucket."""
  with _Appearing(folder / "pairs", f"pairs.{bucket}") as new:
    MinhashDedupBuckets(str(folder), str(new), config=config(near)).run(
        None, bucket, near.buckets)


def cluster(folder: Path, near: ConfigDict) -> None:
  """Writes which documents go, and the clusters of all that have a near duplicate."""
  with _Appearing(folder / "clusters", "clusters") as new:
    MinhashDedupCluster(str(folder / "pairs"), str(new), config(near),
                        save_cluster_id=True).run(None, 0, 1)


def removed(folder: Path, rank: int) -> set[int]:
  """Numbers of a part's documents that go."""
  path = folder / "clusters" / f"{rank:06d}.remove"
  return {n for n, in struct.iter_unpack("<I", path.read_bytes())} if path.exists() else set()


def clusters(folder: Path, rank: int) -> dict[int, int]:
  """{document: cluster} of a part's documents that have a near duplicate."""
  path = folder / "clusters" / f"{rank:06d}.clusters"
  return dict(struct.iter_unpack("<2I", path.read_bytes())) if path.exists() else {}


class _Appearing:
  """A folder to write in, whose files move into `target` at the end."""

  def __init__(self, target: Path, name: str):
    self._target, self._new = target, target / f".{name}.{os.getpid()}.partial"

  def __enter__(self) -> Path:
    self._new.mkdir(parents=True)
    return self._new

  def __exit__(self, kind, error, trace) -> None:
    if kind is None:
      for path in sorted(self._new.rglob("*")):
        if path.is_file():
          there = self._target / path.relative_to(self._new)
          there.parent.mkdir(parents=True, exist_ok=True)
          os.replace(path, there)
    shutil.rmtree(self._new)
