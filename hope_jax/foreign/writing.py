"""A folder that `transformers` loads, of a model that a family has (families.py)."""

import json
import os
from pathlib import Path
import shutil

from hope_jax.data import byte_pairs
from hope_jax.foreign import families, names


def write(output: Path, params, config, origin: dict, words: Path | None) -> None:
  """config.json, model.safetensors, the tokenizer and where the model comes from.

  Args:
    origin: what pretrained.py keeps of it, or {}.
    words: the tokenizer's file.

  Raises ValueError where no family has the model, FileExistsError for a folder with a config.json.
  """
  import safetensors.numpy
  if len(config.channel.levels) > 1 and config.channel.kind == "cms":
    raise ValueError(f"channel.levels: {len(config.channel.levels)} levels, and models of "
                     "transformers have one MLP: stack one level, configs/levels.py:<run>,<period>,"
                     " or export to one file of ours, --output=<name>.safetensors")
  about = families.theirs(config)
  about["max_position_embeddings"] = origin.get("positions", about["max_position_embeddings"])
  if (output / "config.json").exists():
    raise FileExistsError(f"{output} has a model already: choose another --output")
  output.mkdir(parents=True, exist_ok=True)
  if words is not None:
    about |= _write_tokenizer(output, words)
  partial = output / "model.safetensors.partial"
  safetensors.numpy.save_file(names.tensors(params, config), partial, metadata={"format": "pt"})
  partial.chmod(0o644)
  os.replace(partial, output / "model.safetensors")
  (output / "README.md").write_text(
      f"---\nlicense: {origin.get('licence', 'unknown')}\n---\n\nWritten by hope_jax from "
      f"{origin.get('name', 'a model of its own')}.\n")
  (output / "config.json").write_text(json.dumps(about, indent=1) + "\n")  # last: now it is whole


def _write_tokenizer(output: Path, words: Path) -> dict:
  """The ids that config.json names. A tokenizer.json goes without our entry."""
  if words.name != byte_pairs.FILE:
    shutil.copy(words, output)
    return {}
  stored = json.loads(words.read_text())
  own = stored.pop(byte_pairs.OURS)
  (output / words.name).write_text(json.dumps(stored, ensure_ascii=False))
  tokens = {entry["id"]: entry["content"] for entry in stored.get("added_tokens", ())}
  tokens |= {i: text for text, i in stored["model"]["vocab"].items() if i in (own["bos"],
                                                                             own["eos"])}
  facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[own["eos"]],
           "add_bos_token": own["bos"] is not None, "clean_up_tokenization_spaces": False}
  facts |= {} if own["bos"] is None else {"bos_token": tokens[own["bos"]]}
  facts |= {} if own["chat"] is None else {"chat_template": own["chat"]}
  (output / "tokenizer_config.json").write_text(json.dumps(facts, indent=1) + "\n")
  ends = {"eos_token_id": own["stops"], "bos_token_id": own["bos"]}
  (output / "generation_config.json").write_text(json.dumps(ends, indent=1) + "\n")
  return {"bos_token_id": own["bos"], "eos_token_id": own["eos"]}
