"""MQAR: each key once with its value, asked once later; examples depend on (seed, split, index) alone."""

import numpy as np
import pytest

from hope_jax import config, data, recall


def small(**fields):
  c = config.base()
  c.data.update(dict(task="recall", seq=64, batch=4, recall_pairs=8, recall_keys=16), **fields)
  c.model.vocab = 33
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
  first_asked = [np.flatnonzero(e["tokens"][0:16:2] == e["tokens"][e["labels"] >= 0][0])[0] for e in examples]
  assert set(first_asked) == set(range(8))  # any pair can be asked first
  assert {k for e in examples for k in e["tokens"][:16].tolist()} == set(range(1, 33))


def test_the_tightest_sequence_is_full():
  e = recall.dataset(small(seq=24), "train")[0]
  assert (e["tokens"] > 0).all() and (e["labels"][16:] > 0).all()


def test_batches_resume_and_evaluation_is_other_examples():
  c = small()
  batches = data.train_batches(c)
  first = [next(batches) for _ in range(3)]
  state = batches.get_state()
  ahead = [next(batches) for _ in range(3)]
  again = data.train_batches(c)
  again.set_state(state)
  np.testing.assert_equal([next(again) for _ in range(3)], ahead)
  seen = {row.tobytes() for b in first + ahead for row in b["tokens"]}
  assert len(seen) == 24
  held_out = list(data.eval_batches(c, 6))
  np.testing.assert_equal(held_out, list(data.eval_batches(c, 6)))
  assert all(names == ["recall"] * 4 for names, _ in held_out)
  assert not seen & {row.tobytes() for _, b in held_out for row in b["tokens"]}
  assert not seen & {row.tobytes() for row in next(data.train_batches(small(seed=1)))["tokens"]}


def test_errors_state_the_number():
  for fields, match in ((dict(seq=23), "data.seq 23 is too short .* set data.seq to 24 or more"),
                        (dict(recall_keys=7), "set data.recall_keys to 8 or more"),
                        (dict(recall_keys=17), "model.vocab 33 is too small .* set model.vocab to 35 or more"),
                        (dict(recall_pairs=0), "data.recall_pairs 0 must be between 1 and")):
    with pytest.raises(ValueError, match=match):
      data.train_batches(small(**fields))
