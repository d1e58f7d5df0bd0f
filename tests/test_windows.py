"""Every next-token pair is supervised once; a document's pieces start at multiples of `align`."""

import numpy as np
import pytest

from hope_jax.data.windows import Windows


@pytest.fixture
def numbered(tmp_path):
  """A shard in which every token is unlike every other, so a pair says where it was."""
  lengths = np.random.default_rng(0).integers(2, 150, 60)
  np.save(tmp_path / "s.train.offsets.npy", np.cumsum([0, *lengths]))
  np.save(tmp_path / "s.train.tokens.npy", np.arange(1, lengths.sum() + 1, dtype=np.uint16))
  np.save(tmp_path / "s.train.domains.npy", np.arange(60) % 2)
  return tmp_path, lengths


@pytest.mark.parametrize("seq, align", [(64, 16), (48, 48), (16, 8), (10, 1), (8192, 64)])
def test_every_next_token_pair_is_supervised_once(numbered, seq, align):
  folder, lengths = numbered
  packed = Windows(folder, "s", "train", seq, align, seed=0)
  ends = np.cumsum(lengths)
  expected = sorted(set(range(1, ends[-1] + 1)) - set(ends.tolist()))
  pairs, read = [], []
  for w in (packed[i] for i in range(len(packed))):
    on = w["labels"] >= 0
    assert (w["labels"][on] == w["tokens"][on] + 1).all()
    pairs += w["tokens"][on].tolist()
    read += w["tokens"][w["segments"] > 0].tolist()
  assert sorted(pairs) == expected
  assert sorted(read) == list(range(1, ends[-1] + 1))
  assert packed.padding == pytest.approx(1 - ends[-1] / (len(packed) * seq))


@pytest.mark.parametrize("seq, align", [(64, 16), (10, 1), (8192, 64)])
def test_every_piece_starts_at_a_multiple_of_align(numbered, seq, align):
  folder, lengths = numbered
  document = np.repeat(np.arange(60), lengths)  # of token t: document[t - 1]
  packed = Windows(folder, "s", "train", seq, align, seed=0)
  for w in (packed[i] for i in range(len(packed))):
    on = w["segments"] > 0
    assert not w["tokens"][~on].any() and (w["labels"][~on] == -1).all()
    assert w["tokens"].dtype == w["labels"].dtype == w["segments"].dtype == np.int32
    numbers = list(dict.fromkeys(w["segments"][on].tolist()))
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
      at = np.flatnonzero(w["segments"] == number)
      assert at[0] % align == 0 and (np.diff(at) == 1).all()
      assert len(set(document[w["tokens"][at] - 1])) == 1 and (np.diff(w["tokens"][at]) == 1).all()


def test_documents_are_packed_in_an_order_of_the_seed(numbered):
  def packed(seed):
    return Windows(numbered[0], "s", "train", 64, 16, seed=seed)[0]["tokens"].tolist()

  assert packed(3) == packed(3) != packed(4)


def test_domains_share_out_the_windows(numbered):
  folder, lengths = numbered
  starts = np.cumsum([0, *lengths])
  for number in (0, 1):
    packed = Windows(folder, "s", "train", 64, 16, seed=0, domain=number)
    read = np.concatenate([w["tokens"][w["segments"] > 0]
                           for w in (packed[i] for i in range(len(packed)))])
    expected = np.concatenate([np.arange(starts[d], starts[d + 1]) + 1
                               for d in range(number, 60, 2)])
    assert sorted(read.tolist()) == expected.tolist()
