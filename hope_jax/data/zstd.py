"""Files of the format Zstandard (.zst), of any number of frames, read like open(path, "rb").

The library zstandard (pip install 'hope_jax[data]') does the work; that a file is cut off is found
here.
"""

import io
from pathlib import Path
from typing import BinaryIO

_AT_ONCE = 1 << 17  # packed bytes


def open_zstd(path: str | Path | BinaryIO, mode: str = "rb") -> BinaryIO:
  """The file, to read from. EOFError, while reading, where it ends inside a frame."""
  assert mode == "rb"
  file = path if hasattr(path, "read") else open(path, "rb")
  return io.BufferedReader(_Frames(file), _AT_ONCE)


def library():
  """The library; ValueError, naming the extra, where there is none."""
  try:
    import zstandard
  except ImportError:
    raise ValueError("a .zst file needs the library zstandard: pip install 'hope_jax[data]'"
                     ) from None
  return zstandard


class _Frames(io.RawIOBase):

  def __init__(self, file: BinaryIO):
    self._library, self._file = library(), file
    self._frame, self._packed, self._text = None, b"", memoryview(b"")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._text:
      self._packed = self._packed or self._file.read(_AT_ONCE)
      if not self._packed and self._frame is not None:
        raise EOFError("it ends inside a frame")
      if not self._packed:
        return 0
      self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
      try:
        self._text = memoryview(self._frame.decompress(self._packed))
      except self._library.ZstdError as error:
        raise EOFError(str(error)) from None
      self._packed = self._frame.unused_data if self._frame.eof else b""
      self._frame = None if self._frame.eof else self._frame
    count = min(len(buffer), len(self._text))
    buffer[:count] = self._text[:count]
    self._text = self._text[count:]
    return count

  def close(self) -> None:
    self._file.close()
    super().close()
