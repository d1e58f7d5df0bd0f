"""MQAR: each key once with its value, asked once later; examples by (seed, split, index) alone."""

import numpy as np
import pytest

from configs import recall_long
from hope_jax import config
from hope_jax.data import loader, recall


def small(**fields):
  c = config.base()
  c.data.update(dict(task="recall", seq=64, batch=4, recall_pairs=8, recall_keys=16), **fields)
  c.model.vocab = 33
  return c


def long():
  """8 places for queries after a gap of 2000."""
  c = small(seq=2012, recall_pairs=2, recall_gap=2000, recall_fillers=32)
  c.model.vocab = 65
  return c


def test_every_key_is_asked_once_and_answered_by_its_value():
  examples = recall.dataset(small(), "train")
  for i in range(200):
    e = examples[i]
    tokens, labels = e["tokens"], e["labels"]
    value = dict(zip(tokens[0:16:2].tolist(), tokens[1:16:2].tolist()))
    assert len(value) == len(set(value.values())) == 8
    assert all(1 <= k <= 16 < v <= 32 for k, v in value.items())
    asked = np.flatnonzero(labels >= 0)
    assert asked.min() >= 16 and sorted(tokens[asked].tolist()) == sorted(value)
    assert [value[k] for k in tokens[asked].tolist()] == labels[asked].tolist()
    assert not np.delete(tokens[16:], asked - 16).any() and (e["segments"] == 1).all()


def test_keys_values_places_and_their_order_vary():
  examples = [recall.dataset(small(), "train")[i] for i in range(300)]
  asked = np.stack([e["labels"] >= 0 for e in examples])
  assert asked[:, 16:].any(0).all()  # every later place is used
  first_asked = [np.flatnonzero(e["tokens"][0:16:2] == e["tokens"][e["labels"] >= 0][0])[0]
                 for e in examples]
  assert set(first_asked) == set(range(8))  # any pair can be asked first
  assert {k for e in examples for k in e["tokens"][:16].tolist()} == set(range(1, 33))


def test_the_tightest_sequence_is_full():
  e = recall.dataset(small(seq=24), "train")[0]
  assert (e["tokens"] > 0).all() and (e["labels"][16:] > 0).all()


def test_batches_resume_and_evaluation_is_other_examples():
  c = small()
  batches = loader.train_batches(c)
  first = [next(batches) for _ in range(3)]
  state = batches.get_state()
  ahead = [next(batches) for _ in range(3)]
  again = loader.train_batches(c)
  again.set_state(state)
  np.testing.assert_equal([next(again) for _ in range(3)], ahead)
  seen = {row.tobytes() for b in first + ahead for row in b["tokens"]}
  assert len(seen) == 24
  held_out = list(loader.eval_batches(c, 6))
  np.testing.assert_equal(held_out, list(loader.eval_batches(c, 6)))
  assert all(names == ["recall"] * 4 for names, _ in held_out)
  assert not seen & {row.tobytes() for _, b in held_out for row in b["tokens"]}
  assert not seen & {row.tobytes() for row in next(loader.train_batches(small(seed=1)))["tokens"]}


def test_a_fact_lies_2000_tokens_before_its_question():
  examples = recall.dataset(long(), "validation")
  used = set()
  for i in range(200):
    tokens, labels = examples[i]["tokens"], examples[i]["labels"]
    value = dict(zip(tokens[0:4:2].tolist(), tokens[1:4:2].tolist()))
    asked = np.flatnonzero(labels >= 0)
    assert [value[k]
            for k in tokens[asked].tolist()] == labels[asked].tolist() and set(
                tokens[asked]) == set(value)
    assert asked.min() - 3 > 2000  # the last fact's value is token 3: 2000 fillers lie between
    used |= set(asked.tolist())
    others = np.delete(tokens, [0, 1, 2, 3, *asked])
    assert others.min() >= 33 and others.max() <= 64 and len(set(others.tolist())) == 32
  assert used == set(range(2004, 2012))


def test_nothing_before_the_question_but_the_fact_tells_the_value():
  examples = [recall.dataset(long(), "validation")[i] for i in range(400)]
  facts = np.stack([e["tokens"][:4] for e in examples])
  gaps = np.stack([e["tokens"][4:2004] for e in examples])
  assert len({row.tobytes() for row in gaps}) == 400
  shares = np.stack([(gaps == filler).mean(1) for filler in range(33, 65)], 1)
  assert abs(shares.mean(0) - 1 / 32).max() < 1e-3
  related = np.corrcoef(np.concatenate([shares, facts], 1).T)[:32, 32:]
  assert abs(related).max() < 0.25  # 5 / sqrt(400)


def test_training_gaps_are_shorter_and_vary():
  examples = recall.dataset(long(), "train")
  first = [np.flatnonzero(examples[i]["labels"] >= 0).min() - 4 for i in range(1000)]
  assert min(first) < 20 and max(first) > 1980 and abs(np.mean(first)
                                                       - 1003) < 5 * 577 / 1000 ** 0.5
  shorter = {examples[i]["tokens"].tobytes() for i in range(100)}
  held_out = recall.dataset(long(), "validation")
  assert len(shorter | {held_out[i]["tokens"].tobytes() for i in range(100)}) == 200


def test_fillers_without_a_gap():
  c = small(recall_fillers=4)
  c.model.vocab = 37
  with_fillers, without = recall.dataset(c, "train")[3], recall.dataset(small(), "train")[3]
  np.testing.assert_array_equal(with_fillers["labels"], without["labels"])
  plain = np.flatnonzero(without["tokens"])
  np.testing.assert_array_equal(with_fillers["tokens"][plain], without["tokens"][plain])
  assert set(np.delete(with_fillers["tokens"], plain).tolist()) == {33, 34, 35, 36}


def test_taught_facts_are_labelled_too_and_nothing_else_changes():
  taught, plain = (recall.dataset(small(recall_taught=on), "train")[3] for on in (True, False))
  np.testing.assert_array_equal(taught["tokens"], plain["tokens"])
  np.testing.assert_array_equal(taught["labels"][16:], plain["labels"][16:])
  np.testing.assert_array_equal(taught["labels"][:16:2], plain["tokens"][1:16:2])
  assert (taught["labels"][1:16:2] == -1).all() and (plain["labels"][:16] == -1).all()


def test_the_long_configuration_asks_after_its_gap():
  c = recall_long.get_config()
  facts = 2 * c.data.recall_pairs
  labels = [recall.dataset(c, "validation")[i]["labels"] for i in range(50)]
  assert min(np.flatnonzero(row >= 0).min() for row in labels) >= facts + c.data.recall_gap
  assert {len(row) for row in labels} == {c.data.seq}


def test_errors_state_the_number():
  for fields, match in ((dict(seq=23), "data.seq 23 is too short .* set data.seq to 24 or more"),
                        (dict(recall_keys=7), "set data.recall_keys to 8 or more"),
                        (dict(recall_keys=17),
                         "model.vocab 33 is too small .* set model.vocab to 35 or more"),
                        (dict(recall_gap=41, recall_fillers=16),
                         "data.recall_gap 41; set data.seq to 65 or more"),
                        (dict(recall_gap=8),
                         "fillers 0 is too few .* set data.recall_fillers to 16 or more"),
                        (dict(recall_gap=8, recall_fillers=16), "set model.vocab to 49 or more"),
                        (dict(recall_gap=-1, recall_fillers=16),
                         "data.recall_gap -1.* set them to 0 or more"),
                        (dict(recall_pairs=0), "data.recall_pairs 0 must be between 1 and")):
    with pytest.raises(ValueError, match=match):
      loader.train_batches(small(**fields))
