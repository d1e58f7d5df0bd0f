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


def is_url(path: str | Path) -> bool:
  """Whether it names something that fsspec opens: hf://datasets/..., s3://..., https://..."""
  return "://" in str(path)


def open_url(url: str) -> BinaryIO:
  """A file that is read as it comes. ValueError, naming the fix, where it cannot be opened."""
  try:
    import fsspec
    return fsspec.open(url, "rb").open()
  except Exception as error:  # every file system has errors of its own
    raise ValueError(f"{url} cannot be read ({error}): pip install 'hope_jax[data]' reads hf://, "
                     "and see to the address and the connection") from None


def listed(url: str) -> tuple[str, list[tuple[str, int]]]:
  """(the root's name, [(file's address, bytes)]) below an address, in order; itself, if a file."""
  try:
    import fsspec
    system, root = fsspec.core.url_to_fs(url)
    found = system.find(root, detail=True)
  except Exception as error:  # every file system has errors of its own
    raise ValueError(f"{url} cannot be listed ({error}): pip install 'hope_jax[data]' reads hf://, "
                     "and see to the address and the connection") from None
  return root, [(name, info["size"] or 0) for name, info in sorted(found.items())
                if not any(part.startswith(".") for part in name[len(root):].split("/"))]


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
def unpacked(path: str | Path) -> Iterator[BinaryIO]:
  """A file of bytes to read from; `Damaged`, naming it, for a packed one that is."""
  url, path = (str(path) if is_url(path) else ""), Path(path)
  try:
    with contextlib.ExitStack() as stack:
      place = stack.enter_context(open_url(url)) if url else path
      pack = PACKED.get(path.suffix.lower())
      if pack or not url:
        yield stack.enter_context((pack or open)(place, "rb"))
      else:
        yield place
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
  with unpacked(path) as file:
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
