"""Tokenizers of the `tokenizers` library (pip install 'hope_jax[pretrained]'): byte pairs.

The file is that library's tokenizer.json with one more entry, "hope_jax": {"bos", "eos", "stops",
"chat"} (pretrained.py writes it). Two kinds are known: byte-level, whose pieces are bytes in a
disguise of printable characters, and those that fall back to byte tokens <0x00> ... <0xFF>, whose
sign for a space is U+2581. What would change text is left out of the file: normalisation, a space
put in front. So every id stands for fixed bytes, as with SentencePiece. Some vocabularies have no
token for some bytes (never those of common text); they are read as U+FFFD, which is said.

Text that looks like a control token is text: no id of one comes out of it.
"""

from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import re

from hope_jax.data import files
from hope_jax.data.pieces import Pieces

FILE, OURS = "tokenizer.json", "hope_jax"
SPACE, UNKNOWN = "\u2581", "\ufffd"
PROBE = " a  b\r\n\t\u2581é\n\n12 345 <0x41>"
HARMLESS = {"NFC", "Prepend", "Replace"}  # normalisers that may be left out


def disguise() -> dict[int, str]:
  """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
  shown = [*range(ord("!"), ord("~") + 1), *range(0xa1, 0xad), *range(0xae, 0x100)]
  hidden = [b for b in range(256) if b not in shown]
  return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


class BytePairs(Pieces):
  """A tokenizer.json."""

  def __init__(self, path: str | Path):
    """ValueError if the file is missing, damaged, of another kind, or one that loses text."""
    try:
      data = Path(path).read_bytes()
      stored = json.loads(data)
    except OSError as error:
      raise ValueError(f"no tokenizer at {path} ({error.strerror}); import the model again") \
          from None
    except ValueError:
      raise ValueError(f"{path} is no whole tokenizer.json: fetch it again") from None
    if not isinstance(stored, dict) or OURS not in stored:
      raise ValueError(f"{path} does not say which tokens begin and end a document: import it with "
                       "its model, python -m hope_jax.pretrained")
    own = stored.pop(OURS)
    self.chat, self._by_level = own["chat"], prepare(stored, path)
    self._model = _library().from_str(json.dumps(stored))
    self._model.encode_special_tokens = True  # as text
    super().__init__(self._all_bytes(stored), own["bos"], own["eos"],
                     hashlib.sha256(data).hexdigest(), own["stops"])
    self.byte_ids = {b: i for i, piece in self._single() for b in piece}
    self._missing = bytes(set(range(256)) - self.byte_ids.keys())
    self._control = frozenset(i for i, piece in enumerate(self._bytes) if not piece)
    # those that begin with another's come first
    self.control_names = sorted(filter(None, map(self._model.id_to_token, self._control)),
                                key=len, reverse=True)
    self.around = re.compile(f"[{'' if self._by_level else SPACE}\udc80-\udcff]+")
    if self.decode(self.encode(PROBE)) != self.readable(PROBE):
      raise ValueError(f"{path} does not keep text as it is, and cannot be used here")

  def _all_bytes(self, stored: dict) -> list[bytes]:
    vocabulary = self._model.get_vocab(with_added_tokens=True)
    added, bytes_of = ({entry["id"]: entry for entry in stored.get("added_tokens", ())},
                       {char: b for b, char in disguise().items()})
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for text, i in vocabulary.items():
      if i in added:
        pieces[i] = b"" if added[i]["special"] else text.encode()
      elif self._by_level:
        pieces[i] = bytes(bytes_of[c] for c in text) if bytes_of.keys() >= set(text) else b""
      elif re.fullmatch("<0x[0-9A-F]{2}>", text):
        pieces[i] = bytes([int(text[3:5], 16)])
      else:
        pieces[i] = b"" if text == stored["model"].get("unk_token") else text.replace(
            SPACE, " ").encode()
    return pieces

  def _single(self):
    """(id, byte) of the tokens that bytes are read as where the library may not see them."""
    for i, piece in enumerate(self._bytes):
      if len(piece) == 1 and (self._by_level or self._model.id_to_token(i).startswith("<0x")):
        yield i, piece

  def readable(self, text: str) -> str:
    """The text with U+FFFD for what the vocabulary has no bytes for."""
    if not self._missing:
      return text
    data = text.encode("utf-8", "surrogateescape")
    if len(data.translate(None, self._missing)) == len(data):
      return text
    lost = sorted({c for c in text if set(c.encode("utf-8", "surrogateescape"))
                   & set(self._missing)})
    files.tell(f"the tokenizer has no token for {', '.join(map(ascii, lost[:3]))}"
               f"{' ...' if len(lost) > 3 else ''}: read as U+FFFD")
    return re.sub(f"[{re.escape(''.join(lost))}]", UNKNOWN, text)

  def encode_plain(self, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing matches `around`."""
    return [self._text_alone(each.ids)
            for each in self._model.encode_batch_fast(texts, add_special_tokens=False)]

  def _text_alone(self, ids: list[int]) -> list[int]:
    """A control token whose name stood in the text as a word of its own, as the name's bytes."""
    if self._control.isdisjoint(ids):
      return ids
    return [own for i in ids for own in ([i] if i not in self._control else [
        self.byte_ids[b] for b in self._model.id_to_token(i).encode()])]

  def name(self, token: int | None) -> str:
    """Of a control token; of None, nothing."""
    return "" if token is None else self._model.id_to_token(token)

  def encode_chat(self, text: str, shown: Callable[[str], str] = str) -> list[int]:
    """Ids of what a chat template has made, in which names of control tokens stand for them.

    Args:
      shown: the text that stands for a part between two such names.
    """
    split = re.split("(" + "|".join(map(re.escape, self.control_names)) + ")", text)
    parts = self.encode_batch(list(map(shown, split[::2])))
    return [*parts[0], *(i for name, part in zip(split[1::2], parts[1:])
                         for i in (self._model.token_to_id(name), *part))]


