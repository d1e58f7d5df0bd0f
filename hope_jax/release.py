"""A trained model as a folder that anyone can check, and run with the package alone.

    python -m hope_jax.release --workdir=runs/pilot --output=release/ --evaluations=runs/pilot/evals
    python -m hope_jax.integrity verify release/
    python -m hope_jax.generate --checkpoint=release/ --prompt="..."

    model.safetensors   parameters, by the names of export.py
    checkpoints/STEP    the same for Orbax, without optimizer state
    config.json, tokenizer.*, metrics.jsonl, goodput.json
    evaluations/        the files given, as they are
    README.md           model card: its numbers are read from these files
    MANIFEST.json       size and SHA-256 of every file, licences, where it comes from
"""

from collections.abc import Iterator
from importlib import metadata
import json
from pathlib import Path
import shutil

from absl import app, flags
from ml_collections import ConfigDict

from hope_jax import config as configs, export
from hope_jax.checkpoints import sidecar, stored
from hope_jax.reading import opening
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import results
from hope_jax.training import costs

LOGS = ("metrics.jsonl", "goodput.json")
UNKNOWN = "not stated"


def scores(result: object, name: str = "") -> Iterator[tuple[str, dict]]:
  """(where, entry) of every number with an interval in a file of results."""
  if isinstance(result, dict):
    if {"value", "low", "high"} <= result.keys() and isinstance(result["value"], (int, float)):
      yield name, result
      return
    for key, value in result.items():
      if key not in ("config", "rows"):
        yield from scores(value, f"{name}/{key}" if name else key)


def validation(metrics: Path, step: int) -> dict:
  """The validation numbers of a step; {} where it was not evaluated."""
  lines = metrics.read_text().splitlines() if metrics.exists() else []
  rows = [row for row in map(json.loads, lines)
          if "validation/loss" in row and row["step"] == step]
  return {name: value for name, value in rows[-1].items() if isinstance(value, float)
          and name.startswith("validation/") and name.count("/") == 1} if rows else {}


def card(config: ConfigDict, facts: dict, folder: Path) -> str:
  """The model card, from what lies in the folder."""
  total, rest = costs.parameters(config)
  parts = [f"# {configs.describe(config)}, {total / 1e6:,.1f} million parameters\n",
           f"Step {facts['step']}; {rest / 1e6:,.1f} million without the embedding; licence: "
           f"{facts['licence']}. Made by hope_jax {facts['hope_jax']} on {facts['date']}.\n",
           "```bash\npython -m hope_jax.integrity verify .\n"
           "python -m hope_jax.generate --checkpoint=. --prompt=\"...\"\n```\n",
           "## Trained on\n", tables.markdown(["source", "kind", "licence"], [
               [name, kind, licence] for name, kind, licence in facts["sources"]])]
  if facts["origin"]:
    parts += [f"It began as {json.dumps(facts['origin'])}.\n"]
  if found := validation(folder / LOGS[0], facts["step"]):
    parts += ["## Validation, at this step\n", tables.markdown(
        ["number", "value"], [[name.partition("/")[2], f"{value:.4f}"]
                              for name, value in found.items()])]
  for path in sorted((folder / "evaluations").glob("*.json")):
    result = json.loads(path.read_text())
    rows = [[name, tables.score(entry)] for name, entry in scores(result)]
    parts += [f"## {path.stem}\n", f"`{result.get('command', UNKNOWN)}`\n",
              tables.markdown(["number", "value (95 %)"], rows)]
  return "\n".join(parts)


def write(workdir: Path, output: Path, evaluations: list[Path], licence: str,
          licences: dict[str, str]) -> None:
  """Makes the folder, whole or not at all. FileExistsError where there is one; else as export."""
  if output.exists():
    raise FileExistsError(f"{output} is there already: choose another --output")
  run, step = opening.find(workdir)
  meta = stored.read_meta(run / "checkpoints", step)
  config = configs.from_json(meta["config"])
  if unknown := licences.keys() - {source.name for source in config.data.sources}:
    raise ValueError(f"--licences: no source is called {', '.join(sorted(unknown))}; there are "
                     f"{', '.join(source.name for source in config.data.sources)}")
  folder = output.with_name(f".{output.name}.partial")
  shutil.rmtree(folder, ignore_errors=True)
  try:
    step = export.write(run, folder / "model.safetensors", step)
    export.import_run(folder / "model.safetensors", folder)
    own = export.read(folder / "model.safetensors")[2]["fingerprint"]
    for path in evaluations:
      if (of := json.loads(path.read_text()).get("fingerprint", own)) != own:
        raise ValueError(f"{path} is of another model ({of}, this one is {own}): leave it out")
    for log in LOGS:
      if (run / log).exists():
        shutil.copy(run / log, folder / log)
    (folder / "evaluations").mkdir()
    for path in evaluations:
      shutil.copy(path, folder / "evaluations" / path.name)
    facts = results.stamp("-m", "hope_jax.release") | {
        "hope_jax": metadata.version("hope_jax"), "step": step, "licence": licence,
        "origin": meta.get("origin", {}), "sources": [
            [source.name, source.kind, licences.get(source.name, UNKNOWN)]
            for source in config.data.sources] if config.data.task == "text" else []}
    (folder / "README.md").write_text(card(config, facts, folder))
    sidecar.seal(folder, facts, sidecar.MANIFEST)
    folder.rename(output)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def listed(given: list[str]) -> list[Path]:
  """Files of results, of folders those in them. ValueError for what is none, or two of one name."""
  paths = [Path(program.path(text)) for text in given]
  found = [path for own in paths
           for path in (sorted(own.glob("*.json")) if own.is_dir() else [own])]
  for path in found:
    try:
      good = isinstance(json.loads(path.read_text()), dict)
    except (ValueError, OSError):
      good = False
    if not good:
      raise ValueError(f"{path} is no file of results: leave it out")
  if len({path.name for path in found}) < len(found):
    raise ValueError("two evaluations have the same file name: rename one")
  return found


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("workdir", "Folder of the run.", required=True, flag_values=values)
  program.define_path("output", "Folder to make.", required=True, flag_values=values)
  flags.DEFINE_list("evaluations", [], "Files of results, or folders of them.", flag_values=values)
  flags.DEFINE_string("licence", UNKNOWN, "Of the parameters.", flag_values=values)
  flags.DEFINE_list("licences", [], "SOURCE:LICENCE, of what it was trained on.",
                    flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, ImportError, RuntimeError):
    if wrong := [text for text in f.licences if ":" not in text]:
      raise ValueError(f"--licences={wrong[0]}: write SOURCE:LICENCE")
    startup.prepare()
    output = Path(f.output)
    write(Path(f.workdir), output, listed(f.evaluations), f.licence,
          dict(text.split(":", 1) for text in f.licences))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    say(f"{output}: {size:,} bytes; check it with python -m hope_jax.integrity verify {output}")


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
