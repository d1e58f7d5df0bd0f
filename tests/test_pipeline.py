"""A recipe's folder: built once bit for bit however often killed, nothing lost, fit to train on."""

import collections
import html
import itertools
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

pytest.importorskip("datatrove")
pytest.importorskip("py3langid")

from hope_jax import config
from hope_jax.data import __main__ as program, corpus, files, loader, tokenized, tokenizer
from hope_jax.data.pipeline import (build, contamination, manifest, recipe, stages, store,
                                    tokens)
from hope_jax.runtime import program as runtime
from tests import raw_data

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  """(folder, {fault: document}): made once, made while killed 20 times, made by four workers."""
  folder = tmp_path_factory.mktemp("raw")
  names = raw_data.write(folder)
  done = subprocess.run([sys.executable, "-m", "tests.raw_data", str(folder)], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return folder, names


def made(folder):
  """{file: bytes} of what a recipe leaves, but for what only it reads."""
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
          if path.is_file() and path.relative_to(folder).parts[0] != "work"}


def kept(folder, source):
  return [row for path in sorted((folder / "documents" / source).iterdir())
          for row in store.read_lines(path)]


def dropped(folder):
  return [row for path in sorted((folder / "dropped").iterdir()) for row in store.read_lines(path)]


@pytest.mark.parametrize("other", ["killed", "four"])
def test_killed_20_times_or_by_four_workers_it_is_the_same_bytes(raw, other):
  folder, _ = raw
  assert int((folder / "kills").read_text()) == raw_data.KILLS
  once, again = made(folder / "once"), made(folder / other)
  assert once.keys() == again.keys()
  assert [name for name in once if once[name] != again[name]] == []
  assert not list((folder / other).rglob("*.partial"))


def test_every_item_is_in_one_list_and_every_fault_is_found(raw):
  folder, names = raw
  sources = raw_data.made_of(folder, "once").sources
  items = [i for s in sources for i in corpus.items(s, corpus.select(s))]
  out = [row["name"] for s in sources for row in kept(folder / "once", s.name)]
  gone = {row["name"]: row["rule"] for row in dropped(folder / "once")}
  assert sorted([*out, *gone]) == sorted(item.name for item in items)
  assert {rule: name for name, rule in gone.items()} == names
  facts = manifest.read(folder / "once")["sources"]
  counted = {rule: n["documents"] for s in facts.values() for rule, n in s["dropped"].items()}
  assert counted == dict.fromkeys(names, 1)
  assert sum(s["read"]["documents"] for s in facts.values()) == len(items)
  assert sum(s["kept"]["documents"] for s in facts.values()) == len(out)


def test_where_the_files_lie_changes_nothing(raw, tmp_path):
  folder, _ = raw
  shutil.copytree(folder / "web", tmp_path / "there" / "web")
  (tmp_path / "web").symlink_to(tmp_path / "there" / "web")
  shutil.copytree(folder / "code", tmp_path / "code")
  shutil.copy(folder / "asked.jsonl", tmp_path)
  build.make(raw_data.made_of(tmp_path, "moved"))
  once, moved = made(folder / "once"), made(tmp_path / "moved")
  assert once.keys() == moved.keys()  # the recipes have other paths
  assert {name for name in once if once[name] != moved[name]} == {"manifest.json",
                                                                  "shards/manifest.json"}


def test_what_is_kept_is_every_byte_of_it(raw):
  folder, _ = raw
  texts = {row["name"]: files.encode(row["text"]) for row in kept(folder / "once", "code")}
  assert texts == {path.name: path.read_bytes() for path in (folder / "code").iterdir()}
  given = {d.name: d.text for d in corpus.read(raw_data.made_of(folder, "once").sources[0])}
  assert all(given[row["name"]] == row["text"] for row in kept(folder / "once", "web"))


def test_no_document_has_13_words_in_a_row_of_an_evaluation(raw):
  folder, _ = raw
  runs = set()
  for text in contamination.texts([str(folder / "asked.jsonl")]):
    words = text.lower().replace(".", "").split()
    runs |= {tuple(words[i:i + 13]) for i in range(len(words) - 12)}
  assert runs
  for row in kept(folder / "once", "web"):
    words = row["text"].lower().replace(".", "").split()
    assert not runs & {tuple(words[i:i + 13]) for i in range(len(words) - 12)}


def model_of(folder, data_dir):
  c, r = config.base(), raw_data.made_of(folder, "once")
  c.model.vocab = r.tokenizer.vocab
  c.data.update(dict(dir=data_dir, val_fraction=r.val_fraction, seq=64, align=16, batch=4))
  c.data.sources = recipe.training(r)
  return c


