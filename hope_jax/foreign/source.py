"""What a reader of a format gives, by Hugging Face's names whatever the format."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
  """A model to import."""
  config: dict  # as in config.json
  shapes: dict[str, tuple[int, ...]]  # of all its tensors
  tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]  # one after the other, file by file
  tokenizer: dict | None  # tokenizer.json with our entry (data/byte_pairs.py)
  about: dict  # JSON: name, licence, source, files {name: sha256}
