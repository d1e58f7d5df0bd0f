"""Writes the random models of this folder, and what `transformers` computes with them.

    python tests/foreign/make.py          # needs torch, transformers and numpy; see README.md

llama_tied came from elsewhere in the same form: 3 layers of 48, 6 heads of 8, 2 of keys.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

HERE = Path(__file__).resolve().parent
SMALL = dict(vocab_size=41, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             bos_token_id=1, eos_token_id=2)
MODELS = {  # several files; biases and scaled positions; a window; biases; norms and own head width
    "llama3": LlamaConfig(**SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
                          rms_norm_eps=1e-3, rope_parameters=dict(
                              rope_type="llama3", rope_theta=1000.0, factor=8.0,
                              low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=32)),
    "mistral": MistralConfig(**SMALL, tie_word_embeddings=False, sliding_window=7),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=False, head_dim=10)}


def main():
  for name, config in MODELS.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager").float().eval()
    with torch.no_grad():
      for parameter in model.parameters():  # so that biases, norms and positions show
        parameter.add_(0.15 * torch.randn_like(parameter))
      tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 21))
      logits = model(torch.tensor(tokens)).logits.numpy()
    model.save_pretrained(HERE / name, max_shard_size="30KB" if name == "llama3" else "1GB")
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    np.savez(HERE / name / "expected.npz", tokens=tokens, logits=logits)


if __name__ == "__main__":
  main()
