"""Lossless on any byte string, bytes counted exactly, streaming == whole, one file per text."""

import random
import string

import pytest

from hope_jax.data import tokenizer
from hope_jax.data.tokenizer import StreamDecoder, Tokenizer

CODE = "def f(x):\n    if x:\r\n\t\treturn 'naïve ▁ 日本'  # 12345\n\n\n        pass\n" * 5
AWKWARD = ["", " ", "   \n \t\r\n\r\r  ", "\0", "a\0b", "\u2581", " \u2581 \u2581\u2581",
           "<s></s><unk><0x41>", "\ufeff\ufffd\u2585", "e\u0301 é ﬁ Ⅷ",
           "𝔘👩‍👩‍👧 \u202e", "x" * 10_000,
           " " * 5000 + "\n" * 5000, "\udcff\udc80a\udce2", CODE]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  tokenizer.train(texts(), path, 512)
  return path


@pytest.fixture(scope="module")
def tok(model):
  return Tokenizer(model)


def texts():
  rng = random.Random(0)
  words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(500)]
  return [CODE, *(" ".join(rng.choices(words, k=200)) for _ in range(20)), "\udcff\u2581\n" * 3]


def random_inputs(rng):
  for _ in range(150):
    yield rng.randbytes(rng.randint(1, 60))
    planes = range(0x250), range(0xD800), range(0xE000, 0x110000), (0x20, 0x2581, 0x0A, 0)
    points = rng.choices(planes, k=rng.randint(1, 60))
    yield "".join(chr(rng.choice(p)) for p in points).encode()
  # UTF-8 cut anywhere, and bytes knocked out of it
  for _ in range(150):
    data = bytearray(CODE.encode()[rng.randint(0, 99):rng.randint(100, 200)])
    data[rng.randrange(len(data))] = rng.randrange(256)
    yield bytes(data)


def test_every_byte_string_comes_back_and_is_counted(tok):
  inputs = ([t.encode("utf-8", "surrogateescape") for t in AWKWARD]
            + list(random_inputs(random.Random(1))))
  for data, ids in zip(inputs, tok.encode_batch(inputs), strict=True):
    assert tok.decode_bytes(ids) == data
    assert tok.token_bytes[ids].sum() == len(data)
    assert tok.bos not in ids and tok.eos not in ids and 0 not in ids


def test_text_comes_back_and_str_is_its_bytes(tok):
  for text in AWKWARD:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert ids == tok.encode(text.encode("utf-8", "surrogateescape"))
  assert tok.encode_batch(AWKWARD) == [tok.encode(t) for t in AWKWARD]


def test_words_are_cheaper_than_bytes(tok):
  text = texts()[1]
  assert len(tok.encode(text)) < 0.75 * len(text)


def test_indentation_is_one_token(tmp_path):
  tokenizer.train([CODE, "if a:\n    b = c\n    if d:\n        e()\n" * 50], tmp_path / "m", 296)
  tok = Tokenizer(tmp_path / "m")
  for indent in ("    ", "        "):
    assert len(tok.encode(indent)) == 1


def test_control_tokens_are_no_text(tok):
  ids = [tok.bos, *tok.encode("a b"), tok.eos]
  assert tok.decode(ids) == "a b"
  assert tok.token_bytes[[0, tok.bos, tok.eos]].tolist() == [0, 0, 0]
  assert tok.token_bytes.shape == (tok.size,) == (512,)


def test_streaming_is_whole(tok):
  rng = random.Random(2)
  sequences = [tok.encode(t) for t in AWKWARD] + [[rng.randrange(tok.size) for _ in range(100)]
                                                  for _ in range(50)]
  for errors in ("replace", "surrogateescape"):
    stream = StreamDecoder(tok, errors)
    for ids in sequences:
      assert "".join(map(stream.push, ids)) + stream.flush() == tok.decode(ids, errors)


def test_stream_holds_back_half_a_character(tok):
  stream = StreamDecoder(tok)
  pushed = [stream.push(i) for i in tok.encode("\u2581")]
  assert pushed == ["", "", "\u2581"]
  stream.push(tok.encode("\u2581")[0])
  assert stream.flush() == "\ufffd"


def test_same_texts_same_file(tmp_path, model):
  tokenizer.train(iter(texts()), tmp_path / "again.model", 512)
  assert (tmp_path / "again.model").read_bytes() == model.read_bytes()
  tokenizer.train(texts()[1:], tmp_path / "other.model", 512)
  assert Tokenizer(tmp_path / "other.model").digest != Tokenizer(model).digest


def test_errors_name_the_fix(tmp_path, tok, model):
  for bad in (-1, 512):
    with pytest.raises(ValueError, match=f"token {bad} is not in the vocabulary of 512"):
      tok.decode([bad])
  with pytest.raises(ValueError, match="lone surrogate at character 1"):
    tok.encode("a\ud800")
  with pytest.raises(ValueError,
                     match="model.vocab 100000 is more than the text supports; set it to at most "
                           "[0-9]+"):
    tokenizer.train(texts(), tmp_path / "m", 100_000)
  with pytest.raises(ValueError, match="model.vocab 260 is too small .* set it to [0-9]+ or more"):
    tokenizer.train(texts(), tmp_path / "m", 260)
  with pytest.raises(ValueError, match="no text to train the tokenizer on"):
    tokenizer.train([], tmp_path / "m", 512)
  with pytest.raises(ValueError, match="no tokenizer at .*m .*python -m hope_jax.data"):
    Tokenizer(tmp_path / "m")
  for damaged in (b"", model.read_bytes()[:-100], b"not a model"):
    (tmp_path / "m").write_bytes(damaged)
    with pytest.raises(ValueError, match="not a SentencePiece model, or is damaged"):
      Tokenizer(tmp_path / "m")


def test_a_model_that_loses_text_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(tokenizer._TRAINER, "remove_extra_whitespaces", True)
  tokenizer.train(texts(), tmp_path / "m", 512)
  with pytest.raises(ValueError, match="does not keep text as it is"):
    Tokenizer(tmp_path / "m")
