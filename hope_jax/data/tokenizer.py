"""Tokenizers by their files; SentencePiece: `decode_bytes(encode(x)) == x` for all byte strings.

SentencePiece alone is not lossless: it writes a space as U+2581, so it reads U+2581 as a space, and
it replaces bytes that are not UTF-8. Those few go around it, straight to the byte tokens
<0x00> ... <0xFF>, and decoding is our own: every id stands for a fixed byte string, so the bytes of
a sequence are the sum of `token_bytes`, exactly.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece as spm

from hope_jax.data.byte_pairs import FILE as BYTE_PAIRS, BytePairs
from hope_jax.data.pieces import Pieces, StreamDecoder  # noqa: F401

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


class Tokenizer(Pieces):
  """A trained model."""
  around = _AROUND

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
    super().__init__([self._bytes_of(i) for i in range(self._model.get_piece_size())],
                     self._model.bos_id(), self._model.eos_id(), hashlib.sha256(proto).hexdigest())
    self.byte_ids = [self._model.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
    if min(self.bos, self.eos) < 0 or self.decode(self.encode(_PROBE)) != _PROBE:
      raise ValueError(f"{path} does not keep text as it is; train it with "
                       "hope_jax.tokenizer.train")

  def _bytes_of(self, token: int) -> bytes:
    if self._model.is_control(token) or self._model.is_unknown(token):
      return b""
    piece = self._model.id_to_piece(token)
    return (bytes([int(piece[1:-1], 16)]) if self._model.is_byte(token)
            else piece.replace(_SPACE, " ").encode())

  def encode_plain(self, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing matches `around`."""
    return self._model.encode([text.encode() for text in texts], num_threads=os.cpu_count())


FILES = {"tokenizer.model": Tokenizer, BYTE_PAIRS: BytePairs}  # by their names in a run's folder


def find(folder: str | Path) -> Path:
  """The tokenizer's file in a run's or data folder; of SentencePiece's name if there is none."""
  found = [path for name in FILES if (path := Path(folder) / name).is_file()]
  return found[0] if found else Path(folder) / "tokenizer.model"


def load(folder: str | Path) -> Pieces:
  """The tokenizer in a folder. ValueError where there is none, or none that keeps text as it is."""
  path = find(folder)
  return FILES[path.name](path)
