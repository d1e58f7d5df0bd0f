"""Draws what a text did to each memory (reports/memorized.py).

    python -m hope_jax.memorize --checkpoint=runs/smoke --text=notes.txt --output=out.json
    python -m hope_jax.report --memorized=out.json --output=out.png
"""

from absl import app, flags

from hope_jax.reports import memorized
from hope_jax.runtime import program


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("memorized", "JSON of memorize --output.", flag_values=values,
                      required=True)
  program.define_path("output", "Picture to write: .png, .pdf or .svg.", flag_values=values,
                      required=True)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: name the file with --memorized=...")
  with program.one_line(ImportError, OSError, ValueError):
    output = program.ready(f.output)
    figure = memorized.draw(memorized.load(f.memorized))
    if output.suffix[1:] not in figure.canvas.get_supported_filetypes():
      raise ValueError(f"--output={output}: name a picture that ends with .png, .pdf or .svg")
    figure.savefig(output, dpi=120)


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
