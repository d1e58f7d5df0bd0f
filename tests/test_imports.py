"""Who may import whom: the package is layers, and the memories know nothing of models, data or files."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hope_jax"
ORDER = (
    "products", "delta", "rule", "linear_memory", "mlp_memory",  # the self-modifying memories
    "inner", "level", "teach", "layout", "layers", "state", "config", "written", "write", "titan", "sharding", "checks", "optim",
    "selfmod", "attention", "cms", "model", "online", "guard", "step",
    "program", "startup", "hosts", "integrity", "corpus", "tokenizer", "recall", "shard", "windows", "data", "loader", "ngram",
    "arrays", "stored", "checkpoint", "weights", "conversation", "stack", "export", "metrics", "intervals", "report", "collectives",
    "costs", "generate", "memorize", "evaluation", "goodput", "signals", "train", "launch")
MEMORIES = ORDER[:5]
WITHOUT_JAX = (
    "config", "written", "program", "integrity", "corpus", "tokenizer", "ngram", "intervals", "report", "shard", "windows",
    "data", "goodput", "signals")


def imports(name):
  """(modules of this package, other packages) that a file imports."""
  inside, outside = set(), set()
  for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
    if isinstance(node, ast.Import):
      outside |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module == "hope_jax":
      inside |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module.startswith("hope_jax."):
      inside.add(node.module.split(".")[1])
    elif isinstance(node, ast.ImportFrom):
      outside.add(node.module.split(".")[0])
  return inside, outside


def test_every_file_has_its_place():
  assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_only_from_above(name):
  inside, outside = imports(name)
  assert inside <= set(ORDER[:ORDER.index(name)])
  if name in MEMORIES:
    assert outside <= {"jax", "dataclasses", "itertools", "typing"}
  if name in WITHOUT_JAX:
    assert not outside & {"jax", "flax", "optax"}
