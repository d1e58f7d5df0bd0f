"""Classes that arrive in groups: files of three forms, and each way on classes that are easy."""

import json
from pathlib import Path
import sys

from absl import flags
import numpy as np
import pytest

from hope_jax.data import tokenizer
from hope_jax.model import lm
from hope_jax.reports import learned
from hope_jax.scoring import features, incremental, labelled, memorization
from hope_jax.scoring.labelled import Example
from tests import tiny_run
from tests.tiny import noisy, parameters, texts, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import class_incremental as program

CLINC = {"train": [["pay it", "pay_bill"], ["who are you", "oos"], ["hello", "greeting"]],
         "test": [["pay now", "pay_bill"], ["hi", "greeting"]], "oos_val": []}


def put(folder, name, text, split="train"):
  path = folder / getattr(labelled.SETS[name], split).file
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)


def test_three_forms_of_files(tmp_path):
  put(tmp_path, "clinc150", json.dumps(CLINC))
  data = labelled.read("clinc150", str(tmp_path))
  assert data.train == [Example("pay it", "pay bill"), Example("hello", "greeting")]
  assert data.labels == ["greeting", "pay bill"] and len(data.test) == 2
  put(tmp_path, "banking77", 'text,category\n"Where, now?",card_arrival\nWhy,card_linking\n')
  put(tmp_path, "banking77", "text,category\nHow,card_arrival\n", "test")
  data = labelled.read("banking77", str(tmp_path))
  assert data.train[0] == Example("Where, now?", "card arrival")
  whole = [{"label": f"L{i % 2}", "sentence": f"Title: {i}"} for i in range(40)]
  put(tmp_path, "dbpedia14", json.dumps(whole))
  data = labelled.read("dbpedia14", str(tmp_path))
  assert len(data.train) + len(data.test) == 40 and min(len(data.train), len(data.test)) > 9
  assert not set(data.train) & set(data.test)


@pytest.mark.parametrize("text, message", [
    ('{"train": [\n["a", "b"]\n', "clinc150_data_full.json, line 3: "),
    ('{"train": []}', "has no list of examples named train"),
    ('{"train": [["a", "b"], ["c"]]}', "train entry 2: it has no text in the field intent"),
    ('{"train": [["a", "b"]], "test": [["a", "c"]]}', "the class c is in no example")])
def test_malformed_files(tmp_path, text, message):
  put(tmp_path, "clinc150", text)
  with pytest.raises(ValueError, match=message):
    labelled.read("clinc150", str(tmp_path))


def test_groups_are_all_classes_in_an_order_of_their_own():
  data = labelled.Data([Example(f"{i}", f"c{i % 6}") for i in range(60)],
                       [Example(f"t{i}", f"c{i % 6}") for i in range(30)])
  one, again, other = (labelled.groups(data, 3, order, 4, 2) for order in (0, 0, 1))
  assert one == again != other and [len(group.labels) for group in one] == [2, 2, 2]
  assert sorted(label for group in other for label in group.labels) == data.labels
  for group in one:
    assert len(group.train) == 8 and len(group.test) == 4
    assert {example.label for example in group.train + group.test} == set(group.labels)


def test_features_do_not_depend_on_padding_or_batch():
  """And are what the head reads: their products with it are the mean logits."""
  c, params, some = tiny("hope_attention"), parameters("hope_attention"), texts(3, 9, 17, 5, seed=2)
  together = features.of(c, params, some, batch=4)
  np.testing.assert_allclose(features.of(c, params, some[::-1], batch=2)[::-1], together, rtol=1e-4,
                             atol=1e-5)
  logits, _, _ = lm.build(c).apply({"params": params}, np.array([some[1]]))
  np.testing.assert_allclose(together[1] @ params["embed"]["embedding"].T, logits[0].mean(0),
                             rtol=1e-3, atol=1e-4)