def test_a_model_reads_the_shards_as_if_it_had_tokenised_the_documents(raw):
  folder, _ = raw
  r = raw_data.made_of(folder, "once")
  shards = model_of(folder, recipe.shards(r))
  anew = model_of(folder, str(folder / "anew"))
  anew.data.tokenizer = recipe.shards(r)
  assert len(list((folder / "once" / "shards").glob("web.train.tokens.*"))) > 3
  for ours, theirs in itertools.chain(
      itertools.islice(zip(loader.train_batches(shards), loader.train_batches(anew)), 20),
      zip(loader.eval_batches(shards, 20), loader.eval_batches(anew, 20), strict=True)):
    np.testing.assert_equal(ours, theirs)
  assert "web/notes" not in tokenized.table(shards) and "code/lists" in tokenized.table(shards)
  tok = tokenizer.load(recipe.shards(r))
  for s in r.sources:
    rows = {d: [row["text"] for row in kept(folder / "once", s.name)
                if corpus.split_of(row["name"], r.val_fraction) == d] for d in corpus.SPLITS}
    for split, texts in rows.items():
      stem = folder / "once" / "shards" / f"{s.name}.{split}"
      ids = np.concatenate([np.load(p) for p in sorted(stem.parent.glob(f"{stem.name}.tokens.*"))])
      ends = np.load(f"{stem}.offsets.npy")
      assert [tok.decode(ids[a:b].tolist()) for a, b in zip(ends, ends[1:])] == texts


def test_sources_are_weighed_by_their_tokens_and_a_temperature(raw):
  folder, _ = raw
  c = raw_data.made_of(folder, "once")
  sizes = {}
  for s in c.sources:
    stem = folder / "once" / "shards" / f"{s.name}.train"
    sizes[s.name] = int(np.load(f"{stem}.offsets.npy")[-1])
  for temperature, exponent in ((0, 0.0), (1, 1.0), (2, 0.5), (1e9, 0.0)):
    weights = {s.name: s.weight for s in recipe.training(c, temperature)}
    want = {"web": 2 * sizes["web"]**exponent, "code": sizes["code"]**exponent}
    assert weights == pytest.approx({n: w / sum(want.values()) for n, w in want.items()})
  read = recipe.epochs(c, recipe.training(c), 30_000)
  assert read == pytest.approx({"web": 20_000 / sizes["web"], "code": 10_000 / sizes["code"]})
  with pytest.raises(ValueError, match="manifest.json is missing: make the data first"):
    recipe.training(raw_data.made_of(folder, "nowhere"), 1)


def test_a_file_is_whole_or_as_it_was(tmp_path):
  path = tmp_path / f"a{store.LINES}"
  for before in ([], [dict(text="x\udcff")]):
    with pytest.raises(OSError, match="the disk is full"), store.lines(path) as add:
      add(dict(text="new" * 1000))
      raise OSError("the disk is full")
    assert list(store.read_lines(path) if path.exists() else ()) == before
    assert [found.name for found in tmp_path.iterdir()] == [path.name][:len(before)]
    with store.lines(path) as add:
      add(dict(text="x\udcff"))


def test_shards_end_with_the_document_that_reaches_the_size():
  assert tokens.spans(np.array([0, 3, 5, 9]), 4) == [(0, 5), (5, 9)]
  assert tokens.spans(np.array([0, 3, 5, 9]), 100) == [(0, 9)]
  assert tokens.spans(np.array([0]), 4) == [(0, 0)]


def test_a_changed_recipe_input_or_file_is_named(raw, tmp_path):
  folder, _ = raw

  def fails(match, c):
    with pytest.raises(ValueError, match=match):
      build.make(c)

  c = raw_data.made_of(folder, "once")
  c.near.n = 6
  fails("once was made by another recipe .near.n was 5, is 6.; choose another dir", c)
  raw_data.write(tmp_path)
  c = raw_data.made_of(tmp_path, "out")
  c.filters.quality.min_doc_words = 10**6
  fails("source web: no document is left to train on; look into .*dropped", c)
  (tmp_path / "web" / "0.jsonl.gz").write_bytes(b"")
  fails("web/0.jsonl.gz has changed since .*out was begun", c)
  c.near.hashes = 0
  fails("near.hashes are at least 1", c)
  assert "files, " in manifest.verify(folder / "four")
  path = folder / "four" / "shards" / "web.train.tokens.00001.npy"
  before = path.read_bytes()
  path.write_bytes(before[:-1] + b"\7")
  with pytest.raises(ValueError, match="web.train.tokens.00001.npy changed since it was written"):
    manifest.verify(folder / "four")
  path.write_bytes(before)


