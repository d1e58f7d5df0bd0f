"""The house style that can be counted."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("hope_jax", "configs", "evals", "tests", "notebooks")
         for path in sorted((ROOT / folder).rglob("*.py"))]
LISTS = {"config.base"}  # functions that are a list of fields


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read(path):
  lines = path.read_text().splitlines()
  assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == []
  assert len(lines) <= 400
  tree = ast.parse(path.read_text())
  functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
  assert [f.name for f in functions if f.end_lineno - f.lineno >= 60
          and f"{path.stem}.{f.name}" not in LISTS] == []
  assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assign)
          and isinstance(node.value, ast.Lambda)] == []
