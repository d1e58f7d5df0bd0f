"""Are saved steps what was written?

    python -m hope_jax.integrity verify runs/smoke

verifies a run, its checkpoints, one step, a saved conversation, or a release.

One line for each step, then one for each file that differs, is missing, truncated or extra; exit
status 1 if there is any. What is checked against: checkpoints/sidecar.py.
"""

from pathlib import Path
import sys

from absl import app

from hope_jax.checkpoints import sidecar
from hope_jax.data.tokenizer import find
from hope_jax.runtime import program


def _folders(path: Path) -> list[Path]:
  """The steps that a path stands for. Raises FileNotFoundError when there is none."""
  if (path / "checkpoints").is_dir():
    path = path / "checkpoints"
  if (path / sidecar.SIDECAR).exists():
    return [path]
  if found := sidecar.steps(path):
    return [path / str(step) for step in found]
  if path.is_dir() and path.name.isdecimal():
    return [path]  # without a sidecar: `check` says so
  raise FileNotFoundError(f"no saved step in {path}: give a run, its checkpoints, one step or a "
                          "saved conversation")


def _beside(workdir: Path, newest: dict) -> tuple[list[str], list[str]]:
  """(faults, notes) of files beside a run's checkpoints, by the newest good step's sidecar."""
  faults, notes = [], []
  tokenizer, config = find(workdir), workdir / "config.json"
  if newest["tokenizer"] != "none" and not tokenizer.exists():
    faults.append(f"{tokenizer.name}: is missing")
  elif newest["tokenizer"] != "none" and sidecar.sha256(tokenizer) != newest["tokenizer"]:
    faults.append(f"{tokenizer.name}: differs from the one that step {newest['step']} was trained "
                  "with")
  if config.exists() and sidecar.sha256(config) != newest["config"]:
    notes.append(f"config.json: is not that of step {newest['step']}: edited, or the run was "
                 "started again with another")
  return faults, notes


def main(argv):
  if len(argv) != 3 or argv[1] != "verify":
    raise app.UsageError("say what to verify: python -m hope_jax.integrity verify DIR")
  path, damaged, newest = Path(argv[2]), False, None
  with program.one_line(FileNotFoundError):
    folders = _folders(path)
  for folder in folders:
    faults = sidecar.check(folder)
    if faults:
      print(f"{folder}: DAMAGED, {len(faults)} file(s)", *faults, sep="\n  ")
      damaged = True
    else:
      newest = sidecar.read(folder)
      total = sum(file["bytes"] for file in newest["files"].values())
      print(f"{folder}: good, {len(newest['files'])} files, {total / 1e6:,.1f} MB, code "
            f"{newest['code'][:12]}")
      for name in sidecar.strays(folder):
        print(f"  {name}: was not written with the step, and is ignored")
  if (path / sidecar.MANIFEST).exists():
    faults = sidecar.check(path, name=sidecar.MANIFEST)
    print(f"{path}: a release, {'DAMAGED' if faults else 'good'}", *faults, sep="\n  ")
    damaged = damaged or bool(faults)
  if newest and (path / "checkpoints").is_dir():
    faults, notes = _beside(path, newest)
    if faults or notes:
      print(f"{path}: {'DAMAGED' if faults else 'good'}", *faults, *notes, sep="\n  ")
    damaged = damaged or bool(faults)
  sys.exit(int(damaged))


def run():
  """Entry point of the console script."""
  app.run(main)


if __name__ == "__main__":
  run()
