"""Imports a pretrained model of the Llama family, or stacks levels on one of our runs.

    python -m hope_jax.pretrained --model=SmolLM2-135M-Instruct/ --workdir=runs/smollm
    python -m hope_jax.pretrained --model=model.Q4_1.gguf --workdir=runs/smollm
    python -m hope_jax.pretrained --model=runs/smollm --config=configs/levels.py:runs/smollm \\
        --workdir=runs/smollm_levels

The model is a folder of Hugging Face (config.json, safetensors, tokenizer.json), a GGUF file, or a
name on the hub. Known are Llama 2 and 3, SmolLM, Mistral, Qwen2 and Qwen3. The workdir is one of
ours, with parameters and no optimizer state. Where they come from is in their checkpoint's meta:
"origin": {"name", "licence", "source", "files": {name: sha256}}.
"""

import json
from pathlib import Path

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from hope_jax import config as configs
from hope_jax.checkpoints import sidecar, weights
from hope_jax.data import byte_pairs, tokenizer
from hope_jax.foreign import families, folder, gguf_file, names
from hope_jax.foreign.source import Source
from hope_jax.model import checks
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.training import costs, stack


def read(model: str) -> Source:
  """What there is to import. Raises ValueError naming what is missing, damaged or not known."""
  path = Path(program.path(model))
  if path.is_file() and path.suffix == ".gguf":
    return gguf_file.read(path)
  if path.is_file():
    raise ValueError(f"{path} is no .gguf file: give one, or the folder with config.json and "
                     "safetensors")
  return folder.read(path if path.is_dir() else folder.fetch(model))


def convert(source: Source, context: int | None = None, dtype: str = "float32"):
  """(params, config) of ours. Raises ValueError as `families.ours` and `names.assemble`.

  Args:
    dtype: of parameters, activations and matrix products.
  """
  config = families.ours(source.config, context)
  config.model.dtype = dtype
  checks.validate(config)
  count = sum(leaf.size for leaf in jax.tree.leaves(costs.param_shapes(config)))
  check_memory(count * jnp.dtype(dtype).itemsize, dtype)
  return names.assemble(source, config, jnp.dtype(dtype)), config


def check_memory(needed: int, dtype: str) -> None:
  """ValueError where so many bytes are not free."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return
  free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")),
              needed)
  if needed > free:
    fix = "set --dtype=bfloat16" if dtype == "float32" else "choose a smaller model"
    raise ValueError(f"the parameters need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of "
                     f"memory are free: {fix}, or end other programs")


def make_run(workdir: Path, params, config, digest: str, origin: dict) -> None:
  """The folder of a run with these parameters as its only checkpoint, of step 0."""
  text = configs.to_json(config)
  weights.save(workdir / "checkpoints", 0, params,
               {"config": text, "tokenizer": digest, "origin": origin})
  program.replace(workdir / "config.json", text)


def import_model(model: str, workdir: str | Path, *, context: int | None = None,
                 dtype: str = "float32") -> dict:
  """Makes a run's folder of a model; returns its origin.

  Raises ValueError as `read` and `convert`, FileExistsError for a folder that has a checkpoint.
  """
  workdir, digest, words = Path(workdir), "none", None
  if sidecar.steps(workdir / "checkpoints"):
    raise FileExistsError(f"{workdir} has a checkpoint already: choose another --workdir")
  source = read(model)
  workdir.mkdir(parents=True, exist_ok=True)
  if source.tokenizer is not None:
    (workdir / byte_pairs.FILE).write_text(json.dumps(source.tokenizer, ensure_ascii=False))
    words = tokenizer.load(workdir)
    digest = words.digest
    check_vocabulary(words.size, source.config.get("vocab_size") or 0)
  else:
    say("no tokenizer.json: the run has no tokenizer, and reads token ids alone")
  params, config = convert(source, context, dtype)
  if words is None:
    config.data.task = "recall"
  origin = source.about | {"positions": source.config.get("max_position_embeddings")}
  make_run(workdir, params, config, digest, origin)
  return origin


def check_vocabulary(tokens: int, vocab: int) -> None:
  """ValueError unless a model's table has a row for every token, and few more (they are padded)."""
  if not vocab * 0.9 <= tokens <= vocab:
    raise ValueError(f"the tokenizer has {tokens:,} tokens and the model {vocab:,}: it is another "
                     "model's; put the model's own tokenizer.json in its folder")


def stack_levels(run: str | Path, config, workdir: str | Path) -> dict:
  """Makes a run's folder of another run's model with the levels of `config` stacked on it.

  Raises FileNotFoundError, ValueError as `stack.load`, FileExistsError as `import_model`.
  """
  workdir = Path(workdir)
  if sidecar.steps(workdir / "checkpoints"):
    raise FileExistsError(f"{workdir} has a checkpoint already: choose another --workdir")
  checks.validate(config)
  params, meta = stack.load(config, run)
  workdir.mkdir(parents=True, exist_ok=True)
  if meta["tokenizer"] != "none":
    found = tokenizer.find(run)
    (workdir / found.name).write_bytes(found.read_bytes())
  make_run(workdir, params, config, meta["tokenizer"], meta.get("origin", {"source": str(run)}))
  return meta.get("origin", {})


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("model", None, "Folder of Hugging Face, .gguf file, name on the hub, or a "
                      "run of ours (with --config).", flag_values=values, required=True)
  program.define_path("workdir", "Folder to make.", flag_values=values, required=True)
  flags.DEFINE_integer("context", None, "Tokens that attention keeps while a text is read. "
                       "Default: those the model was trained for, at most "
                       f"{families.CONTEXT}.",
                       lower_bound=1, flag_values=values)
  flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of parameters and products.",
                    flag_values=values)
  config_flags.DEFINE_config_file("config", None, "Configuration whose levels are stacked on a run "
                                  "of ours: configs/levels.py:<run>.", flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: name the model with --model=...")
  with program.one_line(ValueError, OSError, RuntimeError):
    startup.prepare()
    if f.config is not None:
      stack_levels(program.path(f.model), f.config, f.workdir)
      say(f"{f.workdir}: {f.model} with levels; go on with python -m hope_jax.memorize "
          f"--checkpoint={f.workdir} --text=<file> --state=<folder>")
      return
    origin = import_model(f.model, f.workdir, context=f.context, dtype=f.dtype)
    say(f"{f.workdir}: {origin['name']}, licence {origin['licence']}; go on with python -m "
        f"hope_jax.generate --checkpoint={f.workdir} --interactive --chat")


def run():
  """Entry point of the console script."""
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=program.parse_flags)


if __name__ == "__main__":
  run()
