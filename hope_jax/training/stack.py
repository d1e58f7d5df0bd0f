"""Ad-hoc level stacking (NL s. 7.3): a trained model gets K levels of CMS and computes the same.

    python -m hope_jax.launch --config=... --workdir=runs/levels --init_from=runs/transformer

    params = stack(config, params_old, config_old)

A run of any kind may also start at its own model's parameters, taken as they are (`load`).

A transformer's norm and SwiGLU MLP f are one level of activation "swiglu" (level.apply). Of the new
model's levels,

    sequential, nested   the slowest are the trained ones; the others stand before them and have a
                         down kernel of zeros: x + 0 + ... + f(x) (Eq. 73)
    independent          each is the trained one, with its down kernel divided by K, and equal
                         shares: x + sum_l 1/K K f(x)/K (Eq. 74)

New levels take the norm, up and gate of the first trained one: the gradient of their down kernels
is not zero, so they add something from their first write or optimizer step on.
"""

from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp

from hope_jax import config as configs
from hope_jax.checkpoints import weights
from hope_jax.model import mixers
from hope_jax.model.attention import Rotary
from hope_jax.reading import opening

SAME = (*(f"model.{name}" for name in ("pattern", "titan", "dim", "layers", "heads", "vocab",
                                       "embed_std", "tied", "norm_epsilon")),
        *(f"attention.{name}" for name in ("window", "kv_heads", "width", "qk_norm", "bias")),
        *(f"attention.rope_{name}" for name in Rotary._fields),
        *(f"channel.{name}" for name in ("hidden", "activation", "norm", "bias")))
MODEL = ("model", "channel", "titan", *mixers.SECTIONS)  # sections of the configuration
# what a transformer's channel mixer is, as a level
MLP = {"channel.activation": "swiglu", "channel.norm": "rms"}


def stack(config, params_old: dict, config_old) -> dict:
  """Parameters of `config` with the logits of (params_old, config_old), in arrays of their own.

  Raises ValueError as `check` does.
  """
  check(config, config_old)
  old, new = config_old.channel, config.channel
  blocks = dict(params_old["blocks"])
  if old.kind == "swiglu":
    trained = [{"norm": blocks.pop("channel_norm"), **blocks.pop("mlp")}]
  else:
    trained = [blocks["cms"][entry.name] for entry in old.levels]
  count, more = len(new.levels), len(new.levels) - len(trained)
  if new.connection != "independent":
    levels = [_with_down(trained[0], jnp.zeros_like)] * more + trained
  else:
    levels = ([_with_down(trained[0], lambda down: down / count)] * count if len(trained) == 1
              else trained)
  mixer = {entry.name: level for entry, level in zip(new.levels, levels)}
  if new.connection == "independent":
    mixer["share"] = (jnp.zeros((config.model.layers, count)) if len(trained) == 1
                      else blocks["cms"]["share"])
  # levels share no array: a training step is given each of its arrays to write into
  return jax.tree.map(jnp.copy, {**params_old, "blocks": {**blocks, "cms": mixer}})


def _with_down(level: dict, change) -> dict:
  return {**level, "down": jax.tree.map(change, level["down"])}


def check(config, config_old) -> None:
  """ValueError, naming field, values and fix, unless a model of config_old can become config's.

  attention.context and model.dtype may change: they decide how long generation looks back, and the
  rounding.
  """
  old, new, kind = config_old.channel, config.channel, configs.describe(config_old)
  if tuple(config_old.model.pattern) != ("attention",) or config_old.model.titan != "none":
    raise ValueError(f"the checkpoint's model is {kind}: levels are stacked on attention alone; "
                     f"without new levels, give its own {', '.join(MODEL)} (config.json in its "
                     "folder)")
  need = {"channel.kind": "cms"}
  need |= ({field: attrgetter(field)(config_old) for field in SAME}
           | (MLP if old.kind == "swiglu" else {}))
  for field, value in need.items():
    given = attrgetter(field)(config)
    if given != value:
      raise ValueError(f"{field}={given}, but to go on from this checkpoint ({kind}) it must be "
                       f"{value}: set --config.{field}={value}")
  trained, count = 1 if old.kind == "swiglu" else len(old.levels), len(new.levels)
  if not trained:
    raise ValueError("the checkpoint's channel.levels are none: there is nothing to stack on, "
                     "choose another run")
  if count < trained:
    raise ValueError(f"channel.levels: {count} levels, the checkpoint has {trained}: give "
                     f"{trained} or more")
  if trained > 1 and (old.connection == "independent") != (new.connection == "independent"):
    raise ValueError(f"channel.connection={new.connection}, but the checkpoint's {trained} levels "
                     f"are {old.connection}: they would compute something else; set "
                     f"--config.channel.connection={old.connection}")
  if trained > 1 and new.connection == "independent" and count != trained:
    raise ValueError(f"channel.levels: {count} levels, the checkpoint has {trained}; among "
                     "independent levels, which are weighted against each other, there is no "
                     f"place for new ones: give {trained}")


def load(config, workdir: str | Path) -> tuple[dict, dict]:
  """(params of `config`, meta of the checkpoint) from the last checkpoint in the folder of a run.

  A model of any kind that is described as it was (MODEL) has its parameters as they are.
  Raises FileNotFoundError when there is no checkpoint, ValueError as `check` does.
  """
  workdir, step = opening.find(workdir)
  params, config_old, meta = weights.load(workdir / "checkpoints", step=step)
  same = all(config[section] == config_old[section] for section in MODEL)
  return params if same else stack(config, params, config_old), meta