def test_a_model_that_does_not_fit_the_shards_is_told(raw):
  folder, _ = raw
  c = model_of(folder, recipe.shards(raw_data.made_of(folder, "once")))
  c.model.vocab = 300
  with pytest.raises(ValueError, match="was made with 420 tokens and val_fraction 0.2; set"):
    loader.train_batches(c)
  c.data.sources = c.data.sources[:1] + (c.data.sources[1].copy_and_resolve_references(),)
  c.data.sources[1].name = "books"
  with pytest.raises(ValueError, match="source books: .* was made by a recipe, from the"):
    loader.train_batches(c)


def called(recipe_, **given):
  program._follow(recipe_, types.SimpleNamespace(
      **dict(verify=False, report=None, coverage=None, baseline=None) | given))


def test_the_program_makes_and_verifies(raw, capsys):
  folder, _ = raw
  c = raw_data.made_of(folder, "once")
  called(c)
  said = capsys.readouterr().out
  assert "near_duplicate" in said and f"shards for data.dir: {folder / 'once' / 'shards'}" in said
  called(c, verify=True)
  assert "are as they were written" in capsys.readouterr().out


def test_the_page_shows_every_rule_source_and_overlap(raw, tmp_path):
  folder, names = raw
  c = raw_data.made_of(folder, "once")
  called(c, report=str(tmp_path / "new" / "report.html"))
  text = (tmp_path / "new" / "report.html").read_text()
  assert all(rule in html.unescape(text) for rule in names) and "CC0" in text
  assert re.search(r"<td>web\s+<td>2\s+<td>0<", text)  # an exact and a near duplicate, both of web
  assert "Der Garten hinter" in text and "http" not in text
  counts = collections.Counter(re.findall(r"<(/?)(table|div|pre)", text))
  assert counts["", "table"] == counts["/", "table"] > 4
  assert counts["", "pre"] == counts["/", "pre"] == 6


def test_a_tokenizer_that_reads_text_worse_is_an_error(raw, tmp_path, capsys):
  folder, _ = raw
  c, sample = raw_data.made_of(folder, "once"), tmp_path / "sample.txt"
  given = dict(coverage=str(sample), baseline=str(tmp_path / "kept.json"))
  sample.write_text("\n".join(row["text"] for row in kept(folder / "once", "web")))
  called(c, **given)
  before = json.loads((tmp_path / "kept.json").read_text())
  tok = tokenizer.load(folder / "once" / "shards")
  ids = tok.encode(sample.read_text())
  assert before["tokens"] == len(ids) and before["unknown"] == 0
  assert before["bytes_a_token"] == sample.stat().st_size / len(ids)
  assert before["single"] == np.mean([len(tok.decode([i]).strip()) == 1 for i in ids])
  called(c, **given)
  assert "kept in" in (said := capsys.readouterr().out) and "as in" in said
  sample.write_text("Привет, мир. " * 50)
  with pytest.raises(ValueError, match="bytes_a_token was .* by the same tokenizer: train it on"):
    called(c, **given)
  with pytest.raises(ValueError, match="--coverage goes with --baseline: give both"):
    called(c, coverage=str(sample))


def test_recipes_of_the_package_are_whole(tmp_path):
  for name in ("web", "books", "poems"):
    (tmp_path / name).mkdir()
  (tmp_path / "evaluations").mkdir()
  sample, more, web = map(runtime.configuration, (
      "configs/data/sample.py", f"configs/data/sample.py:{tmp_path}",
      f"configs/data/refinedweb.py:{tmp_path}"))
  for c in (sample, more, web):
    recipe.check(c)
  assert [(s.name, s.filters == recipe.FILTERS) for s in web.sources] == [
      ("books", False), ("poems", True), ("web", True)]
  assert web.decontaminate.files == (str(tmp_path / "evaluations"),)
  assert more.sources[0].path == str(tmp_path) and len(sample.sources) == 2


def test_a_missing_library_is_named():
  done = subprocess.run(
      [sys.executable, "-c", "import sys; sys.modules['datatrove'] = None; sys.argv[1:] = ["
       "'--config=configs/data/sample.py']; from hope_jax.data import __main__; __main__.run()"],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and done.stderr.strip() == (
      "ValueError: a recipe needs the library datatrove: pip install 'hope_jax[data]'")


def test_a_worker_that_is_killed_is_said(raw, tmp_path):
  folder, _ = raw
  c = raw_data.made_of(folder, str(tmp_path / "killed"), workers=2)
  place = stages.Place(c)
  place.work.mkdir(parents=True)
  with stages.Workers(place, 2) as workers:
    with pytest.raises(OSError, match="filter: a process was killed, perhaps for want of memory"):
      workers.run(stages.Stage("filter", 2, raw_data.die))
