"""Files of text: which there are below a folder, and their bytes as text, the same in every
program.

Text is UTF-8, or says by its first bytes that it is UTF-16; bytes that are neither survive as
surrogate escapes. A byte-order mark is no text. .gz, .bz2, .xz and .zst are unpacked.
"""

import bz2
import codecs
from collections.abc import Iterator
import contextlib
import functools
import gzip
import lzma
import os
from pathlib import Path
import sys
from typing import BinaryIO
import zlib

from tqdm import tqdm

from hope_jax.data import zstd

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd.open_zstd}


class Damaged(ValueError):
  """A file that is not what its name says, or not all of it."""


def below(root: Path) -> list[Path]:
  """The file itself, or all that are not hidden below a folder, in order; behind links, too, each
  folder once.
  """
  if root.is_file():
    return [root]
  found, seen = [], set()
  for folder, names, files in os.walk(root, followlinks=True):
    if (real := os.path.realpath(folder)) in seen:
      names.clear()
      continue
    seen.add(real)
    names[:] = sorted(name for name in names if not name.startswith("."))
    found += [Path(folder) / name for name in files if not name.startswith(".")]
  return sorted(path for path in found if path.is_file())


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
  """A file of bytes to read from; `Damaged`, naming it, for a packed one that is."""
  try:
    with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
      yield file
  except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
    if getattr(error, "filename", None) is not None:  # the disk's own
      raise
    raise Damaged(f"{path} is not a whole {path.suffix} file ({error}); fetch it again") from None


def stem(path: Path) -> str:
  """A file's name in small letters, without the ending of a packed file."""
  return path.name.lower().removesuffix(path.suffix.lower() if path.suffix.lower() in PACKED
                                        else "")


def text(path: str | Path) -> str:
  """All of a file."""
  with unpacked(Path(path)) as file:
    return decode(file.read())


def decode(data: bytes) -> str:
  """Bytes as text."""
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return data.decode("utf-16", "replace")
  return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
  """The bytes that a text stands for, where it was UTF-8."""
  return text.encode("utf-8", "surrogateescape")


@functools.cache
def tell(what: str) -> None:
  """Says once what is left out, and why."""
  tqdm.write(what, file=sys.stderr)  # on a line of its own, beside a bar
