"""A folder of Hugging Face: config.json, one or many safetensors files, tokenizer.json.

Or the name of such a model on the hub, where huggingface_hub is installed.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import re

import numpy as np

from hope_jax.checkpoints import sidecar
from hope_jax.foreign import vocabulary
from hope_jax.foreign.source import Source

INDEX, ONE = "model.safetensors.index.json", "model.safetensors"
PATTERNS = ["*.json", "*.safetensors", "README.md", "LICENSE*"]


def read(path: Path) -> Source:
  """What the folder holds. Raises ValueError for a file that is missing or damaged."""
  config, library, shapes = _json(path / "config.json"), _safetensors(), {}
  parts = _parts(path)
  for part in parts:
    with _open(library, part) as file:
      for name in file.keys():
        if name in shapes:
          raise ValueError(f"{part}: {name} is in another file, too: fetch the model again")
        shapes[name] = tuple(file.get_slice(name).get_shape())

  def tensors() -> Iterator[tuple[str, np.ndarray]]:
    for part in parts:
      with _open(library, part) as file:
        for name in file.keys():
          yield name, file.get_tensor(name)

  card = (path / "README.md").read_text(errors="replace") if (path / "README.md").exists() else ""
  licence = re.search(r"^license: *(\S+)", card, re.MULTILINE)
  about = {"name": config.get("_name_or_path") or path.absolute().name,
           "licence": licence[1] if licence else "unknown", "source": str(path.absolute()),
           "files": {part.name: sidecar.sha256(part) for part in parts}}
  return Source(config, shapes, tensors, vocabulary.of_folder(path), about)


def fetch(name: str) -> Path:
  """The folder of a model on the hub. Raises ValueError when there is none, or no hub."""
  try:
    import huggingface_hub
  except ImportError:
    raise ValueError(f"there is no file or folder {name}; for a name on the hub, pip install "
                     "'hope_jax[pretrained]'") from None
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS))
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ValueError(f"{name} is no file or folder here, and cannot be fetched from the hub "
                     f"({reason}): correct the name, or give the folder of a copy") from None


def _parts(path: Path) -> list[Path]:
  """The safetensors files. ValueError for one that is missing."""
  if (path / INDEX).exists():
    names = sorted(set(_json(path / INDEX)["weight_map"].values()))
  elif (path / ONE).exists():
    names = [ONE]
  else:
    raise ValueError(f"{path} has no {ONE} and no {INDEX}: give a folder with safetensors weights")
  if missing := [name for name in names if not (path / name).is_file()]:
    raise ValueError(f"{path} has no {missing[0]}, which {INDEX} names ({len(missing)} of "
                     f"{len(names)} files are missing): fetch them")
  return [path / name for name in names]


def _open(library, part: Path):
  try:
    return library.safe_open(part, framework="numpy")
  except (library.SafetensorError, OSError) as error:
    raise ValueError(f"{part} is no safetensors file, or a part of one ({error}): fetch it again"
                     ) from None


def _json(path: Path) -> dict:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise ValueError(f"{path.parent} has no {path.name}: give a model's folder with config.json, "
                     "safetensors weights and tokenizer.json") from None
  except ValueError as error:
    raise ValueError(f"{path} is no whole JSON file ({error}): fetch it again") from None


def _safetensors():
  try:
    import safetensors
  except ImportError:
    raise ValueError("safetensors weights need the library: pip install 'hope_jax[pretrained]'"
                     ) from None
  return safetensors