def prepare(stored: dict, path) -> bool:
  """Takes from a tokenizer.json what changes text; whether it is byte-level. ValueError: no kind of
  ours.
  """
  model = stored.get("model") or {}
  before = _list(stored.get("pre_tokenizer"), "pretokenizers")
  after = _list(stored.get("decoder"), "decoders")
  levels = any(part["type"] == "ByteLevel" for part in [*before, *after])
  if model.get("type", "BPE") != "BPE" or not (levels or model.get("byte_fallback")):
    raise ValueError(f"{path} is a tokenizer of kind {model.get('type')}: known are byte-level "
                     "pairs, pairs that fall back to bytes, and SentencePiece")
  normalisers = {part["type"] for part in _list(stored.get("normalizer"), "normalizers")}
  if normalisers - HARMLESS:
    raise ValueError(f"{path} changes text ({', '.join(sorted(normalisers - HARMLESS))}) and "
                     "cannot be used here")
  stored["normalizer"] = None if levels else {
      "type": "Replace", "pattern": {"String": " "}, "content": SPACE}
  stored["truncation"] = stored["padding"] = stored["post_processor"] = None
  for part in before:
    part |= {"add_prefix_space": False} if part["type"] == "ByteLevel" else {}
    part |= {"prepend_scheme": "never"} if part["type"] == "Metaspace" else {}
  for entry in stored.get("added_tokens", ()):
    entry |= {"lstrip": False, "rstrip": False, "normalized": False}
  return levels


def _list(part: dict | None, name: str) -> list[dict]:
  return [] if part is None else part.get(name, [part])


def _library():
  try:
    from tokenizers import Tokenizer
  except ImportError:
    raise ValueError("a tokenizer.json needs the library tokenizers: pip install "
                     "'hope_jax[pretrained]'") from None
  return Tokenizer
