"""Notebooks: each is its script, was run as it stands, and runs.

    python -m pytest tests/test_notebooks.py
    jupytext --to ipynb --execute notebooks/*.py        # writes them anew, outputs included
"""

from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
DEAR = ("ablations",)  # of what they call, compare_memories calls most


def sources(notebook) -> list[tuple[str, str]]:
  return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_and_was_run(script):
  """No error among what it printed, and a picture or a table."""
  notebook = nbformat.read(script.with_suffix(".ipynb"), 4)
  assert sources(notebook) == sources(jupytext.read(script))
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell.outputs]
  assert not any(output.output_type == "error" for output in outputs)
  assert any("image/png" in output.get("data", ()) for output in outputs)
  assert script.with_suffix(".ipynb").stat().st_size < 400_000


@pytest.mark.parametrize("script", [
    pytest.param(path, marks=pytest.mark.nightly if path.stem in DEAR else pytest.mark.slow)
    for path in SCRIPTS], ids=[path.stem for path in SCRIPTS])
def test_a_notebook_runs(script, tmp_path, monkeypatch):
  monkeypatch.setenv("HOPE_JAX_SMALL", "1")
  notebook = jupytext.read(script)
  nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
                          ).execute()
