"""Arrows between folders go one way; the memories know nothing of models, data or files."""

import ast
from pathlib import Path
import re

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hope_jax"
# each folder imports those before it; inside a folder there is no circle
FOLDERS = ("versions", "optimizers", "config", "runtime", "memory", "checkpoints", "data", "model",
           "foreign", "reading", "scoring", "training", "reports")
WITHOUT_JAX = (
    "versions", "config", "integrity", "report", "data.__main__", "runtime.program", "runtime.lock",
    "data.files", "runtime.goodput", "runtime.signals", "checkpoints.sidecar", "data.corpus",
    "data.units", "data.zstd", "data.tokenizer", "data.pieces", "data.byte_pairs", "data.shard",
    "data.windows", "data.tokenized", "data.pipeline.build", "scoring.bigram",
    "scoring.intervals", "reports.tables", "reports.memorized")
SELF_MODIFYING = [f"memory.{name}" for name in (
    "products", "chunks", "delta_rule", "write_rule", "linear_memory", "mlp_memory",
    "self_modifying", "recurrence", "neural_memory")]
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
           for path in PACKAGE.rglob("*.py")
           if path.name != "__init__.py"}


def folder(name: str) -> str:
  """Where a module lies; a program's folder is ""."""
  return name.split(".")[0] if "." in name or name in FOLDERS else ""


def imports(name):
  """(modules of this package, other packages) that a file imports."""
  inside, outside = set(), set()
  for node in ast.walk(ast.parse(MODULES[name].read_text())):
    if isinstance(node, ast.Import):
      outside |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hope_jax":
      start = node.module.removeprefix("hope_jax").strip(".")
      inside |= {start} if start in MODULES else {f"{start}.{alias.name}".strip(".")
                                                  for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      outside.add(node.module.split(".")[0])
  return inside, outside


def reached(name, seen=()):
  """What a file imports, directly or through its folder. AssertionError for a circle."""
  assert name not in seen, f"a circle of imports: {' -> '.join([*seen, name])}"
  own = imports(name)[0] & MODULES.keys()
  return own.union(*(reached(other, (*seen, name)) for other in own
                     if folder(other) == folder(name)))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
  inside, outside = imports(name)
  assert inside <= MODULES.keys() | {*FOLDERS}
  reached(name)
  if folder(name):
    allowed = FOLDERS[:FOLDERS.index(folder(name)) + 1]
    assert {folder(other) for other in inside} <= set(allowed)
  if folder(name) == "memory":
    more = set() if name in SELF_MODIFYING else {"optax", "flax", "collections"}
    assert outside <= {"jax", "dataclasses", "itertools", "math", "typing"} | more
  if name in WITHOUT_JAX:
    assert not outside & {"jax", "flax", "optax"}


@pytest.mark.parametrize("name", sorted({name.rpartition(".")[0] for name in MODULES} - {""}))
def test_a_folder_lists_its_files(name):
  init = PACKAGE / name.replace(".", "/") / "__init__.py"
  text = ast.get_docstring(ast.parse(init.read_text()), clean=False)
  listed = re.findall(r"^    (\w+)    ?", text, re.MULTILINE)
  assert sorted(listed) == sorted({module.removeprefix(f"{name}.").split(".")[0]
                                   for module in MODULES if module.startswith(f"{name}.")})
