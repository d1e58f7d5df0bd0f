"""Documents arrive in one order, whole, in a split that never moves; bad input is named."""

import bz2
import gzip
import json
import lzma
import random

import pytest
from ml_collections import ConfigDict

from hope_jax.data import corpus, files


def source(kind, path="", field="text", domains=""):
  return ConfigDict(dict(name="s", kind=kind, path=str(path), field=field, domains=domains,
                         weight=1.0))


def jsonl(path, *records):
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "wt") as f:
    f.writelines(json.dumps(r) + "\n" for r in records)
  return path


def test_embedded_needs_nothing_and_keeps_its_order():
  read = list(corpus.read(source("embedded", domains="reference, library")))
  assert read == list(corpus.read(source("embedded", domains="library,reference")))
  library = [d.name.split("/") for d in read if d.domain == "library"]
  assert library == sorted(library)
  assert {d.domain for d in read} == {"reference", "library"}
  assert len({d.name for d in read}) == len(read)
  text = {d.name: d.text for d in read}
  assert text["library/json/decoder.py"] == open(json.decoder.__file__, newline="").read()
  assert not any("site-packages" in name for name in text)


def test_one_domain_is_what_that_domain_is_in_the_whole(tmp_path):
  for name in ("a/1.txt", "a/b/2.txt", "c/3.txt", "4.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  whole = list(corpus.read(source("text", tmp_path)))
  assert [(d.name, d.domain) for d in whole] == [
      ("4.txt", tmp_path.stem), ("a/1.txt", "a"), ("a/b/2.txt", "a"), ("c/3.txt", "c")]
  assert list(corpus.read(source("text", tmp_path, domains="a"))) == [d for d in whole
                                                                      if d.domain == "a"]


def test_any_byte_survives(tmp_path):
  data = random.Random(0).randbytes(2000) + b"\r\n\x00\xff" + "\u2581\ufeffé".encode()
  (tmp_path / "x.bin").write_bytes(data)
  (document,) = corpus.read(source("text", tmp_path / "x.bin"))
  assert document.text.encode("utf-8", "surrogateescape") == data


def test_jsonl_plain_and_gzip_are_the_same_documents(tmp_path):
  records = [dict(body="one\n"), dict(body=" "), dict(body="two", id=3)]
  for name in ("w.jsonl", "v.jsonl.gz"):
    jsonl(tmp_path / name, *records)
  (tmp_path / "notes.md").write_text("not JSON")
  read = list(corpus.read(source("jsonl", tmp_path, "body")))
  assert [(d.name, d.text, d.domain) for d in read] == [
      ("v.jsonl.gz:1", "one\n", "v"), ("v.jsonl.gz:3", "two", "v"),
      ("w.jsonl:1", "one\n", "w"), ("w.jsonl:3", "two", "w")]


@pytest.mark.parametrize("pack, ending", [(bz2.compress, ".bz2"), (lzma.compress, ".XZ"),
                                          (gzip.compress, ".gz"), (bytes, "")])
def test_packed_files_of_any_ending_are_read_and_damage_is_named(tmp_path, pack, ending):
  lines = b'{"text": "one"}\n' * 50
  for name in ("a.ndjson", "b.JSONL"):
    (tmp_path / f"{name}{ending}").write_bytes(pack(lines))
  read = list(corpus.read(source("jsonl", tmp_path)))
  assert len(read) == 100 and {d.domain for d in read} == {"a", "b"}
  (tmp_path / f"text{ending}").write_bytes(pack(b"whole\r\ntext"))
  assert files.text(tmp_path / f"text{ending}") == "whole\r\ntext"
  if ending:
    (tmp_path / f"text{ending}").write_bytes(pack(lines)[:-9])
    with pytest.raises(ValueError, match=f"text{ending} is not a whole {ending} file"):
      files.text(tmp_path / f"text{ending}")
    (tmp_path / f"text{ending}").write_bytes(b"no such thing at all")
    with pytest.raises(ValueError, match=f"text{ending} is not a whole {ending} file"):
      files.text(tmp_path / f"text{ending}")


def test_what_is_no_text_is_left_out_and_said(tmp_path, capsys):
  (tmp_path / "inner").mkdir()
  for name, data in (("a.txt", b"plain"), ("inner/b.txt", "wide é".encode("utf-16")),
                     ("c.txt", b"\xef\xbb\xbfmarked"), ("picture.png", b"\x89PNG\0\0\1"),
                     ("Thumbs.db", b"\0\0"), (".hidden", b"not seen"), ("latin.txt", b"caf\xe9")):
    (tmp_path / name).write_bytes(data)
  read = {d.name: d.text for d in corpus.read(source("text", tmp_path))}
  assert read == {"a.txt": "plain", "inner/b.txt": "wide é", "c.txt": "marked",
                  "latin.txt": "caf\udce9"}
  assert "2 left out, no text: Thumbs.db, picture.png" in capsys.readouterr().err
  list(corpus.read(source("text", tmp_path)))
  assert not capsys.readouterr().err  # once
  jsonl(tmp_path / "x.jsonl", dict(text="one"), dict(text=None), dict(text="two"))
  assert [d.text for d in corpus.read(source("jsonl", tmp_path))] == ["one", "two"]
  said = capsys.readouterr().err
  assert "left out, no JSON lines" in said and "1 left out, null in field 'text': x.jsonl:2" in said


def test_folders_behind_links_are_read_once(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "real" / "a.txt").write_text("one")
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts" / "link").symlink_to(tmp_path / "real")
  (tmp_path / "real" / "loop").symlink_to(tmp_path / "texts")
  assert [d.name for d in corpus.read(source("text", tmp_path / "texts"))] == ["link/a.txt"]


@pytest.mark.parametrize("line",
                         [b"[" * 100_000, b'{"text": ' + b"1" * 5000 + b"}", b'{"text": 1}'])
def test_a_line_that_cannot_be_read_is_named(tmp_path, line):
  (tmp_path / "deep.jsonl").write_bytes(b'{"text": "one"}\n' + line + b"\n")
  with pytest.raises(ValueError, match=r"deep.jsonl:2: no"):
    list(corpus.read(source("jsonl", tmp_path)))


def test_half_a_surrogate_pair_becomes_its_bytes(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "x\\ud800y \\ud83d\\ude00"}\n')
  (document,) = corpus.read(source("jsonl", path))
  assert document.text.encode("utf-8", "surrogateescape") == b"x\xed\xa0\x80y \xf0\x9f\x98\x80"


def test_a_larger_validation_share_only_adds():
  names = [f"d{i}" for i in range(4000)]
  small, large = ({n for n in names if corpus.split_of(n, f) == "validation"} for f in (0.05, 0.2))
  assert small < large
  assert 0.04 < len(small) / 4000 < 0.06 and 0.18 < len(large) / 4000 < 0.22
  assert all(corpus.split_of(n, 0.0) == "train" for n in names)


def test_bad_input_is_named(tmp_path):
  def fails(match, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
      list(corpus.read(source(*args, **kwargs)))

  fails("unknown kind 'web'; set it to one of embedded, text, jsonl", "web")
  fails("unknown domain librarie; it has library, reference, tests", "embedded", domains="librarie")
  fails("does not exist; give a file or a folder", "text", tmp_path / "none")
  fails("has no documents; correct its path", "text", tmp_path)
  (tmp_path / "empty.txt").write_text(" \n")
  fails("has no documents", "text", tmp_path)
  good = jsonl(tmp_path / "good.jsonl", dict(text="a"), dict(body="b", id=1))
  fails(r"good.jsonl:2: no text in field 'text'; .* one of: body, id", "jsonl", good)
  fails("unknown domain web; it has good", "jsonl", tmp_path, domains="web")
  (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n\n{"text"\n')
  fails("bad.jsonl:3: not JSON", "jsonl", tmp_path / "bad.jsonl")
  cut = jsonl(tmp_path / "cut.jsonl.gz", dict(text="abc" * 100))
  cut.write_bytes(cut.read_bytes()[:-12])
  fails("cut.jsonl.gz is not a whole .gz file", "jsonl", cut)
  with pytest.raises(ValueError, match=r"val_fraction 1.0 is not in \[0, 1\)"):
    corpus.split_of("a", 1.0)
