"""Held-out documents for evaluations: text that no training saw, chosen by a hash.

So settings can be chosen on other documents than those of the final numbers.
"""

import dataclasses
import hashlib
import heapq
from pathlib import Path
import re

from ml_collections import ConfigDict
from tqdm import tqdm

from hope_jax.data import corpus, files


@dataclasses.dataclass(frozen=True)
class Sample:
  """A document's start: `ids` with <s>, their bytes of text; `whole`: tokens of all of it."""
  source: str
  name: str
  domain: str
  ids: tuple[int, ...]
  bytes: int
  whole: int


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
    lines = any(map(corpus.is_jsonl, [path, *files.below(path)]))
    kind = name if name == "embedded" else "jsonl" if lines else "text"
    stem = re.sub(r"\W+", "_", path.name.split(".")[0]) or "text"
    source = ConfigDict(dict(name=stem, kind=kind, path=name, field=field, domains="", weight=1.0))
    found.append((source, val_fraction if _is_trained_on(source, path, trained) else None))
  if len({source.name for source, _ in found}) < len(found):
    raise ValueError(f"--documents: two of {', '.join(names)} have the same name: rename one, or "
                     "give their folder")
  return found


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
  """`count` documents of `min_tokens` or more, cut to `tokens`: smallest hashes after `skip`."""
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
        kept = (*tokenizer.begin, *ids[:tokens])
        size = int(tokenizer.token_bytes[[*kept]].sum())
        sample = Sample(source.name, document.name, document.domain, kept, size, len(ids))
        (heapq.heappushpop if full else heapq.heappush)(best, (order, sample))
  chosen = [sample for _, sample in sorted(best, key=lambda entry: -entry[0])][skip:]
  if len(chosen) < 2:
    raise ValueError(f"{len(chosen)} documents of {min_tokens} tokens or more, after {skip} "
                     "skipped: an interval needs 2: lower --min_tokens or --skip, or give more "
                     "--documents")
  return chosen
