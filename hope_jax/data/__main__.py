"""Builds the data of a configuration, or verifies them, and prints what is in them.

    python -m hope_jax.data --config=configs/pilot.py
    python -m hope_jax.data --config=configs/data/sample.py           # a recipe: pipeline/recipe.py
    python -m hope_jax.data --config=configs/data/sample.py --verify  # that nothing has changed
    python -m hope_jax.data --config=configs/data/sample.py --report=report.html
    python -m hope_jax.data --config=configs/data/sample.py --coverage=text.txt --baseline=kept.json
"""

from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from hope_jax.data import tokenized
from hope_jax.runtime import program


def run() -> None:
  """Entry point of the console script."""
  chosen = program.define_config("Configuration file, of which the section data is used; or a "
                                 "recipe.")
  flags.DEFINE_bool("verify", False, "Of a recipe: read again all that it has made.")
  program.define_path("report", "Of a recipe: the HTML page to write about what it has made.")
  program.define_path("coverage", "Of a recipe: text to read with its tokenizer.")
  program.define_path("baseline", "How --coverage was read before; written if there is none.")

  def main(_):
    with program.one_line(ValueError, OSError):
      if "model" not in chosen.value:
        _follow(chosen.value, flags.FLAGS)
        return
      print(tokenized.build(chosen.value, verify=True))
      print(tokenized.table(chosen.value))

  app.run(main, flags_parser=program.parse_flags)


def _follow(recipe: ConfigDict, f: flags.FlagValues) -> None:
  try:
    from hope_jax.data.pipeline import build, coverage, manifest, page, recipe as recipes
  except ModuleNotFoundError as error:
    raise ValueError(f"a recipe needs the library {error.name.split('.')[0]}: pip install "
                     "'hope_jax[data]'") from None
  folder = recipes.folder(recipe)
  if bool(f.coverage) != bool(f.baseline):
    raise ValueError("--coverage goes with --baseline: give both")
  if f.verify:
    print(manifest.verify(folder))
    return
  if f.report:
    program.ready(f.report)
  facts = build.make(recipe)
  if f.report:
    page.write(recipe, Path(f.report))
  if f.coverage:
    print(coverage.check(folder / "shards", f.coverage, f.baseline))
    return
  print(manifest.table(facts))
  print(f"shards for data.dir: {recipes.shards(recipe)}")


if __name__ == "__main__":
  run()
