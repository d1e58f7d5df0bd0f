"""The wheel, in an empty folder: what the README says works there."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINE = """
from configs import online

def get_config():
  c = online.get_config()
  c.data.batch = 0
  return c
"""


def pip(*arguments):
  subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments],
                 check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  for name in ("hope_jax", "configs", "evals"):
    shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, folder / "source" / name)
  pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
  return next(folder.glob("*.whl"))


def test_the_wheel_has_all_that_the_readme_names(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  for folder in ("hope_jax", "configs", "evals"):
    for path in (ROOT / folder).rglob("*.py"):
      name = path.relative_to(ROOT).as_posix()
      assert (name if folder == "hope_jax" else f"hope_jax/{name}") in names
  assert "hope_jax/reports/page.html" in names
  assert not {name.split("/")[0] for name in names if not name.startswith("hope_jax")}
  said = "".join((ROOT / name).read_text() for name in ("README.md", "docs/guide.md"))
  assert not re.findall(r"python evals/", said)
  for module in re.findall(r"python -m (hope_jax[\w.]*\w)", said):
    path = module.replace(".", "/")
    assert {f"{path}.py", f"{path}/__main__.py"} & names, module
  for config in re.findall(r"configs/\w+\.py", said):
    assert f"hope_jax/{config}" in names


def test_programs_and_configurations_work_in_an_empty_folder(wheel, tmp_path):
  pip("install", "--no-deps", "--target", tmp_path / "there", wheel)
  here = tmp_path / "here"
  (here / "configs").mkdir(parents=True)
  (here / "configs" / "mine.py").write_text(MINE)

  def run(*command):
    done = subprocess.run(list(map(str, command)), cwd=here, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "there")})
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()

  train = tmp_path / "there" / "bin" / "hope-train"
  code, said = run(train, "--config=configs/online.py")  # which imports another
  assert code == 1 and said[-1].startswith("ValueError: no --workdir")
  code, said = run(train, "--config=configs/mine.py", "--workdir=run")
  assert code == 1 and said[-1].startswith("ValueError: data.batch=0: set it to 1 or more")
  code, said = run(sys.executable, "-m", "hope_jax.evals.questions", "--checkpoint=none",
                   "--questions=none")
  assert code == 1 and said[-1].startswith("FileNotFoundError: no checkpoint in")
  assert sorted(path.name for path in here.iterdir()) == ["configs"]
