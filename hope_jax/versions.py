"""What files of earlier versions called things; every configuration and state says its version.

    1    0.1.0, which wrote no version: model.kind; token mixers' fast state side by side in a layer
    2    model.pattern and model.titan; the fast state of token mixers by their names
    3    the section channel, which was called mixer; a section for each outer optimizer's fields
    4    teach.through_context; before it every chunk was a cut, unless writes were differentiated

Not by version: the position of the data counted batches, and now counts sequences.
"""

import difflib
import re

NOW = 4
KINDS = {  # of version 1: (model.pattern, model.titan)
    "transformer": (("attention",), "none"), "hope_attention": (("attention",), "none"),
    "hope_selfmod": (("selfmod",), "none"), "hope_hybrid": (("attention",), "modified"),
    "titan_hybrid": (("attention",), "plain")}
MOVED_2 = {  # section and field of versions 1 and 2: where it is now
    ("optim", "muon_lr"): ("muon", "lr"),
    ("optim", "b1"): ("adamw", "b1"), ("optim", "b2"): ("adamw", "b2")}
FAST_1 = (  # path of fast state now, and in version 1
    (r"layers/tokens/attention/(.*)", r"layers/cache/\1"),
    (r"layers/tokens/selfmod/(.*)", r"layers/\1"),
)


def config(stored: dict) -> dict:
  """A stored configuration's sections, by today's names; ValueError for a version still to come."""
  version = stored.pop("version", 1)
  if version > NOW:
    raise ValueError(f"the configuration is of version {version}, this hope_jax reads up to {NOW}: "
                     "install a newer one")
  if version == 1:
    stored["model"]["pattern"], stored["model"]["titan"] = KINDS[stored["model"].pop("kind")]
  if version <= 2:
    stored["channel"] = stored.pop("mixer")
    for (section, field), (new_section, new_field) in MOVED_2.items():
      stored.setdefault(new_section, {})[new_field] = stored[section].pop(field)
  if version <= 3:
    through = stored["teach"].get("through_writes") == "full"
    stored["teach"]["through_context"] = "full" if through else "chunks:1"
  return stored


def hint(error: str) -> str:
  """What a field of an earlier version that an error names is called now, or nothing."""
  now = {"kind": "model.kind is now model.pattern and model.titan: "
                 "c.model.update(config.PRESETS[...])", "mixer": "mixer is now channel"}
  now |= {field: f"{section}.{field} is now {'.'.join(new)}"
          for (section, field), new in MOVED_2.items()}
  return "".join(f"; {text}" for field, text in now.items() if re.search(rf"\b{field}\b", error))


def fast_path(path: str, version: int) -> str:
  """What the state at this path was called in a version."""
  if version == 1:
    for now, then in FAST_1:
      if match := re.fullmatch(now, path):
        return match.expand(then)
  return path


def position(stored: dict, batch: int) -> dict:
  """A stored position of the data by today's name; `batch`: data.batch of its configuration."""
  return {"sequences": stored["next_index"] * batch} if "next_index" in stored else stored


def check_known(stored: dict, known: dict) -> None:
  """ValueError, with the nearest name, for a section or field that is none."""
  fields = [f"{section}.{name}" for section, part in known.items() if isinstance(part, dict)
            for name in part]
  for section, part in stored.items():
    if section not in known:
      near = difflib.get_close_matches(section, known, 1, 0)
      raise ValueError(f"no section {section} in a configuration: did you mean {near[0]}?")
    if not isinstance(part, dict):
      continue
    for name in part:
      if name not in known[section]:
        near = difflib.get_close_matches(f"{section}.{name}", fields, 1, 0)
        raise ValueError(f"no field {section}.{name} in a configuration: did you mean {near[0]}?")
