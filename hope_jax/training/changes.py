"""A run that goes on with another configuration: what each changed field does to it.

Resuming has a law: a run that was stopped equals one that was not. A field that breaks it, so that
what comes is the rest of no run at all, is refused unless --allow_changes is given. FREE lists the
fields that do not; a new field breaks it until it is listed.
"""

import fnmatch
import json

from ml_collections import ConfigDict
import numpy as np

from hope_jax import config as configs
from hope_jax.runtime.startup import say
from hope_jax.training import optimizer

FREE = {  # pattern of fields: what a change does; "": nothing to what is learned
    "seed": "it is of a new run's parameters: this run keeps its own, and its random key",
    "model.remat": "the same to rounding",
    "attention.context": "it is of generation alone",
    "data.batch": "the data go on after the last sequence that was read; a step has more or fewer "
                  "of them, at the same learning rate",
    "mesh.*": "the same to rounding",
    "optim.accumulate": "the same to rounding, but for dropout",
    "train.log_every": "", "train.boards": "", "train.eval*": "", "train.save_every": "",
    "train.keep*": "", "train.on_*": "",
    "train.rollback_after": "what a bad step does from here on",
}
SHARDS = ("data.dir", "data.sources", "data.val_fraction", "data.tokenizer_chars")
BREAKS = {  # sections: what a change does
    "data": "other sequences, of which some come again and some are left out",
    "optim": "other steps", "train": "other steps", "teach": "memories are written otherwise"}
ANOTHER = "another model, which these parameters were not trained for"


def check(step: int, old: ConfigDict, new: ConfigDict, same_shards: bool, allowed: bool) -> None:
  """Says what every changed field does from this step on.

  `same_shards`: both have the same tokens. Raises ValueError for a run that has taken more steps
  than it is to take, for streams that are not there (data.carry), and for fields that break the law
  unless that is `allowed`.
  """
  if new.train.steps < step:
    raise ValueError(f"train.steps={new.train.steps}, and {step} steps are taken: set it to "
                     f"{step} or more, or choose another --workdir")
  if (old.data.carry or new.data.carry) and (
      (old.data.carry, old.data.batch) != (new.data.carry, new.data.batch)):
    raise ValueError("with data.carry a checkpoint holds what each row of the batch has read: set "
                     f"data.carry={old.data.carry} and data.batch={old.data.batch} again, or go on "
                     "from its parameters with --init_from and another --workdir")
  told, breaking = [], []
  for field, (before, after) in differences(old, new).items():
    free, what = effect(field, step, old, new, same_shards)
    told.append(f"{field} {before} -> {after}" + f" ({what})" * bool(what))
    breaking += [] if free else told[-1:]
  if breaking and not allowed:
    raise ValueError(f"step {step} was trained with another configuration, and what would come is "
                     f"no run that was stopped and goes on: {'; '.join(breaking)}: set them back, "
                     "choose another --workdir, or give --allow_changes")
  if told:
    say(f"changed at step {step}: {'; '.join(told)}")


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """{field: (value before, value now)}, as section.field."""
  a, b = _flat(old), _flat(new)
  return {field: (a[field], b[field]) for field in b if a[field] != b[field]}


def effect(field: str, step: int, old: ConfigDict, new: ConfigDict,
           same_shards: bool) -> tuple[bool, str]:
  """(whether a changed field leaves the law whole, what it does)."""
  for pattern, what in FREE.items():
    if fnmatch.fnmatch(field, pattern):
      return True, what
  if field in SHARDS and same_shards and _weights(old) == _weights(new):
    return True, "the same tokens"
  if field in ("train.steps", "optim.warmup", "optim.final_lr", "optim.lr"):
    rates_2xN = np.array([_rates(c, step, new.train.steps) for c in (old, new)])
    if np.allclose(*rates_2xN, rtol=1e-6):
      return True, "the same learning rate in all steps that come"
    before, after = rates_2xN[:, 0]
    return False, f"the learning rate of step {step + 1} is {after:.3g} instead of {before:.3g}"
  section = field.split(".")[0]
  return False, BREAKS.get(section, "other steps" if section in configs.OPTIMIZERS else ANOTHER)


def _rates(config: ConfigDict, first: int, last: int) -> list[float]:
  """The learning rate at some of the steps to come."""
  factor = optimizer.schedule(config)
  return [config.optim.lr * float(factor(step)) for step in np.linspace(first, last, 50, dtype=int)]


def _weights(config: ConfigDict) -> list[tuple]:
  return [(source.name, source.weight) for source in config.data.sources]


def _flat(config: ConfigDict) -> dict:
  parts = json.loads(configs.to_json(config))
  return {"seed": parts["seed"]} | {
      f"{section}.{name}": value for section, part in parts.items() if isinstance(part, dict)
      for name, value in part.items()}
