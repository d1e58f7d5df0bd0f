"""Where a run's numbers are shown, beside its metrics.jsonl: board.write(step, row), board.close().

    tensorboard   workdir/tb
    wandb         Weights & Biases (hope_jax[wandb]); WANDB_MODE=offline without network
    trackio       Trackio, on this machine (hope_jax[trackio])

A run that is resumed goes on in the same logged run: its name there lies in workdir/run_name.
"""

from collections.abc import Callable
import importlib.util
import json
from pathlib import Path
import secrets
from typing import Protocol

from tensorboardX import SummaryWriter

PROJECT = "hope_jax"


class Board(Protocol):
  """row: {name: number}."""

  def write(self, step: int, row: dict[str, float]) -> None:
    ...

  def close(self) -> None:
    ...


class TensorBoard:
  """Drops what it has of steps after `resumed`."""

  def __init__(self, workdir: Path, resumed: int, logged: int, config: dict):
    del logged, config
    self._writer = SummaryWriter(str(workdir / "tb"), purge_step=resumed + 1)

  def write(self, step: int, row: dict[str, float]) -> None:
    for name, x in row.items():
      self._writer.add_scalar(name, x, step)
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class _Remembering:
  """A board that drops nothing: steps up to `logged`, which it has, are not written again."""

  def __init__(self, workdir: Path, resumed: int, logged: int, config: dict):
    name = name_of(workdir, resumed < 0)
    self._logged, self._run = logged, self.begin(workdir, name, config)

  def begin(self, workdir: Path, name: str, config: dict):
    raise NotImplementedError

  def write(self, step: int, row: dict[str, float]) -> None:
    if step > self._logged:
      self._run.log(row, step=step)

  def close(self) -> None:
    self._run.finish()


class WeightsAndBiases(_Remembering):

  def begin(self, workdir: Path, name: str, config: dict):
    import wandb  # an extra, as trackio is
    return wandb.init(project=PROJECT, id=name, name=f"{workdir.name}-{name}", dir=str(workdir),
                      resume="allow", config=config)


class Trackio(_Remembering):

  def begin(self, workdir: Path, name: str, config: dict):
    import trackio
    return trackio.init(project=PROJECT, name=f"{workdir.name}-{name}", resume="allow", embed=False,
                        config=config)


BOARDS: dict[str, Callable[[Path, int, int, dict], Board]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}


def name_of(workdir: Path, anew: bool = False) -> str:
  """The run's own name, made when it starts."""
  path = workdir / "run_name"
  if anew or not path.exists():
    path.write_text(secrets.token_hex(4))
  return path.read_text().strip()


def check(names) -> None:
  """ValueError, naming the extra, for a board whose library is not here."""
  for name in names:
    if name != "tensorboard" and importlib.util.find_spec(name) is None:
      raise ValueError(f"train.boards names {name}, which is not installed: pip install "
                       f"'hope_jax[{name}]'")


def start(names, workdir: Path, resumed: int, logged: int, config: str) -> list[Board]:
  """The boards of these names.

  Args:
    resumed: the step that the run goes on from; -1: the start.
    logged: the last step that was written before.
    config: JSON.
  """
  return [BOARDS[name](workdir, resumed, logged, json.loads(config)) for name in names]
