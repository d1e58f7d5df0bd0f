"""The options of memorization, the same in every program that reads with memories on."""

from absl import flags

from hope_jax import config as configs
from hope_jax.model import checks, plan
from hope_jax.reading import opening, study


def define_flags(values: flags.FlagValues) -> None:
  """What `override` reads."""
  flags.DEFINE_list("paths", None, "Memories to write: titan, cms_<level>, selfmod. Default: as "
                                   "trained.", flag_values=values)
  flags.DEFINE_list("layers", None, "Layers to write in. Default: as trained.", flag_values=values)
  flags.DEFINE_float("threshold", None, "Surprise from which a chunk is written. Default: as "
                                        "trained.", flag_values=values)
  flags.DEFINE_float("scale", None, "Of the teach signal, whatever its schedule. Default: as "
                                    "trained at the checkpoint's step.", flag_values=values)
  flags.DEFINE_string("at_evaluation", None, "Strength of the writes. full: after warm-ups, before "
                                             "decay; step:n: as at this step. Default: as at the "
                                             "checkpoint's.", flag_values=values)


def override(config, f: flags.FlagValues) -> None:
  """Sets the fields of config.teach for which a flag was given."""
  if unknown := [layer for layer in f.layers or () if not layer.isdecimal()]:
    raise ValueError(f"--layers={unknown[0]}: layers are numbers from 0 to "
                     f"{config.model.layers - 1}")
  given = {"paths": f.paths and tuple(f.paths), "layers": f.layers and tuple(map(int, f.layers)),
           "threshold": f.threshold, "scale": f.scale,
           "at_evaluation": f.at_evaluation or ("full" if f.scale is not None else None)}
  with config.unlocked():
    config.teach.update({name: value for name, value in given.items() if value is not None})


def load(f: flags.FlagValues):
  """(config, params, tokenizer) of --checkpoint, with what the flags say of writing.

  Raises ValueError for a model that writes nothing while it reads.
  """
  config, params, tokenizer = opening.load(f.checkpoint)
  if not plan.of(config).paths:
    raise ValueError(f"{f.checkpoint} is {configs.describe(config)}, which writes nothing while it "
                     "reads: train one with channel.in_context=True, selfmod in model.pattern, or "
                     "a model.titan")
  override(config, f)
  checks.validate(config)
  study.check_strength(config)
  return config, params, tokenizer
