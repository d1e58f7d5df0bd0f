"""A run, opened for reading: its configuration, parameters and tokenizer."""

from pathlib import Path

from hope_jax.checkpoints import stored, weights
from hope_jax.data import tokenizer


def find(checkpoint: str | Path) -> tuple[Path, int | None]:
  """(folder of the run, step or None: the newest) of a run, its checkpoints or one of its steps."""
  path, step = Path(checkpoint), None
  if path.name.isdecimal() and path.absolute().parent.name == "checkpoints":
    path, step = path.absolute().parent, int(path.name)
  return (path.absolute().parent if path.absolute().name == "checkpoints" else path), step


def as_trained(config, step: int):
  """The configuration of a checkpoint, which knows its step where that decides about writes."""
  if config.teach.at_evaluation == "as_trained":
    config.teach.at_evaluation = f"step:{step}"
  return config


def load(checkpoint: str | Path):
  """(config, params, tokenizer) of what `find` finds, on the first device.

  The configuration knows the checkpoint's step: memories are written as they were trained there
  (teach.at_evaluation).

  Raises FileNotFoundError without a checkpoint, ValueError when the tokenizer is missing or not the
  checkpoint's own.
  """
  workdir, step = find(checkpoint)
  steps = workdir / "checkpoints"
  meta = stored.read_meta(steps, step)
  if meta["tokenizer"] == "none":
    raise ValueError(f"{workdir} was not trained on text and has no tokenizer: choose a run with "
                     "data.task=text")
  words = tokenizer.load(workdir)
  stored.check_tokenizer(meta, words.digest)
  params, config, meta = weights.load(steps, step=step)
  return as_trained(config, meta["step"]), params, words
