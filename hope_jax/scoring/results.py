"""Files of results: when, how, with what and of which model, and what the memories did.

    results.ready("out.json")                                              # before the work
    results.write("out.json", results.stamp("evals/questions.py"), results.of_model(...), numbers)

Scores with their intervals come from intervals.py, what each memory did from `study.Report.totals`.
"""

from collections.abc import Sequence
import datetime
import json
import os
from pathlib import Path
import platform
import shlex
import sys

import jax

from hope_jax import config as configs
from hope_jax.checkpoints import arrays
from hope_jax.reading import reader, study
from hope_jax.runtime import program


def ready(path: str | Path) -> Path:
  """Makes the folder of a file that comes later; OSError if it could not be written there."""
  return program.ready(path)


def stamp(*called: str) -> dict[str, str]:
  """{"date": now, "command": this call of a program, as python is told of it}."""
  return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
          "command": shlex.join(["python", *called, *sys.argv[1:]])}


def of_model(config, params, tokenizer: str) -> dict:
  """Which model was read with: its configuration, digests of its parameters and its tokenizer.

  And how strongly its levels are written, 1 being their full strength.
  """
  return {"fingerprint": arrays.fingerprint(params), "tokenizer": tokenizer,
          "chunk": study.size(config), "strength": reader.shares(config),
          "config": json.loads(configs.to_json(config))}


def machine(*packages) -> dict:
  """Where times were measured, and with which versions."""
  device = jax.devices()[0]
  return {"device": {"kind": device.device_kind, "platform": device.platform,
                     "processor": platform.machine(), "devices": jax.device_count(),
                     "cores": os.cpu_count(), "load": os.getloadavg()},
          "versions": {"python": platform.python_version()}
          | {package.__name__: package.__version__ for package in (jax, *packages)}}


def memories(totals: Sequence[dict], moved: dict | None = None) -> dict:
  """What each memory did: means of several `Report.totals`. RuntimeError, saying why, for one that
  was never written, or where self-modifying memories have not moved (`moved`: their statistics).
  """
  means = study.mean_totals(totals)
  study.check_updates(means)
  if moved is not None:
    study.check_moved(moved)
  return means


def write(path: str | Path, *facts: dict) -> None:
  """All facts as one JSON object; the file is whole or as it was."""
  program.replace(path, json.dumps({name: value for part in facts for name, value in part.items()},
                                   indent=1) + "\n")


class Partial:
  """Rows scored so far, in a file beside the output, for an interrupted run of equal settings."""

  def __init__(self, path: str | Path, settings: dict):
    self._path, head = Path(path), json.dumps(settings) + "\n"
    lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
    # the last may be cut
    lines = [line for line in lines if line.endswith("\n")] if lines[:1] == [head] else [head]
    try:
      self.batches = [json.loads(line) for line in lines[1:]]
    except ValueError as error:
      raise ValueError(f"{path} is damaged ({error}): delete it to score all rows again") from None
    self._path.write_text("".join(lines))

  def add(self, rows: list[dict]) -> None:
    self.batches.append(rows)
    with self._path.open("a") as file:
      file.write(json.dumps(rows) + "\n")

  def close(self) -> None:
    """The output is written: the file goes."""
    self._path.unlink()
