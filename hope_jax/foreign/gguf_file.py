"""A GGUF file, through the library gguf: quantised weights are multiplied out tensor by tensor.

Names, axes and the order of rows become Hugging Face's: files of architecture llama have the two
halves of a rotary pair side by side, (2i, 2i + 1), there they are (i, i + half).
"""

from collections.abc import Iterator
from pathlib import Path
import re

import numpy as np

from hope_jax.checkpoints import sidecar
from hope_jax.foreign import vocabulary
from hope_jax.foreign.source import Source

NAMES = {  # below blk.N., or of the whole model
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    "output": "lm_head"}
FIELDS = {  # of config.json: below the architecture's name
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length", "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window"}
FREQUENCIES = "rope_freqs.weight"  # what each rotary frequency is divided by


def read(path: Path) -> Source:
  """What the file holds. ValueError for one that is damaged, or quantised as cannot be read."""
  library = _library()
  try:
    reader = library.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    found = {tensor.name: tensor for tensor in reader.tensors}
  except Exception as error:  # the library's own checks are few: a cut file fails anywhere
    raise ValueError(f"{path} is no GGUF file, or a part of one ({type(error).__name__}: {error}): "
                     "fetch it again") from None
  config = _config(facts, found)
  permuted = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]} \
      if facts["general.architecture"] == "llama" else {}
  for tensor in found.values():
    _check_readable(library, path, tensor)

  def tensors() -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in found.items():
      if name != FREQUENCIES:
        values = library.dequantize(tensor.data, tensor.tensor_type)
        part = re.search(r"attn_([qk])\.", name)
        yield theirs(name), (_halves(values, permuted[part[1]]) if part and permuted else values)

  shapes = {theirs(name): tuple(map(int, reversed(tensor.shape))) for name, tensor in found.items()
            if name != FREQUENCIES}
  about = {"name": facts.get("general.name", path.stem),
           "licence": facts.get("general.license", "unknown"), "source": str(path.absolute()),
           "files": {path.name: sidecar.sha256(path)}}
  return Source(config, shapes, tensors, vocabulary.of_gguf(facts), about)


def theirs(name: str) -> str:
  """A tensor's name in Hugging Face's layout; one that is not known, as it is."""
  block = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
  if not block or block[2] not in NAMES:
    return name
  return (f"model.layers.{block[1]}." if block[1] else "") + f"{NAMES[block[2]]}.{block[3]}"


def _halves(rows, heads: int):
  """Rows of each head from pairs (2i, 2i + 1) to pairs (i, i + half)."""
  split = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return split.swapaxes(1, 2).reshape(rows.shape)


def _config(facts: dict, found: dict) -> dict:
  kind = facts.get("general.architecture")
  config = {"model_type": kind} | {name: facts[f"{kind}.{field}"] for name, field in FIELDS.items()
                                   if f"{kind}.{field}" in facts}
  if "token_embd.weight" in found:
    config["vocab_size"] = int(found["token_embd.weight"].shape[1])
  if "rms_norm_eps" in config:  # written in float32
    config["rms_norm_eps"] = float(str(np.float32(config["rms_norm_eps"])))
  config["tie_word_embeddings"] = "output.weight" not in found
  config["attention_bias"] = "blk.0.attn_output.bias" in found
  config["mlp_bias"] = "blk.0.ffn_down.bias" in found
  config["use_sliding_window"] = bool(config.get("sliding_window"))
  scaling = facts.get(f"{kind}.rope.scaling.type", "none")
  if scaling != "none":
    config["rope_scaling"] = {"rope_type": scaling, "factor": facts[f"{kind}.rope.scaling.factor"]}
  if FREQUENCIES in found:
    config["rope_scaling"] = _llama3(found[FREQUENCIES].data, config["rope_theta"])
  return config


def _llama3(divisors, base: float) -> dict:
  """The scaling that has these divisors. ValueError if Llama 3's, with its constants, has not."""
  factor, plain = float(np.max(divisors)), base ** (-np.arange(len(divisors)) / len(divisors))
  kept = np.clip((8192 * plain / (2 * np.pi) - 1) / 3, 0, 1)
  if not np.allclose(1 / (kept + (1 - kept) / factor), divisors, rtol=1e-3):
    raise ValueError(f"{FREQUENCIES} is another scaling of positions than Llama 3's: import the "
                     "model from its safetensors")
  return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}


def _check_readable(library, path, tensor) -> None:
  try:
    library.dequantize(tensor.data[:1], tensor.tensor_type)
  except (NotImplementedError, ValueError, KeyError):
    raise ValueError(f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which "
                     "cannot be read: take a file of Q8_0, Q4_K_M, F16 or the like") from None


def _library():
  try:
    import gguf
    from gguf import quants
  except ImportError:
    raise ValueError("a GGUF file needs the library gguf: pip install 'hope_jax[pretrained]'"
                     ) from None
  gguf.dequantize = quants.dequantize
  return gguf