def test_classifiers_find_classes_that_lie_apart():
  pytest.importorskip("sklearn")  # hope_jax[evals]
  rng = np.random.default_rng(0)
  centres = rng.normal(0, 3, (5, 8))
  # one direction of noise is large: the discriminant knows it, the mean does not
  noise = rng.normal(0, 1, (2, 100, 8)) * np.array([30, *[0.3] * 7])
  vectors, queries = (centres[np.arange(100) % 5] + own for own in noise)
  labels = [f"c{i % 5}" for i in range(100)]
  def right(way):
    return np.mean([a == b for a, b in zip(way(vectors, labels, queries), labels)])
  assert right(features.discriminant) > 0.95 > 0.8 > right(features.nearest_mean) > 0.15


@pytest.mark.slow
def test_every_way_answers_among_the_classes_seen(tmp_path):
  pytest.importorskip("sklearn")
  c = tiny_run.configured("hope_attention", scale=3.0)
  tiny_run.save(tmp_path, c)
  data = labelled.Data(*[[Example(f"{tiny_run.WORDS[i % 4]} {i}", tiny_run.WORDS[6 + i % 4])
                          for i in range(12)]] * 2)
  ways = incremental.Ways(c, noisy(c), tokenizer.load(tmp_path), memorization.Options(True), 4)
  for seen, group in enumerate(labelled.groups(data, 2, 0, 2, 2), 1):
    ways.read(group)
    assert set(ways.guess(c, None, group.test)) <= set(ways.labels) and len(ways.labels) == 2 * seen
    right = ways.right(group.test)
    assert set(right) == {"nothing", "memorized", "one_period", "in_context", "nearest_mean",
                          "discriminant"}
    assert all(len(own) == len(group.test) for own in right.values())
  assert len(ways.did["memorized"]) == 8
  assert len(ways.joint(ways.examples, group.test)) == 4


def test_scores_by_hand():
  """Two groups of two texts: one that was right becomes wrong, one is right among fewer classes."""
  rows = [{"order": 0, "group": 0, "of_group": [0, 0],
           "right": {"nothing": [False, True], "memorized": [True, True]}},
          {"order": 0, "group": 1, "of_group": [0, 0, 1, 1],
           "right": {"nothing": [False] * 4, "memorized": [True, False, True, True],
                     "joint": [True] * 4}}]
  ways = program.summary(rows, 2, 0)
  got = {name: own["value"] for name, own in ways["memorized"].items() if name != "after_each"}
  assert got == {"final": 0.75, "over_nothing": 0.75, "average": (1.0 + 0.75) / 2,
                 "forgetting": 0.5}
  assert [own["value"] for own in ways["nothing"]["after_each"]] == [0.5, 0.0]
  assert ways["joint"]["final"]["value"] == 1.0 and "average" not in ways["joint"]
  axis, = learned.curves({"set": "clinc150", "ways": ways}).axes
  assert [line.get_label() for line in axis.lines] == ["nothing", "memorized", "joint"]
  assert list(axis.lines[1].get_ydata()) == [1.0, 0.75]


@pytest.mark.nightly
def test_the_program_goes_on_where_it_was_cut(tmp_path, monkeypatch):
  pytest.importorskip("sklearn")
  tiny_run.save(tmp_path / "run", tiny_run.configured("hope_attention", scale=3.0))
  lines = [[f"{tiny_run.WORDS[i % 4]} {i}", tiny_run.WORDS[i % 10]] for i in range(40)]
  put(tmp_path, "clinc150", json.dumps({"train": lines, "test": lines}))
  monkeypatch.setitem(labelled.SETS, "clinc150", labelled.SETS["clinc150"]._replace(groups=2))
  def call(name):
    values = flags.FlagValues()
    program.define_flags(values)
    program.main(values(["", f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / name}",
                         f"--data_dir={tmp_path}", "--orders=1", "--shots=2", "--tests=1",
                         "--batch=4", "--memorize"]), values)
    return json.loads((tmp_path / name).read_text())
  whole, right, calls = call("whole.json"), incremental.Ways.right, []
  def cut(*args):
    calls.append(0)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return right(*args)
  monkeypatch.setattr(incremental.Ways, "right", cut)
  with pytest.raises(KeyboardInterrupt):
    call("cut.json")
  monkeypatch.setattr(incremental.Ways, "right", right)
  assert call("cut.json")["ways"] == whole["ways"] and "joint" in whole["ways"]
  assert all(own["updates"] > 0 for own in whole["memories"]["memorized"].values())
