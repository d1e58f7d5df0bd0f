"""config.json of the Llama family, and our configuration of the same model.

Known are llama (Llama 2 and 3, SmolLM), mistral, qwen2 and qwen3: what they differ in are fields of
ours. What a config.json says that we do not have is refused, by its name.
"""

import math

from hope_jax import config as configs
from hope_jax.model import attention

FAMILIES = {  # model_type: attention.bias, attention.qk_norm
    "llama": ("none", False), "mistral": ("none", False), "qwen2": ("qkv", False),
    "qwen3": ("none", True)}
CONTEXT = 8192  # tokens that are kept as context at most, unless told otherwise
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "vocab_size")


def ours(foreign: dict, context: int | None = None):
  """Our configuration of a model. ValueError, naming what is not known, for one that we have not.

  Args:
    context: tokens that attention keeps; None: those that the model was trained for, at most
      CONTEXT.
  """
  _refuse(foreign)
  c, dim = configs.base(), foreign["hidden_size"]
  bias, qk_norm = FAMILIES[foreign["model_type"]]
  if foreign.get("attention_bias"):
    bias = "all"
  positions = foreign.get("max_position_embeddings") or CONTEXT
  heads = foreign["num_attention_heads"]
  c.model.update(dict(
      pattern=("attention",), titan="none", dim=dim, layers=foreign["num_hidden_layers"],
      heads=heads, vocab=foreign["vocab_size"], embed_std=1.0,
      tied=bool(foreign.get("tie_word_embeddings", False)),
      norm_epsilon=float(foreign.get("rms_norm_eps", 1e-6))))
  c.attention.update(dict(
      kv_heads=foreign.get("num_key_value_heads") or heads, bias=bias, qk_norm=qk_norm,
      width=foreign.get("head_dim") or dim // heads, window=_window(foreign),
      context=context or min(positions, CONTEXT)) | _rotary(foreign, positions))
  # the MLP is a level: others are stacked on it without a bit that changes
  c.channel.update(dict(kind="cms", levels=(configs.Level("mlp", 0),), activation="swiglu",
                        hidden=ratio(foreign["intermediate_size"], dim),
                        bias=bool(foreign.get("mlp_bias", False))))
  c.data.update(dict(seq=1024, align=64, batch=1))
  return c


def ratio(hidden: int, dim: int) -> float:
  """channel.hidden, with which a width is what it is: int(ratio * dim) == hidden."""
  value = hidden / dim
  while int(value * dim) < hidden:
    value = math.nextafter(value, math.inf)
  return value


def _refuse(foreign: dict) -> None:
  kind = foreign.get("model_type")
  if kind not in FAMILIES:
    raise ValueError(f"no architecture {kind!r} here: known are {', '.join(FAMILIES)}")
  if missing := [name for name in NEEDED if not foreign.get(name)]:
    raise ValueError(f"config.json has no {', '.join(missing)}: fetch the model again")
  if method := foreign.get("quantization_config"):
    raise ValueError(f"the weights are quantised ({method.get('quant_method')}), which cannot be "
                     "read: take the original weights, or a GGUF file")
  for name, usual in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
    if foreign.get(name, usual) != usual:
      raise ValueError(f"config.json: {name}={foreign[name]}, here it is always {usual}: choose "
                       "another model")


def _window(foreign: dict) -> int:
  """Tokens each token sees; 0: all. Qwen says beside its window whether it is used."""
  window = foreign.get("sliding_window") or 0
  if foreign["model_type"].startswith("qwen") and not foreign.get("use_sliding_window", False):
    return 0
  kinds = set(foreign.get("layer_types") or ())
  if window and len(kinds) > 1 or window and 0 < foreign.get("max_window_layers", 0) \
      and not kinds:
    raise ValueError("config.json: some layers have a window of attention and others have not: "
                     "choose another model")
  return window if kinds != {"full_attention"} else 0


def _rotary(foreign: dict, positions: int) -> dict:
  """Fields rope_* of config.attention, from either place where versions write them."""
  given = foreign.get("rope_parameters") or foreign.get("rope_scaling") or {}
  kind = given.get("rope_type", given.get("type", "default"))
  base = given.get("rope_theta", foreign.get("rope_theta", 10_000.0))
  out = {"rope_base": float(base)}
  if kind == "default":
    return out
  if kind not in ("linear", "llama3"):
    raise ValueError(f"config.json: rotary scaling {kind!r}: known are default, linear and llama3")
  out |= {"rope_scaling": kind, "rope_factor": float(given["factor"])}
  if kind == "llama3":
    out |= {"rope_low": float(given["low_freq_factor"]),
            "rope_high": float(given["high_freq_factor"]),
            "rope_original": int(given.get("original_max_position_embeddings", positions))}
  return out


def theirs(c) -> dict:
  """config.json of a model of ours. ValueError, naming the field, where no family has it so."""
  m, a = c.model, c.attention
  family = _family(c)
  rotary = {"rope_type": "default", "rope_theta": a.rope_base}
  if a.rope_scaling != "none":
    rotary |= {"rope_type": a.rope_scaling, "factor": a.rope_factor}
  if a.rope_scaling == "llama3":
    rotary |= {"low_freq_factor": a.rope_low, "high_freq_factor": a.rope_high,
               "original_max_position_embeddings": a.rope_original}
  name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
  out = {"architectures": [f"{name}ForCausalLM"], "model_type": family, "hidden_size": m.dim,
         "num_hidden_layers": m.layers, "num_attention_heads": m.heads,
         "num_key_value_heads": attention.kv_heads(c), "head_dim": attention.head_width(c),
         "intermediate_size": int(c.channel.hidden * m.dim), "vocab_size": m.vocab,
         "rms_norm_eps": m.norm_epsilon, "tie_word_embeddings": m.tied, "hidden_act": "silu",
         "max_position_embeddings": attention.context(c), "rope_theta": a.rope_base,
         "rope_parameters": rotary, "torch_dtype": "float32"}
  if a.rope_scaling != "none":
    out["rope_scaling"] = rotary
  if family == "llama":
    out |= {"attention_bias": a.bias == "all", "mlp_bias": c.channel.bias}
  if family in ("mistral", "qwen3"):
    out["sliding_window"] = a.window or None
  if family == "qwen3":
    out |= {"use_sliding_window": a.window > 0, "attention_bias": a.bias == "all",
            "max_window_layers": 0}
  return out


def _family(c) -> str:
  """The family that has what a model has. ValueError if there is none."""
  a = c.attention
  wanted = {"model.pattern": ("attention",), "model.titan": "none", "channel.norm": "rms",
            "model.embed_std": 1.0}
  for field, value in wanted.items():
    section, name = field.split(".")
    if c[section][name] != value:
      raise ValueError(f"{field}={c[section][name]}: transformers has no such model (it must be "
                       f"{value}); export to one file of ours, --output=<name>.safetensors")
  if a.qk_norm:
    family, fits = "qwen3", a.bias != "qkv" and not c.channel.bias
  elif a.bias == "qkv":
    family, fits = "qwen2", not c.channel.bias and not a.window
  elif a.window:
    family, fits = "mistral", a.bias == "none" and not c.channel.bias
  else:
    family, fits = "llama", True
  if not fits:
    raise ValueError(f"attention.bias={a.bias}, attention.window={a.window}, "
                     f"channel.bias={c.channel.bias} with attention.qk_norm={a.qk_norm}: no family "
                     "of transformers has these together; export to one file of ours, "
                     "--output=<name>.safetensors")
  return family
