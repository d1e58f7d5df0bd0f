"""Writes notebooks/*.ipynb from the scripts beside them, and runs them: outputs are committed.

    python launch/notebooks.py [quickstart ...]

They run in a temporary folder; with HOPE_JAX_SMALL=1 for a few steps only, as tests do, and then
nothing is written.
"""

import os
from pathlib import Path
import sys
import tempfile

import jupytext
import nbclient
import nbformat
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 1800  # of a cell at most


def execute(script: Path, folder: str) -> nbformat.NotebookNode:
  """The notebook of a script, with its outputs."""
  notebook = jupytext.read(script)
  nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3",
                          resources={"metadata": {"path": folder}}).execute()
  notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                      "language": "python"},
                       "language_info": {"name": "python"}}
  for cell in notebook.cells:
    cell.metadata = {}  # when it ran
    if cell.cell_type == "code":  # progress is for those who wait for it
      cell.outputs = [own for own in cell.outputs if own.get("name") != "stderr"]
  return notebook


def main(names: list[str]) -> None:
  for script in tqdm([FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py"))):
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(script, folder)
    if not os.environ.get("HOPE_JAX_SMALL"):
      nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
  main(sys.argv[1:])
