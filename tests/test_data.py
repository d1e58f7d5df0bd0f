"""Order by the seed alone, resume == uninterrupted, sources by weight, no unfit folder or shard."""

import collections
import itertools
import json
import os
import shutil
import threading

import numpy as np
import pytest

from hope_jax import config
from hope_jax.data import corpus, loader, shard, tokenized
from hope_jax.data.windows import Windows
from tests.small_data import small


def windows(c, source="words", split="train", **kwargs):
  return Windows(tokenized.build(c), source, split, c.data.seq, c.data.align,
                 **dict(dict(seed=0), **kwargs))


def documents_of(c, source, split):
  """The documents' token lists."""
  tokens, offsets = (np.load(tokenized.build(c) / f"{source}.{split}.{part}.npy")
                     for part in ("tokens", "offsets"))
  return [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def rows(iterator, batches):
  return [row.tobytes() for _ in range(batches) for row in next(iterator)["tokens"]]


def test_shards_are_the_documents_in_order(built):
  c = small(built)
  tok = tokenized.tokenizer(c)
  manifest = json.loads((tokenized.build(c) / "manifest.json").read_text())
  for source in c.data.sources:
    documents = list(corpus.read(source))
    for split in corpus.SPLITS:
      of_split = [d for d in documents if corpus.split_of(d.name, 0.2) == split]
      stored = documents_of(c, source.name, split)
      assert [tok.decode(ids) for ids in stored] == [d.text for d in of_split]
      assert all(ids[0] == tok.bos and ids[-1] == tok.eos for ids in stored)
      counts = [n[split] for n in manifest["domains"][source.name].values()]
      assert sum(n["documents"] for n in counts) == len(of_split)
      assert sum(n["tokens"] for n in counts) == sum(map(len, stored))
      assert sum(n["bytes"] for n in counts) == sum(len(d.text.encode()) for d in of_split)


def test_order_is_the_seed_and_every_epoch_is_another_order(built):
  c = small(built)
  c.data.sources = c.data.sources[:1]
  c.data.dir += "_one"
  count = len(windows(c))
  c.data.batch = 1
  first = rows(batches := loader.train_batches(c), count)
  second = rows(batches, count)
  packed = windows(c)
  assert sorted(first) == sorted(second) == sorted(packed[i]["tokens"].tobytes()
                                                   for i in range(count))
  assert first != second
  assert rows(loader.train_batches(c), 2 * count) == first + second
  c.data.seed = 1
  assert rows(loader.train_batches(c), count) != first


def test_resume_in_the_middle_of_an_epoch_is_uninterrupted(built):
  c = small(built)
  batches = loader.train_batches(c)
  rows(batches, 5)
  state = json.loads(json.dumps(batches.get_state()))  # a checkpoint may pass through JSON
  ahead = rows(batches, 20)
  again = loader.train_batches(c)
  again.set_state(state)
  assert rows(again, 20) == ahead


def test_resume_at_every_batch_with_any_size_of_batch(built):
  c = small(built)
  batches, states, expected = loader.train_batches(c), [], []
  for _ in range(12):
    states.append(batches.get_state())
    expected += rows(batches, 1)
  for size, some in itertools.product((1, 3, 4, 8), ([0], None)):
    c.data.batch = size
    for i, state in enumerate(states[:8]):
      again = loader.train_batches(c, some)
      again.set_state(state)
      assert rows(again, 2) == [expected[4 * i + n] for n in range(2 * size)
                                if some is None or n % size in some]


def test_sources_are_mixed_by_weight(built):
  c = small(built)
  owner = {windows(c, source)[i]["tokens"].tobytes(): source
           for source in ("words", "numbers") for i in range(len(windows(c, source)))}
  drawn = collections.Counter(owner[row] for row in rows(loader.train_batches(c), 50))
  assert drawn == dict(words=150, numbers=50)


def test_evaluation_is_fixed_whole_and_takes_turns(built):
  c = small(built)
  c.data.batch = 5
  whole = list(loader.eval_batches(c, 10_000))
  c.data.seed = 5
  np.testing.assert_equal(list(loader.eval_batches(c, 10_000)), whole)
  np.testing.assert_equal(list(loader.eval_batches(c, 2)), whole[:2])
  names = [name for batch, _ in whole for name in batch]
  assert names[:4] == ["words/lists", "words/prose", "numbers/numbers", "words/lists"]
  assert all(batch["tokens"].shape == (5, 64) for _, batch in whole)
  supervised = sum((batch["labels"] >= 0).sum() for _, batch in whole)
  documents = documents_of(c, "words", "validation") + documents_of(c, "numbers", "validation")
  assert supervised == sum(len(ids) - 1 for ids in documents)
  last_names, last = whole[-1]
  assert "" in last_names
  assert [name == "" for name in last_names] == (~last["segments"].any(1)).tolist()
  assert (last["labels"][[name == "" for name in last_names]] == -1).all()


def test_built_again_it_is_the_same_bytes(built):
  c = small(built, "again")
  first, second = tokenized.build(small(built)), tokenized.build(c)
  assert {p.name: p.read_bytes()
          for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
  assert "words/prose " in tokenized.table(c)


def test_a_build_that_fails_leaves_nothing(built):
  c = small(built, "failed/built")
  c.model.vocab = 50_000
  with pytest.raises(ValueError, match="model.vocab 50000 is more than the text supports"):
    tokenized.build(c)
  assert not list((built / "failed").iterdir())


def test_two_builders_at_once_share_the_first_ones_folder(built, monkeypatch):
  c, write = small(built, "raced"), tokenized._write

  def late(partial, config):
    write(partial, config)
    shutil.copytree(tokenized.build(small(built)), c.data.dir)

  monkeypatch.setattr(tokenized, "_write", late)
  tokenized.build(c)
  assert not list(built.glob(".raced.*"))
  monkeypatch.setattr(tokenized, "_write", None)
  assert next(loader.train_batches(c))["tokens"].shape == (4, 64)


def test_a_folder_that_does_not_fit_the_config_is_refused(built):
  def fails(match, change):
    c = small(built)
    change(c)
    with pytest.raises(ValueError, match=match):
      loader.train_batches(c)

  fails("built with vocab 400, the config says 500; set them alike",
        lambda c: c.model.update(vocab=500))
  fails("val_fraction 0.2, the config says 0.3", lambda c: c.data.update(val_fraction=0.3))
  fails("built with sources .*numbers", lambda c: c.data.update(sources=c.data.sources[:1]))
  fails("data.seq 100 is not a multiple of data.align 16; set data.seq to 96",
        lambda c: c.data.update(seq=100))
  fails("training windows are fewer than one batch of 5000", lambda c: c.data.update(batch=5000))
  fails("unknown data.task 'txt'", lambda c: c.data.update(task="txt"))
  fails("weight -1.0 is not positive", lambda c: c.data.sources[0].update(weight=-1.0))
  fails("give each a name of its own", lambda c: c.data.sources[0].update(name="numbers"))
  fails("holds no readable manifest.json", lambda c: c.data.update(dir=str(built / "words")))
  weighted = small(built)
  weighted.data.sources[0].weight = 9.0  # mixes batches, so the shards still fit
  tokenized.build(weighted)


def test_a_damaged_folder_is_refused(built):
  def fails(match, damage, verify=False):
    c = small(built, "damaged")
    shutil.copytree(tokenized.build(small(built)), c.data.dir)
    damage(built / "damaged")
    with pytest.raises(ValueError, match=match):
      tokenized.build(c, verify)
    shutil.rmtree(c.data.dir)

  def truncate(folder):
    path = folder / "numbers.validation.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])

  def flip(folder):
    path = folder / "words.train.tokens.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")

  def other_tokenizer(folder):
    tokenized.train_tokenizer(["other text " * 9, "abcdefghijklmnop"] * 99,
                              folder / "tokenizer.model", 284)

  fails("truncated shard .*numbers.validation.tokens.npy: .* delete the folder and rebuild it",
        truncate)
  fails("truncated shard .*words.train.offsets.npy: 0 bytes", lambda f: (
      f / "words.train.offsets.npy").unlink())
  fails("words.train.tokens.npy changed since it was built", flip, verify=True)
  fails("is not the tokenizer of these shards", other_tokenizer)
  fails("no tokenizer at", lambda f: (f / "tokenizer.model").unlink())


def test_too_few_documents_for_a_split(built):
  c = small(built, "whole")
  c.data.val_fraction = 0.0
  with pytest.raises(ValueError, match="no validation document; raise data.val_fraction"):
    loader.eval_batches(c, 1)
  c = small(built, "none")
  c.data.val_fraction = 0.9999
  with pytest.raises(ValueError,
                     match="source words: every document fell into the validation split; lower"):
    tokenized.build(c)


def copied(built, name):
  """A config and its first source's shard, in a folder that may be damaged."""
  c = small(built, name)
  shutil.copytree(tokenized.build(small(built)), c.data.dir)
  return c, built / name / "words.train.tokens.npy"


def test_shards_that_are_away_for_a_while_are_waited_for(built, monkeypatch):
  c, path = copied(built, "away")
  expected = rows(loader.train_batches(c), 60)
  monkeypatch.setattr(shard, "RETRIES", (0.05,) * 100)
  batches = loader.train_batches(c)
  got = rows(batches, 5)
  state = batches.get_state()
  hidden = path.rename(path.with_suffix(".hidden"))
  threading.Timer(0.5, hidden.rename, [path]).start()
  assert got + rows(batches, 55) == expected
  batches.set_state(state)
  assert rows(batches, 55) == expected[20:]


def test_shards_that_stay_away_end_in_an_error_and_the_position_is_not_lost(built, monkeypatch):
  c, path = copied(built, "lost")
  expected = rows(loader.train_batches(c), 60)
  monkeypatch.setattr(shard, "RETRIES", (0.01,))
  batches, got = loader.train_batches(c), []
  hidden = path.with_suffix(".hidden")
  with pytest.raises(OSError,
                     match="words.train.tokens.npy could not be read for 0 s: No such file"):
    for i in range(60):
      got += rows(batches, 1)
      if i == 3:
        path.rename(hidden)
  state = batches.get_state()
  hidden.rename(path)
  again = loader.train_batches(c)
  again.set_state(state)
  assert got + rows(again, 60 - len(got) // 4) == expected


def test_a_read_that_is_cut_short_is_tried_again_and_never_zeros(tmp_path, monkeypatch):
  np.save(tmp_path / "t.npy", np.arange(1, 11, dtype=np.uint16))
  file, pread, cuts = shard.Shard(tmp_path / "t.npy"), os.pread, [1]
  monkeypatch.setattr(shard, "RETRIES", (0.0,))
  monkeypatch.setattr(os,
                      "pread", lambda file, size, at: pread(file, size,
                                                            at)[:-cuts.pop() if size == 6 and cuts
                                                                else None])
  def read():
    return file.read(np.array([0, 8, 12]), 3).tolist()
  assert read() == [[1, 2, 3], [9, 10, 0], [0, 0, 0]] and not cuts  # 0 beyond the end
  cuts += [1, 1]
  with pytest.raises(OSError,
                     match="t.npy could not be read for 0 s: fewer bytes were read than there are"):
    read()


def test_a_shard_replaced_while_it_is_read_is_an_error(built):
  c, path = copied(built, "replaced")
  batches = loader.train_batches(c)
  rows(batches, 2)
  other = path.with_suffix(".new")
  other.write_bytes(path.read_bytes()[:-1] + b"\0")
  other.rename(path)
  with pytest.raises(ValueError,
                     match="words.train.tokens.npy was replaced or changed while it was read: put "
                           "the old file back"):
    rows(batches, 60)


def test_shards_built_anew_do_not_fit_a_checkpoints_position(built):
  c, _ = copied(built, "anew")
  meta = {"data": tokenized.digest(c), "config": config.to_json(c)}
  tokenized.check_unchanged(c, meta)
  manifest = built / "anew" / "manifest.json"
  stored = json.loads(manifest.read_text())
  stored["files"]["words.train.tokens.npy"]["sha256"] = "0" * 64
  manifest.write_text(json.dumps(stored))
  with pytest.raises(ValueError,
                     match="anew holds other shards .*put them back, or build the new ones in "
                           "another data.dir"):
    tokenized.check_unchanged(c, meta)
  c.data.dir = str(built / "built")  # other data by intention
  tokenized.check_unchanged(c, meta | {"data": "another"})
