"""What all tokenizers have: every id stands for fixed bytes, a sequence's are their sum."""

import abc
import codecs
from collections.abc import Iterable, Mapping, Sequence
import re

import numpy as np


class Pieces(abc.ABC):
  """A vocabulary, read from one file. Text is str (bytes that are no UTF-8 as surrogates) or bytes.

  size: number of ids; bos: id that a document begins with, None where the model has none; eos: id
  that ends it; stops: ids that end what a model writes; digest: sha256 of the file; chat: template
  of conversations (jinja2), or None; token_bytes: int32 [size], bytes of text each id stands for, 0
  for control tokens, which no text is ever read as.
  """
  chat: str | None = None
  around: re.Pattern  # runs of text that the library would not read as they are
  byte_ids: Mapping[int, int] | Sequence[int]  # by byte: those runs are read as bytes

  def __init__(self, pieces: list[bytes], bos: int | None, eos: int, digest: str,
               stops: Iterable[int] = ()):
    self._bytes, self.size, self.bos, self.eos, self.digest = (pieces, len(pieces), bos, eos,
                                                               digest)
    self.stops = frozenset((eos, *stops))
    self.token_bytes = np.array([len(b) for b in pieces], np.int32)

  @property
  def begin(self) -> list[int]:
    """What stands before the text of a document: bos, or nothing."""
    return [] if self.bos is None else [self.bos]

  def encode(self, text: str | bytes) -> list[int]:
    """Ids of the text, without bos and eos. ValueError on a surrogate that escapes no byte."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[list[int]]:
    """As `encode` for each text, on all cores."""
    plain, around = [], []  # what the library sees; per text, the bytes between
    for text in map(self.readable, map(escaped, texts)):
      around.append([run.encode("utf-8", "surrogateescape") for run in self.around.findall(text)])
      plain += self.around.split(text)
    encoded, batch = iter(self.encode_plain(plain)), []
    for gaps in around:
      ids = list(next(encoded))
      for gap in gaps:
        ids += [self.byte_ids[b] for b in gap]
        ids += next(encoded)
      batch.append(ids)
    return batch

  def readable(self, text: str) -> str:
    """The text, without what the vocabulary has no bytes for."""
    return text

  @abc.abstractmethod
  def encode_plain(self, texts: list[str]) -> Iterable[list[int]]:
    """Ids of texts in which nothing matches `around`."""

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


def escaped(text: str | bytes) -> str:
  """Text as str. ValueError on a surrogate that escapes no byte."""
  if isinstance(text, bytes):
    return text.decode("utf-8", "surrogateescape")
  try:
    text.encode("utf-8", "surrogateescape")
  except UnicodeEncodeError as error:
    raise ValueError(f"text is not Unicode: lone surrogate at character {error.start}; "
                     "decode bytes with errors='surrogateescape'") from None
  return text


class StreamDecoder:
  """Text while it is generated: a character whose bytes are not all there yet is held back.

  The strings `push` and `flush` return add up to `tokenizer.decode(ids, errors)`.
  """

  def __init__(self, tokenizer: Pieces, errors: str = "replace"):
    self._tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

  def push(self, token: int) -> str:
    """The text that one more id completes, often none."""
    return self._decoder.decode(self._tokenizer.decode_bytes([token]))

  def flush(self) -> str:
    """What was held back; the next push starts a new text."""
    return self._decoder.decode(b"", final=True)
