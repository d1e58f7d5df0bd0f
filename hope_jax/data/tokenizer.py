"""A lossless SentencePiece unigram tokenizer: `decode_bytes(encode(x)) == x` for every byte string.

SentencePiece alone is not lossless: it writes a space as U+2581, so it reads U+2581 as a space, and
it replaces bytes that are not UTF-8. Those few go around it, straight to the byte tokens
<0x00> ... <0xFF>, and decoding is our own: every id stands for a fixed byte string, so the bytes of
a sequence are the sum of `token_bytes`, exactly.
"""

import codecs
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece as spm

_SPACE = "\u2581"  # SentencePiece's own sign for a space
_AROUND = re.compile(f"[{_SPACE}\udc80-\udcff]+")
_PROBE = " a  b\r\n\t\u2581é\0\n\n"
_LONGEST_LINE = 4096  # characters the trainer sees in one piece
_TRAINER = dict(
    model_type="unigram", normalization_rule_name="identity", add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    byte_fallback=True, allow_whitespace_only_pieces=True, split_digits=True,
    character_coverage=0.9995,
    user_defined_symbols=["\n", "\n\n", "\t", "\r"], unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    max_sentence_length=4 * _LONGEST_LINE,
    num_threads=4,  # not the machine's: the order of the sums decides the last digits of the scores
    minloglevel=2)


def train(texts: Iterable[str], path: str | Path, vocab_size: int) -> None:
  """Writes a model of exactly `vocab_size` tokens to `path`; the same texts give the same file.

  Raises ValueError when the texts support fewer tokens, or need more.
  """
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
        sentence_iterator=_lines(texts), model_writer=model, vocab_size=vocab_size,
        # half the time of the default, a million, and 1% more bytes per token
        seed_sentencepiece_size=4 * vocab_size,
        **_TRAINER)
  except RuntimeError as error:
    raise ValueError(_advice(str(error), vocab_size)) from error
  Path(path).write_bytes(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    for line in _AROUND.sub("\n", text).split("\n"):
      for start in range(0, len(line), _LONGEST_LINE):
        yield line[start:start + _LONGEST_LINE]


def _advice(message: str, vocab_size: int) -> str:
  if most := re.search(r"value <= (\d+)", message):
    return (f"model.vocab {vocab_size} is more than the text supports; set it to at most "
            f"{most[1]}, or give more text (data.sources, data.tokenizer_chars)")
  if least := re.search(r"\d+ vs (\d+)", message):
    return (f"model.vocab {vocab_size} is too small for the 256 bytes and the text's characters; "
            f"set it to {least[1]} or more")
  if "sentences_.empty()" in message:
    return ("no text to train the tokenizer on; give documents (data.sources) or raise "
            "data.tokenizer_chars")
  return f"SentencePiece could not train: {message}"


class Tokenizer:
  """A trained model. Text is str (bytes that are not UTF-8 as surrogate escapes) or bytes.

  size: number of ids; bos, eos: ids of the two control tokens; digest: sha256 of the model file;
  token_bytes: int32 [size], bytes of text each id stands for, 0 for control tokens.
  """

  def __init__(self, path: str | Path):
    """ValueError if the file is missing, no SentencePiece model, or one that loses text."""
    try:
      proto = Path(path).read_bytes()
    except OSError as error:
      raise ValueError(f"no tokenizer at {path} ({error.strerror}); build one with python -m "
                       "hope_jax.data") from None
    try:
      self._model = spm.SentencePieceProcessor(model_proto=proto) if proto else None
    except RuntimeError:
      self._model = None
    if self._model is None:
      raise ValueError(f"{path} is not a SentencePiece model, or is damaged; delete its folder and "
                       "rebuild it")
    self.size = self._model.get_piece_size()
    self.bos, self.eos = self._model.bos_id(), self._model.eos_id()
    self.digest = hashlib.sha256(proto).hexdigest()
    self._bytes = [self._bytes_of(i) for i in range(self.size)]
    self.token_bytes = np.array([len(b) for b in self._bytes], np.int32)
    self._byte_ids = [self._model.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
    if min(self.bos, self.eos) < 0 or self.decode(self.encode(_PROBE)) != _PROBE:
      raise ValueError(f"{path} does not keep text as it is; train it with "
                       "hope_jax.tokenizer.train")

  def _bytes_of(self, token: int) -> bytes:
    if self._model.is_control(token) or self._model.is_unknown(token):
      return b""
    piece = self._model.id_to_piece(token)
    return (bytes([int(piece[1:-1], 16)]) if self._model.is_byte(token)
            else piece.replace(_SPACE, " ").encode())

  def encode(self, text: str | bytes) -> list[int]:
    """Ids of the text, without bos and eos. ValueError on a surrogate that escapes no byte."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[list[int]]:
    """As `encode` for each text, on all cores."""
    # plain: the parts SentencePiece may see; around: per text, the bytes between them
    plain, around = [], []
    for text in texts:
      if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
      try:
        around.append([part.encode("utf-8", "surrogateescape") for part in _AROUND.findall(text)])
        plain.extend(part.encode() for part in _AROUND.split(text))
      except UnicodeEncodeError as error:
        raise ValueError(f"text is not Unicode: lone surrogate at character {error.start}; "
                         "decode bytes with errors='surrogateescape'") from None
    encoded = iter(self._model.encode(plain, num_threads=os.cpu_count()))
    batch = []
    for gaps in around:
      ids = next(encoded)
      for gap in gaps:
        ids.extend(self._byte_ids[b] for b in gap)
        ids.extend(next(encoded))
      batch.append(ids)
    return batch

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """The bytes the ids stand for. Raises ValueError on an id outside the vocabulary."""
    return b"".join(map(self._piece, ids))

  def decode(self, ids: Iterable[int], errors: str = "surrogateescape") -> str:
    """The text; bytes not UTF-8 become surrogate escapes, or U+FFFD with errors="replace"."""
    return self.decode_bytes(ids).decode("utf-8", errors)

  def _piece(self, token: int) -> bytes:
    if not 0 <= token < self.size:
      raise ValueError(f"token {token} is not in the vocabulary of {self.size}; is this the data's "
                       "tokenizer?")
    return self._bytes[token]


class StreamDecoder:
  """Text while it is generated: a character whose bytes are not all there yet is held back.

  The strings `push` and `flush` return add up to `tokenizer.decode(ids, errors)`.
  """

  def __init__(self, tokenizer: Tokenizer, errors: str = "replace"):
    self._tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

  def push(self, token: int) -> str:
    """The text that one more id completes, often none."""
    return self._decoder.decode(self._tokenizer.decode_bytes([token]))

  def flush(self) -> str:
    """What was held back; the next push starts a new text."""
    return self._decoder.decode(b"", final=True)
