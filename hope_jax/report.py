"""Pages that open without server or network: a run, a checkpoint, runs side by side, a text.

    python -m hope_jax.report run runs/smoke              # may be training: runs/smoke/report.html
    python -m hope_jax.report checkpoint runs/smoke
    python -m hope_jax.report compare runs/a runs/b --output=ab.html
    python -m hope_jax.memorize --checkpoint=runs/online --text=notes.txt --output=out.json
    python -m hope_jax.report memorized out.json          # token by token
    python -m hope_jax.report --memorized=out.json --output=out.png

The last draws what a text did to each memory (reports/memorized.py).
"""

from pathlib import Path

from absl import app, flags

from hope_jax.reports import document, memorized, memorized_text, runs
from hope_jax.runtime import program

KINDS = {"run": runs.of_run, "checkpoint": runs.of_checkpoint, "memorized": memorized_text.sections}


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("memorized", "JSON of memorize --output, to be drawn.", flag_values=values)
  program.define_path("output", "Page, or picture: .png, .pdf or .svg. Default: a page beside what "
                      "it shows.", flag_values=values)


def draw(path: str, output: Path) -> None:
  """The picture of a memorized text."""
  figure = memorized.draw(memorized.load(path))
  if output.suffix[1:] not in figure.canvas.get_supported_filetypes():
    raise ValueError(f"--output={output}: name a picture that ends with .png, .pdf or .svg")
  figure.savefig(output, dpi=120)


def page(kind: str, paths: list[Path], output: str | None) -> Path:
  """Writes a page; where it is."""
  first = paths[0]
  beside = (first / f"{kind if kind != 'run' else 'report'}.html" if first.is_dir()
            else first.with_suffix(".html"))
  output = program.ready(output or beside)
  document.check()
  sections = runs.of_runs(paths) if kind == "compare" else KINDS[kind](first)
  document.write(output, f"{kind}: {', '.join(path.name for path in paths)}", sections)
  return output


def main(argv, f: flags.FlagValues = flags.FLAGS):
  _, *words = argv
  with program.one_line(ImportError, OSError, ValueError):
    if f.memorized is not None and not words and f.output is not None:
      return draw(f.memorized, program.ready(f.output))
    kind, *paths = words or [""]
    if kind not in (*KINDS, "compare") or not paths or len(paths) > 1 and kind != "compare":
      raise app.UsageError("say run DIR, checkpoint DIR, compare DIR DIR or memorized FILE, or "
                           "--memorized=FILE --output=PICTURE")
    print(page(kind, [Path(program.path(text)) for text in paths], f.output))


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
