"""Synthetic tasks: what a label says is checked against the definition, symbol by symbol.

    python -m pytest tests/test_synthetic.py
"""

import itertools
import json

from absl import flags
import numpy as np
import pytest

from evals import synthetic as program
from hope_jax import config
from hope_jax.data import loader, synthetic
from hope_jax.runtime import program as programs


def small(task, **fields):
  c = config.base()
  c.model.vocab = 40
  c.data.update(dict(task=task, seq=24, align=8, batch=4, symbols=5, copied=4) | fields)
  return c


def strings(task, split="validation", count=40, **fields):
  """(symbols from 0, labels from 0) of examples, without padding."""
  c = small(task, **fields)
  symbols = synthetic.LANGUAGES[task][1]
  for i in range(count):
    e = synthetic.dataset(c, split)[i]
    n = int(e["segments"].sum())
    assert (e["segments"][:n] == 1).all() and (e["labels"][n:] == -1).all()
    yield e["tokens"][:n] - 1, e["labels"][:n] - 1 - symbols


def follows(task, text):
  """Which of the symbols may follow a prefix, and whether it may end ("."), from the definition."""
  def prefix(word):
    return any(whole[:len(word)] == word for whole in words)
  letters = "abcd"[:synthetic.LANGUAGES[task][1]]
  if task == "parity":
    return {"a", "b"} | ({"."} if text.count("b") % 2 == 0 else set())
  if task == "shuffle2":  # ( a, ) b, [ c, ] d
    open_, square = text.count("a") - text.count("b"), text.count("c") - text.count("d")
    return {"a", "c"} | ({"b"} if open_ else set()) | ({"d"} if square else set()) | (
        {"."} if not open_ and not square else set())
  words = {"aa": ["aa" * n for n in range(40)], "abab": ["abab" * n for n in range(20)],
           "anbn": ["a" * n + "b" * n for n in range(40)],
           "anbncn": ["a" * n + "b" * n + "c" * n for n in range(40)]}[task]
  return {letter for letter in letters if prefix(text + letter)} | ({"."} if text in words
                                                                      else set())


@pytest.mark.parametrize("task", synthetic.LANGUAGES)
def test_a_label_says_what_may_follow(task):
  """One label for each set that there is, and for no other."""
  sets, longest = {}, 0
  for symbols_T, labels_T in strings(task):
    text = "".join("abcd"[s] for s in symbols_T)
    longest = max(longest, len(text))
    for end, label in enumerate(labels_T, 1):
      allowed = frozenset(follows(task, text[:end]))
      assert allowed and sets.setdefault(label, allowed) == allowed, (text[:end], label)
      assert end == len(text) or text[end] in allowed
  assert sorted(sets) == list(range(synthetic.LANGUAGES[task][2]))
  if task != "abab":
    assert len(set(sets.values())) == len(sets)
  assert 12 < longest <= 24


@pytest.mark.parametrize("task", synthetic.LANGUAGES)
def test_validation_asks_for_longer_strings_the_longer_the_sequence(task):
  letters = {"anbn": 2, "anbncn": 3}.get(task, 1)
  for seq in (24, 96):
    lengths = [len(symbols) for symbols, _ in strings(task, seq=seq)]
    assert seq // 2 - letters < min(lengths) and max(lengths) <= seq
  assert min(len(symbols) for symbols, _ in strings(task, "train", 60)) < 12


def test_copying():
  for i, taught in itertools.product(range(20), (False, True)):
    e = synthetic.dataset(small("copy", recall_taught=taught), "train")[i]
    tokens, labels = e["tokens"], e["labels"]
    asked = tokens == 6
    assert asked.sum() == 4 and asked[-4:].all()
    items = tokens[(tokens > 0) & ~asked]
    np.testing.assert_array_equal(labels[asked], items)
    np.testing.assert_array_equal(labels[~asked], np.where(tokens[~asked] * taught > 0,
                                                           tokens[~asked], -1))


def test_keys_have_one_value_in_a_sequence_and_others_in_another():
  found = []
  for i in range(10):
    e = synthetic.dataset(small("in_context"), "train")[i]
    value, seen = {}, set()
    for key, own, label, none in zip(e["tokens"][::2], e["tokens"][1::2], e["labels"][::2],
                                     e["labels"][1::2]):
      assert none == -1 and 1 <= key <= 5 < own <= 10 and value.setdefault(key, own) == own
      assert label == (own if key in seen else -1)
      seen.add(key)
    found.append(tuple(sorted(value.items())))
  assert len(set(found)) > 5


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_an_example_is_its_number_and_seed_alone(task):
  c = small(task, recall_pairs=2, recall_keys=6)
  def draw(split, i, **fields):
    other = small(task, recall_pairs=2, recall_keys=6, **fields)
    return synthetic.dataset(other, split)[i]["tokens"].tolist()
  assert draw("train", 3) == draw("train", 3)
  if task not in ("aa", "abab", "anbn", "anbncn"):  # few different ones
    assert len({tuple(draw("train", 3)), tuple(draw("train", 4)), tuple(draw("validation", 3)),
                tuple(draw("train", 3, seed=1))}) == 4
  names, batch = next(loader.eval_batches(c, 1))
  assert names == [task] * 4 and batch["tokens"].shape == (4, 24)
  assert next(iter(loader.train_batches(c)))["labels"].shape == (4, 24)


def test_what_does_not_fit():
  for task, fields, message in (("parity", {}, "set model.vocab to 5 or more"),
                                ("copy", dict(copied=20), "set data.seq to 40 or more"),
                                ("in_context", {}, "set model.vocab to 11 or more")):
    c = small(task, **fields)
    if not fields:
      c.model.vocab = 3
    with pytest.raises(ValueError, match=message):
      synthetic.dataset(c, "train")
  with pytest.raises(ValueError, match="unknown data.task 'x'; set it to text, recall, copy"):
    loader.train_batches(small("x"))
  for spec in ("parity", "parity,x", "x,gru", "parity,gru,x"):
    with pytest.raises(ValueError, match="synthetic.py|no control x|no task and model"):
      programs.configuration(f"configs/synthetic.py:{spec}")


@pytest.mark.slow
def test_a_table(tmp_path, monkeypatch, capsys):
  """Trained once, scored once; what only teaches does not count."""
  values = flags.FlagValues()
  program.define_flags(values)
  monkeypatch.setattr(program, "FLAGS", values)
  monkeypatch.setattr(program.startup, "prepare", lambda _: None)  # jax has its devices
  values(["synthetic", "--tasks=mqar", "--models=gru", "--seeds=1", "--steps=2",
          "--sequences=64", f"--workdir={tmp_path}", f"--output={tmp_path / 'out.json'}"])
  program.main(None)
  said = capsys.readouterr().out
  monkeypatch.setattr(program.compare.loop, "train", None)
  monkeypatch.setattr(program, "score", None)
  program.main(None)
  assert capsys.readouterr().out == said
  rows = json.loads((tmp_path / "out.json").read_text())["rows"]
  assert [row["model"] for row in rows] == ["gru"]
  assert all(0 <= entry["accuracy"]["value"] < 0.2 and entry["solved"] == [0.0]
             for row in rows for entry in row["lengths"].values())
  c = programs.configuration("configs/synthetic.py:mqar,gru")
  asked = program.asked(c, 64)
  assert asked.sum(1).tolist() == [8] * 64 and not asked[:, :16].any()
