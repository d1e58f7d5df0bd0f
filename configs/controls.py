"""What a claim about memories is held against: a configuration with one thing taken from it.

    python -m hope_jax.launch --config=configs/baselines.py:hope_hybrid,small,shuffled --workdir=...

Each is a change of fields, of any configuration; what has no such part stays as it is. Parameters
stay the same but for the last two.

    memory_off            nothing is written while reading
    reset                 memories start afresh at every chunk
    frozen                initial values of memories are not trained
    reversed              every write has the other sign
    keys                  memories are asked with keys instead of queries
    shuffled              a token's teach signal is that of another token of its chunk
    one_period            all levels are written at the period of the fastest
    no_cms                blocks have no channel mixer
    no_self_modification  Titans' memory instead of self-modifying ones; a Titan memory without
                          its modifier
"""

import dataclasses


def _one_period(c):
  first = min((level.period for level in c.channel.levels), default=0)
  c.channel.levels = tuple(dataclasses.replace(level, period=first) for level in c.channel.levels)


def _no_cms(c):
  if c.channel.kind == "cms":
    c.channel.levels = ()


def _no_self_modification(c):
  c.model.pattern = tuple("titans_lmm" if name == "selfmod" else name for name in c.model.pattern)
  if c.model.titan == "modified":
    c.model.titan = "plain"


CONTROLS = {
    "memory_off": lambda c: c.teach.update(dict(paths=("none",))),
    "reset": lambda c: c.control.update(dict(reset=True)),
    "frozen": lambda c: c.control.update(dict(frozen=True)),
    "reversed": lambda c: c.control.update(dict(sign=-c.control.sign)),
    "keys": lambda c: c.control.update(dict(keys_as_queries=True)),
    "shuffled": lambda c: c.control.update(dict(shuffled_teach=True)),
    "one_period": _one_period, "no_cms": _no_cms, "no_self_modification": _no_self_modification,
}


def controlled(c, name: str):
  """The configuration, changed. ValueError for a name that is none."""
  if name not in CONTROLS:
    raise ValueError(f"no control {name}: choose from {', '.join(CONTROLS)}")
  CONTROLS[name](c)
  return c
