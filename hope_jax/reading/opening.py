"""A run, opened for reading: its configuration, parameters and tokenizer."""

from pathlib import Path

from hope_jax.checkpoints import stored, weights
from hope_jax.data.tokenizer import Tokenizer


def load(workdir: str | Path):
  """(config, params, tokenizer) of a run's last checkpoint, on the first device.

  Raises FileNotFoundError without a checkpoint, ValueError when the tokenizer is missing or not the
  checkpoint's own.
  """
  steps = Path(workdir) / "checkpoints"
  meta = stored.read_meta(steps)
  if meta["tokenizer"] == "none":
    raise ValueError(f"{workdir} was not trained on text and has no tokenizer: choose a run with "
                     "data.task=text")
  tokenizer = Tokenizer(Path(workdir) / "tokenizer.model")
  stored.check_tokenizer(meta, tokenizer.digest)
  params, config, _ = weights.load(steps)
  return config, params, tokenizer
