"""Lossless on any byte string, bytes counted exactly, streaming == whole, one file per text."""

import functools
import io
import json
import random
import string

import pytest
import sentencepiece as spm

from hope_jax.data import tokenizer
from hope_jax.foreign import vocabulary
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


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level", "byte_fallback"])
def tok(model, request, tmp_path_factory):
  """Of 512 tokens, but pairs that fall back to bytes, of as many as they come with."""
  if request.param == "sentencepiece":
    return Tokenizer(model)
  folder = tmp_path_factory.mktemp(request.param)
  stored = byte_level() if request.param == "byte_level" else fallback()[0]
  (folder / "tokenizer.json").write_text(json.dumps(stored))
  return tokenizer.load(folder)


@functools.cache
def byte_level():
  """Trained by the tokenizers library, as Qwen's: spaces before words, text normalised."""
  library = pytest.importorskip("tokenizers")
  made = library.Tokenizer(library.models.BPE())
  made.normalizer = library.normalizers.NFC()
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
  made.decoder = library.decoders.ByteLevel()
  made.train_from_iterator([t.encode("utf-8", "replace").decode() for t in texts()],
                           library.trainers.BpeTrainer(
      vocab_size=512, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False,
      initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
  return json.loads(made.to_str()) | {"hope_jax": {"bos": 0, "eos": 1, "stops": [1],
                                                   "chat": None}}


@functools.cache
def fallback():
  """(as a GGUF of Llama 2 has it: the pieces and scores of pairs that SentencePiece found, that
  model).
  """
  model = io.BytesIO()
  spm.SentencePieceTrainer.train(
      sentence_iterator=iter([line for text in texts() for line in
                              text.encode("utf-8", "replace").decode().split("\n")]),
      model_writer=model, vocab_size=512, **tokenizer._TRAINER | {
          "model_type": "bpe", "user_defined_symbols": [], "add_dummy_prefix": True})
  found = spm.SentencePieceProcessor(model_proto=model.getvalue())
  numbers = range(found.get_piece_size())
  types = [2 if found.is_unknown(i) else 3 if found.is_control(i) else 6 if found.is_byte(i) else 1
           for i in numbers]
  return vocabulary.of_gguf({
      "tokenizer.ggml.model": "llama", "tokenizer.ggml.token_type": types,
      "tokenizer.ggml.tokens": [found.id_to_piece(i) for i in numbers],
      "tokenizer.ggml.scores": [found.get_score(i) for i in numbers],
      "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}), found


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
    assert (tok.token_bytes[ids] > 0).all()  # no control token


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
  assert tok.token_bytes[[tok.bos, tok.eos]].tolist() == [0, 0]
  assert tok.begin == [tok.bos] and tok.stops == {tok.eos}
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
  pushed = [stream.push(i) for i in tok.encode("𝔘")]
  assert pushed == ["", "", "", "𝔘"]
  stream.push(tok.encode("𝔘")[0])
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


def write(folder, change):
  stored = json.loads(json.dumps(byte_level()))
  change(stored)
  (folder / "tokenizer.json").write_text(json.dumps(stored))
  return folder


def test_pairs_are_those_of_sentencepiece():
  """Which puts a space before a text, as we do not."""
  stored, wanted = fallback()
  for text in (*texts()[1:8], "naïve 日本 12345"):
    assert encoded(stored, text) == wanted.encode(text)


def encoded(stored, text):
  import tokenizers
  made = tokenizers.Tokenizer.from_str(json.dumps({k: v for k, v in stored.items()
                                                   if k != "hope_jax"}))
  made.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")])
  return made.encode(text).ids


def test_a_word_that_is_a_control_tokens_name_is_text(tmp_path):
  """Even where the library takes a whole word for a token, as Llama 3's does."""
  def change(stored):
    stored["model"]["ignore_merges"] = True
    stored["model"]["vocab"]["control"] = 512
    stored["added_tokens"].append(dict(id=512, content="control", single_word=False, lstrip=True,
                                       rstrip=True, normalized=True, special=True))
  tok = tokenizer.load(write(tmp_path, change))
  text = "control  control <s>control</s>\n"
  ids = tok.encode(text)
  assert tok.decode(ids) == text and (tok.token_bytes[ids] > 0).all()
  chat = tok.encode_chat("<s> a control</s>")
  assert [chat[0], *chat[-2:]] == [0, 512, 1] and tok.decode(chat) == " a "


def test_bytes_without_a_token_are_said(tmp_path, capsys):
  """As in SmolLM's vocabulary, which has no token for some control characters."""
  def change(stored):
    vocab = stored["model"]["vocab"]
    del vocab[chr(256 + 4)], vocab["\u00f1"]  # of the bytes 0x04 and 0xf1
  tok = tokenizer.load(write(tmp_path, change))
  assert tok.decode(tok.encode("a\x04b\udcf1 \U00040000")) == "a\ufffdb\ufffd \ufffd"
  assert "no token for '\\x04', '\\udcf1', '\\U00040000': read as" in capsys.readouterr().err


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("hope_jax"), "does not say which tokens begin and end a document"),
    (lambda s: s["model"].update(type="WordPiece"), "is a tokenizer of kind WordPiece: known are"),
    (lambda s: s.update(normalizer={"type": "Lowercase"}), r"changes text \(Lowercase\)"),
])
def test_tokenizers_of_other_kinds_are_refused(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    tokenizer.load(write(tmp_path, change))
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="is no whole tokenizer.json"):
    tokenizer.load(tmp_path)
