"""Texts with labels whose classes arrive in groups: CLINC150, Banking77, DBpedia14.

    data = read("clinc150", data_dir="data")         # or None: from the hub
    for group in groups(data, "clinc150", order=0): ...
"""

import hashlib
from typing import NamedTuple

import numpy as np

from hope_jax.scoring import published
from hope_jax.scoring.published import Row, Source


class Example(NamedTuple):
  """A text and its class, in words."""
  text: str
  label: str


class Data(NamedTuple):
  train: list[Example]
  test: list[Example]

  @property
  def labels(self) -> list[str]:
    """All classes, by name."""
    return sorted({example.label for example in self.train})


class Set(NamedTuple):
  """A row of the table. Files of train and test, or one for both; how many groups of classes."""
  train: Source
  test: Source
  text: str
  label: str
  groups: int


SETS = {
    "clinc150": Set(Source("continual/clinc150_data_full.json", "clinc/clinc_oos", "plus", "train"),
                    Source("continual/clinc150_data_full.json", "clinc/clinc_oos", "plus", "test"),
                    "text", "intent", 10),
    "banking77": Set(Source("continual/banking77_train.csv", "PolyAI/banking77", split="train"),
                     Source("continual/banking77_test.csv", "PolyAI/banking77", split="test"),
                     "text", "category", 7),
    "dbpedia14": Set(Source("continual/dbpedia14_test.json", "fancyzhang/dbpedia_14", split="test"),
                     Source("continual/dbpedia14_test.json", "fancyzhang/dbpedia_14", split="test"),
                     "sentence", "label", 7)}
OTHER_NAMES = {"category": "label", "sentence": "content"}  # of fields, on the hub
NONE = "oos"  # CLINC's class of what is out of scope, which is left out


def read(name: str, data_dir: str | None) -> Data:
  """All examples of a data set. Where one file is for both, a hash of a text splits it in halves.

  Raises ValueError for an unknown name or a malformed file, otherwise as published.rows.
  """
  if name not in SETS:
    raise ValueError(f"no data set {name}: choose from {', '.join(SETS)}")
  own = SETS[name]
  train, test = (_examples(own, source, data_dir) for source in (own.train, own.test))
  if own.train == own.test:
    def half(example):
      return hashlib.sha256(example.text.encode("utf-8", "surrogateescape")).digest()[0] % 2
    train, test = ([example for example in train if half(example) == side] for side in (0, 1))
  if missing := {example.label for example in test} - {example.label for example in train}:
    raise ValueError(f"{own.test.file}: the class {min(missing)} is in no example for training: "
                     "fetch both files again")
  return Data(train, test)


def _examples(own: Set, source: Source, data_dir: str | None) -> list[Example]:
  if data_dir is not None and source.file.endswith(".json"):
    rows = _of_document(own, source, data_dir)
  else:
    rows = published.rows(source, data_dir, named=True)
  found = [Example(*(_field(row, name) for name in (own.text, own.label))) for row in rows]
  return [Example(text.strip(), label.replace("_", " ")) for text, label in found if label != NONE]


def _of_document(own: Set, source: Source, data_dir: str) -> list[Row]:
  """Of {split: [[text, label], ...]}, or of [{text, label}, ...]."""
  whole = published.document(source, data_dir)
  entries = whole.get(source.split) if isinstance(whole, dict) else whole
  if not isinstance(entries, list) or not entries:
    raise ValueError(f"{source.file} has no list of examples"
                     + f" named {source.split}" * isinstance(whole, dict))
  rows = [Row(f"{source.file}, {source.split} entry {number}",
              entry if isinstance(entry, dict) else dict(zip((own.text, own.label), entry)))
          for number, entry in enumerate(entries, 1)]
  return rows


def _field(row: Row, name: str) -> str:
  for own in (name, OTHER_NAMES.get(name)):
    if isinstance(row.fields.get(own), str):
      return row.fields[own]
  raise row.wrong(f"it has no text in the field {name}")


class Group(NamedTuple):
  """Classes that arrive together, their examples in the order in which they come, and tests."""
  labels: list[str]
  train: list[Example]
  test: list[Example]


def groups(data: Data, count: int, order: int, shots: int, tests: int) -> list[Group]:
  """The classes in an order drawn by its number, in so many groups of like sizes.

  Args:
    shots: examples of each class, the first ones; tests: test examples of each class.
  """
  random = np.random.default_rng(order)
  labels = [data.labels[i] for i in random.permutation(len(data.labels))]
  def some(examples, most):
    kept, out = {}, []
    for example in examples:
      kept[example.label] = kept.get(example.label, 0) + 1
      if kept[example.label] <= most:
        out.append(example)
    return out
  train, test = some(data.train, shots), some(data.test, tests)
  out = []
  for own in np.array_split(np.array(labels, object), count):
    mine = [example for example in train if example.label in own]
    out.append(Group(list(own), [mine[i] for i in random.permutation(len(mine))],
                     [example for example in test if example.label in own]))
  return out
