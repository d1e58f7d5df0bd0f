"""Every kind of file is read as a person expects, or refused in one line; nothing in silence."""

import bz2
import gzip
import json
import lzma
import random

import pytest
from ml_collections import ConfigDict

from hope_jax.data import corpus, files, units

zstandard = pytest.importorskip("zstandard")
TEXTS = ["one\r\n two \u2028 é", "  \ttwo\n\n", "\u2581three \ufeff", "x\0y"]


def source(kind, path, field="text"):
  return ConfigDict(dict(name="s", kind=kind, path=str(path), field=field, domains="", weight=1.0))


def read(kind, path, field="text"):
  return list(corpus.read(source(kind, path, field)))


def lines(texts=TEXTS):
  return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(path, column=TEXTS, name="text"):
  pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  parquet.write_table(pa.table({name: column, "id": list(range(len(column)))}), path,
                      row_group_size=3)


@pytest.mark.parametrize("ending, pack", [
    ("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress),
    (".zst", zstandard.compress),
    (".zst", lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:]))])
def test_json_lines_are_the_same_text_however_packed(tmp_path, ending, pack):
  (tmp_path / f"a.jsonl{ending}").write_bytes(pack(lines()))
  assert [(d.name, d.text) for d in read("jsonl", tmp_path)] == [
      (f"a.jsonl{ending}:{i}", text) for i, text in enumerate(TEXTS, 1)]


@pytest.mark.parametrize("cut", [1, 5, 200, 40_000])
def test_a_zstd_file_that_is_cut_off_is_an_error(tmp_path, cut):
  data = random.Random(0).randbytes(300_000).hex().encode()
  packed = zstandard.compress(data) + zstandard.compress(data)
  path = tmp_path / "a.txt.zst"
  path.write_bytes(packed)
  assert files.text(path) == (data + data).decode()
  path.write_bytes(packed[:-cut])
  with pytest.raises(ValueError, match="a.txt.zst is not a whole .zst file .*inside a frame"):
    files.text(path)


def test_parquet_is_read_by_rows(tmp_path):
  texts = [f"row {i}" for i in range(700)]
  table(tmp_path / "a.parquet", [*texts, None, " "])
  assert [(d.name, d.text, d.domain) for d in read("parquet", tmp_path)] == [
      (f"a.parquet:{i}", text, "a") for i, text in enumerate(texts, 1)]
  with pytest.raises(ValueError, match="a.parquet: no column 'body'; set the source's field to "
                                       "one of: text, id"):
    read("parquet", tmp_path, "body")
  with pytest.raises(ValueError, match="column 'id' is int64, no text"):
    read("parquet", tmp_path, "id")
  (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
  with pytest.raises(ValueError, match="a.parquet is not a whole parquet file"):
    read("parquet", tmp_path / "a.parquet")


def test_a_folder_of_all_kinds(tmp_path, capsys):
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "a.txt").write_bytes(b"plain")
  (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16"))
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(["json"])))
  (tmp_path / "bad.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + random.Random(1).randbytes(2000))
  (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
  table(tmp_path / "c.parquet", ["row"])
  assert [(d.name, d.text, d.domain) for d in read("mixed", tmp_path)] == [
      ("b.jsonl.gz:1", "json", "b"), ("c.parquet:1", "row", "c"), ("notes/a.txt", "plain", "notes"),
      ("wide.txt", "wide", tmp_path.stem)]
  said = capsys.readouterr().err
  assert "1 left out, no text: image.png" in said
  assert "1 left out, not a whole .zst file" in said and "bad.jsonl.zst" in said


def test_an_address_is_read_as_a_folder_is(tmp_path):
  pytest.importorskip("fsspec")
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "a.txt").write_bytes(b"plain")
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines()))
  (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines()))
  (tmp_path / ".hidden").write_bytes(b"not seen")
  table(tmp_path / "d.parquet")
  assert read("mixed", tmp_path) == read("mixed", f"file://{tmp_path}")
  assert len(read("mixed", tmp_path)) == 3 * len(TEXTS) + 1
  one = tmp_path / "b.jsonl.gz"
  assert read("jsonl", one) == read("jsonl", f"file://{one}")
  with pytest.raises(ValueError, match="nothing://x cannot be listed .*see to the address"):
    read("jsonl", "nothing://x")


def test_what_is_left_out_is_named_with_its_reason(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(lines(["one", " ", "two"]) + b'\n{"text": null}\n')
  (tmp_path / "b.txt").write_bytes(b"text")
  s = source("jsonl", tmp_path)
  found = list(corpus.items(s, corpus.select(s)))
  assert [(i.name, getattr(i, "why", "")) for i in found] == [
      ("a.jsonl:1", ""), ("a.jsonl:2", "blank"), ("a.jsonl:3", ""),
      ("a.jsonl:5", "null in field 'text'"), ("b.txt", corpus._OTHER["jsonl"])]


def test_a_unit_alone_is_what_it_is_in_the_whole(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.jsonl").write_bytes(lines())
  s = source("jsonl", tmp_path)
  whole, some = read("jsonl", tmp_path), corpus.select(s)
  assert [d for unit in some for d in units.documents(unit, "text")] == whole
