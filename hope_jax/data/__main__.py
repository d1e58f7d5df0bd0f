"""Builds the data of a configuration, or verifies them, and prints what is in them.

    python -m hope_jax.data --config=configs/pilot.py
"""

from absl import app

from hope_jax.data import tokenized
from hope_jax.runtime import program


def run() -> None:
  """Entry point of the console script."""
  chosen = program.define_config("Configuration file, of which the section data is used.")

  def main(_):
    with program.one_line(ValueError, OSError):
      print(tokenized.build(chosen.value, verify=True))
      print(tokenized.table(chosen.value))

  app.run(main, flags_parser=program.parse_flags)


if __name__ == "__main__":
  run()
