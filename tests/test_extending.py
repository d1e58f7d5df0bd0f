"""docs/extending.md, done as it says: in a copy of the project, all examples at once."""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = """
from configs import decay

def get_config():
  c = decay.get_config()
  c.model.update(dict(dim=16, heads=2, layers=3, vocab=283))
  c.attention.window = 8
  c.teach.chunk = c.data.align = 16
  c.channel.levels = tuple(c.channel.levels[:1])
  c.data.update(dict(seq=64, batch=2, dir="data", val_fraction=0.3))
  source = c.data.sources[0].copy_and_resolve_references()
  source.update(dict(name="notes", kind="text", path="notes"))
  c.data.sources = (source,)
  c.train.update(dict(steps=3, eval_every=3, eval_batches=1, save_every=3))
  return c
"""


def apply(text: str, change: str) -> str:
  """A file with a block of changed lines: "-" goes, "+" comes, " " stays and says where."""
  lines = change.splitlines()
  runs, run = [], []
  for line in lines:
    if run and line[:1] != "+" and run[-1][:1] == "+" and any(x[:1] != "+" for x in run):
      runs.append(run)
      run = []
    run.append(line)
  for run in [*runs, run]:
    old = "".join(line[1:] + "\n" for line in run if line[:1] != "+")
    assert text.count(old) == 1, f"the lines {old!r} are not there, or more than once"
    text = text.replace(old, "".join(line[1:] + "\n" for line in run if line[:1] != "-"))
  return text


def extended(folder: Path) -> Path:
  """A copy of the project with every example of the document."""
  for name in ("hope_jax", "configs", "evals", "tests"):
    shutil.copytree(ROOT / name, folder / name, symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__"))
  blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
  assert len(blocks) == 7
  for language, name, body in blocks:
    path = folder / name
    assert path.exists() == (language == "diff")
    path.write_text(body if language == "python" else apply(path.read_text(), body))
  return folder


def test_the_examples_fit_the_code(tmp_path):
  folder = extended(tmp_path)
  for path in folder.rglob("*.py"):
    compile(path.read_text(), path, "exec")


@pytest.mark.slow
def test_the_examples_train_evaluate_and_keep_the_laws(tmp_path):
  folder = extended(tmp_path)
  (folder / "configs" / "tiny.py").write_text(TINY)
  (folder / "notes").mkdir()
  for i in range(20):
    (folder / "notes" / f"{i}.txt").write_text("read write memory chunk token slow level\n" * 9)

  def run(*command):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr[-2000:]

  run("-m", "hope_jax.launch", "--config=configs/tiny.py", "--workdir=run")
  run("evals/again.py", "--checkpoint=run", "--text=notes/0.txt", "--output=again.json")
  result = json.loads((folder / "again.json").read_text())
  assert result["memories"]["cms_fast"]["updates"] > 0 and result["config"]["optim"][
      "name"] == "lion"
  run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_mixers.py", "-k",
      "decay")
