"""Forgetting and transfer by hand, intervals that cover, segments of text, and what is refused."""

import json

import numpy as np
import pytest

from hope_jax.scoring import forgetting, segments
from hope_jax.scoring.segments import cut, domains, years

# after none, one, two, three of three segments; the second is forgotten by the third
BITS = np.array([[4.0, 5.0, 6.0], [2.0, 4.5, 5.8], [2.2, 3.0, 5.0], [1.8, 3.6, 4.0]])


def test_a_matrix_by_hand():
  R = np.repeat(BITS[..., None], 3, -1)
  got = {name: entry["value"] for name, entry in forgetting.metrics(R).items()}
  assert got == pytest.approx({
      "final": 9.4 / 3, "gain": (2.2 + 1.4 + 2.0) / 3,
      "forgetting": ((1.8 - 2.0) + (3.6 - 3.0)) / 2,  # from the best of the rows before the last
      "backward": ((2.0 - 1.8) + (3.0 - 3.6)) / 2, "forward": ((5.0 - 4.5) + (6.0 - 5.0)) / 2})
  assert all(entry["low"] == pytest.approx(entry["high"])
             for entry in forgetting.metrics(R).values())
  with pytest.raises(ValueError, match="3 rows for 3 segments"):
    forgetting.metrics(R[1:])


def test_what_was_not_learned_alone_is_said():
  rng = np.random.default_rng(0)
  size = np.full(30, 100)
  before = rng.normal(300, 30, 30)
  nats = [np.stack([before, before - 20 + rng.normal(0, 5, 30)]),
          np.stack([before, before + rng.normal(0, 5, 30)])]
  R = forgetting.drawn(nats, [size, size], 0)
  assert [own["learned"] for own in forgetting.learned(R[0], R[1])] == [True, False]


def test_intervals_cover_as_they_say():
  """Of 200 simulated tests of 20 documents, about 95 of 100 intervals hold the true mean."""
  rng, held = np.random.default_rng(1), 0
  for seed in range(200):
    nats, size = rng.normal(300, 30, (1, 20)), np.full(20, 100)
    found = forgetting.entry(forgetting.drawn([nats], [size], seed)[0, 0])
    held += found["low"] <= 3.0 / np.log(2) <= found["high"]
  assert 0.86 <= held / 200 <= 0.99


class Letters:
  """A tokenizer: a letter is a token of one byte."""
  begin, token_bytes = [0], np.ones(300, int)

  def encode(self, text):
    return [ord(letter) for letter in text]


def write(path, *lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def test_segments_do_not_share_documents(tmp_path):
  paths = [write(tmp_path / f"{name}.jsonl", *({"text": f"{name}{i}" + "x" * i} for i in range(9)))
           for name in "ab"]
  got = cut(domains(paths, "text"), Letters(), learn=10, tests=3, tokens=5, seed=1)
  assert [segment.name for segment in got] == ["a", "b"]
  for segment in got:
    # a single token that is left over teaches nothing
    assert sum(len(ids) - 1 for ids in segment.learn) in (9, 10) and len(segment.test) == 3
    assert all(ids[0] == 0 and ids[1] == ord(segment.name) for ids in segment.learn + segment.test)
    assert segment.sizes == [len(ids) - 1 for ids in segment.test] and max(segment.sizes) <= 5
    heads = {tuple(ids[:3]) for ids in segment.test}
    assert len(heads) == 3 and not heads & {tuple(ids[:3]) for ids in segment.learn}
  assert got == cut(domains(paths, "text"), Letters(), learn=10, tests=3, tokens=5, seed=1)
  with pytest.raises(ValueError, match="segment a has 9 documents: too few .* are missing: lower"):
    cut(domains(paths, "text"), Letters(), learn=1000, tests=3, tokens=5, seed=1)
  with pytest.raises(ValueError, match="1 segments: forgetting needs 2"):
    cut(domains(paths[:1], "text"), Letters(), learn=10, tests=3, tokens=5, seed=1)


def test_years_come_in_order(tmp_path):
  path = write(tmp_path / "news.jsonl", *({"text": f"t{i}", "date": f"{year}-03-01"}
                                          for i, year in enumerate([2012, 2010, 2012, 2011])))
  assert {year: [text for _, text in own] for year, own in years(path, "text", "date").items()} == {
      "2010": ["t1"], "2011": ["t3"], "2012": ["t0", "t2"]}
  assert list(years(path, "text", "date")) == ["2010", "2011", "2012"]
  write(tmp_path / "news.jsonl", {"text": "a", "date": "March"})
  with pytest.raises(ValueError, match="line 1: its field date begins with no year: 'March'"):
    years(path, "text", "date")
  with pytest.raises(ValueError, match="line 1: it has no text in the field body"):
    segments.domains([path], "body")
