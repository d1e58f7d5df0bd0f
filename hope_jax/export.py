"""Parameters to safetensors and back, a tensor a layer, by names that language-model readers know.

    python -m hope_jax.export --checkpoint=runs/smoke --output=smoke.safetensors --dtype=bfloat16
    python -m hope_jax.export --input=smoke.safetensors --workdir=runs/imported
    python -m hope_jax.export --checkpoint=runs/smollm_levels --state=out/ --output=smollm_manual/

The table of parameters (model/parameters.py) gives the names. Letters: H heads, K head width, M a
memory's hidden width, O its outputs (K; 1 for eta and alpha).

    *_proj.weight               matrices (out, in). qkv_proj: the rows of q, k, v, head by head
                                in each
    self_modifying.memory_*     one for each head: w_in (H, M, K), w_out (H, O, M),
                                w_skip (H, 1, K); weight (H, O, K) if linear; bias (H,).
                                memory_mem is M_mem of the paper; q_proj is (H, K, K)
    self_modifying.conv_*       (tap, width); tap 0 is the present token
    embed_tokens.weight         (vocabulary, width), also the head. At the input it is divided by
                                model.embed_std

The file's metadata: "hope_jax" (version of this format), "config" (JSON), "tokenizer" (digest),
"step", and "fingerprint", that of the parameters in float32 as the file has them. The tokenizer
lies beside the file.

An output without the ending .safetensors is a folder that transformers loads, where it has such a
model (foreign/families.py). --state merges what was memorized into the parameters.

An imported run has parameters and no optimizer state: it is for generate, memorize, evaluations and
--init_from.
"""

import os
from pathlib import Path
import shutil

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import config as configs
from hope_jax.checkpoints import arrays, sidecar, stored, weights
from hope_jax.data import tokenizer
from hope_jax.foreign import writing
from hope_jax.model import lm, mixers, parameters
from hope_jax.reading import merging, opening
from hope_jax.runtime import lock, program, startup
from hope_jax.runtime.startup import say

VERSION = "1"
METADATA = {"hope_jax", "config", "tokenizer", "step", "fingerprint"}
EXPORT = "python -m hope_jax.export --checkpoint=<run> --output=<file>"
MISSING = "export and import need safetensors: pip install 'hope_jax[export]'"


def parts(path: str, config) -> tuple[dict[str, tuple], bool]:
  """({name: its place in our array}, is it transposed?). ValueError: a parameter without a row."""
  row = parameters.row(path)
  if "{layer}" not in row.name:
    return {row.name: ()}, row.transposed
  module = path.split("/")[1]
  in_all = module not in mixers.TABLE
  layers = range(config.model.layers) if in_all else mixers.layers_of(config, module)
  places = {row.name: ()}
  if row.cuts:  # axes of the array: layer, head, part
    places = {row.name.replace("{part}", part): (slice(None), at)
              for part, at in row.cuts(config).items()}
  return {name.replace("{layer}", str(layer)): (i, *place)
          for i, layer in enumerate(layers) for name, place in places.items()}, row.transposed


def tensors(params, config) -> dict[str, np.ndarray]:
  """Our parameters, cut, named and turned."""
  out = {}
  for path, array in arrays.leaves(params).items():
    places, transposed = parts(path, config)
    array = np.asarray(array)
    for name, place in places.items():
      # safetensors takes memory as it lies, whatever the strides
      out[name] = np.asarray(array[place].T if transposed else array[place], order="C")
  return out


def assembled(named: dict[str, np.ndarray], config):
  """Inverse of `tensors`, in fresh parameters' types; ValueError for another set or shape."""
  like = jax.eval_shape(lambda: lm.init_params(config, jax.random.key(0)))
  wanted, built = {}, []
  for path, leaf in arrays.leaves(like).items():
    (places, transposed), array = parts(path, config), np.empty(leaf.shape, leaf.dtype)
    for name, place in places.items():
      target = array[(*place, ...)]  # a view, of a scalar too
      target = target.T if transposed else target
      wanted[name] = target.shape
      if name in named and named[name].shape == target.shape:
        target[...] = named[name]
    built.append(array)
  found = {name: tensor.shape for name, tensor in named.items()}
  arrays.check_same(found, wanted, ("the file", "its configuration"),
                    "the tensors do not fit the configuration in the file",
                    f"export the parameters again: {EXPORT}")
  return jax.tree.map(jnp.asarray, jax.tree.unflatten(jax.tree.structure(like), built))


def load(workdir: Path, step: int | None, dtype: str, state: str | Path | None):
  """(params, config, meta) of a run, with what a saved state has learned, if one is given."""
  params, config, meta = weights.load(workdir / "checkpoints", step=step)
  if state is not None:
    params = merging.merge(config, params, state)
  return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params), config, meta


def write_folder(workdir: str | Path, output: str | Path, step: int | None = None,
                 dtype: str = "float32", state: str | Path | None = None) -> int:
  """Writes a folder for transformers; returns the step. Raises as `write` and writing.write."""
  _safetensors()
  params, config, meta = load(Path(workdir), step, dtype, state)
  words = None if meta["tokenizer"] == "none" else tokenizer.find(workdir)
  writing.write(Path(output), params, config, meta.get("origin", {}), words)
  return meta["step"]


def write(workdir: str | Path, output: str | Path, step: int | None = None,
          dtype: str = "float32", state: str | Path | None = None) -> int:
  """Writes a run's parameters and, beside them, its tokenizer; returns the step.

  The file is whole or not there. Raises FileNotFoundError without a checkpoint, ValueError for a
  damaged one or another tokenizer, OSError for a full disk.
  """
  library, output = _safetensors(), program.ready(output)
  workdir, found = opening.find(workdir)
  params, config, meta = load(workdir, found if step is None else step, dtype, state)
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  facts = {"hope_jax": VERSION, "config": meta["config"], "tokenizer": meta["tokenizer"],
           "step": str(meta["step"]), "fingerprint": arrays.fingerprint(wide)}
  _copy_tokenizer(workdir, output.parent, meta)
  with lock.held(output.with_name(f".{output.name}.lock"), "another --output"):
    folder = output.with_name(f".{output.name}.partial")  # safetensors makes files of its own there
    shutil.rmtree(folder, ignore_errors=True)  # a killed process's
    try:
      folder.mkdir()
      whole = folder / output.name
      whole.touch()
      mode = whole.stat().st_mode  # safetensors leaves a file that only its owner may read
      library.numpy.save_file(tensors(params, config), whole, metadata=facts)
      whole.chmod(mode)
      os.replace(whole, output)
    except library.SafetensorError as error:
      raise OSError(f"{output} cannot be written ({error}): free some space or choose another "
                    "--output") from None
    finally:
      shutil.rmtree(folder, ignore_errors=True)
  return meta["step"]


def _copy_tokenizer(source: Path, target: Path, meta: dict) -> None:
  """Copies the tokenizer, if any, replacing no other. Raises ValueError, FileNotFoundError."""
  source = tokenizer.find(source)
  target = target / source.name
  if meta["tokenizer"] == "none":
    return
  if not source.is_file():
    raise FileNotFoundError(f"no {source}: put the {source.name} there that the model was "
                            "trained with")
  stored.check_tokenizer(meta, sidecar.sha256(source))
  if not target.exists():
    sidecar.copy(source, target)
  elif sidecar.sha256(target) != meta["tokenizer"]:
    raise ValueError(f"{target} is another model's tokenizer: choose another folder")


def read(path: str | Path):
  """(params float32, config, metadata) of what `write` wrote; else ValueError, naming the fix."""
  library, path = _safetensors(), Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no file {path}: write one with {EXPORT}")
  try:
    with library.safe_open(path, framework="numpy") as file:
      facts = file.metadata() or {}
      if missing := METADATA - facts.keys():
        raise ValueError(f"{path} was not written by hope_jax.export: its metadata has no "
                         f"{', '.join(sorted(missing))}, without which the model is not known; "
                         f"write one with {EXPORT}")
      if facts["hope_jax"] != VERSION:
        raise ValueError(f"{path} is of format {facts['hope_jax']}, this version of hope_jax reads "
                         f"{VERSION}: export it again")
      named = {name: file.get_tensor(name) for name in file.keys()}
  except library.SafetensorError as error:
    raise ValueError(f"{path} is no safetensors file, or a part of one ({error}): copy it again or "
                     f"write one with {EXPORT}") from None
  try:
    config = configs.from_json(facts["config"])
  except ValueError as error:
    raise ValueError(f"{path} has the configuration of another version of hope_jax ({error}): "
                     "import it with that one") from None
  params = assembled(named, config)
  if (found := arrays.fingerprint(params)) != facts["fingerprint"]:
    raise ValueError(f"{path} is damaged or was changed: its parameters have fingerprint {found}, "
                     f"{facts['fingerprint']} were written; copy it again or write one with "
                     f"{EXPORT}")
  return params, config, facts


def import_run(path: str | Path, workdir: str | Path) -> int:
  """Makes a run's folder with the file's parameters as its only checkpoint; returns their step.

  Raises ValueError as `read` and for another tokenizer, FileExistsError for a folder that has a
  checkpoint.
  """
  workdir = Path(workdir)
  params, _, facts = read(path)
  if sidecar.steps(workdir / "checkpoints"):
    raise FileExistsError(f"{workdir} has a checkpoint already: choose another --workdir")
  with lock.held(workdir / ".lock", "another --workdir"):
    _copy_tokenizer(Path(path).parent, workdir, facts)
    program.replace(workdir / "config.json", facts["config"])
    weights.save(workdir / "checkpoints", int(facts["step"]), params,
                 {"config": facts["config"], "tokenizer": facts["tokenizer"]})
  return int(facts["step"])


def _safetensors():
  try:
    import safetensors.numpy
  except ImportError:
    raise ImportError(MISSING) from None
  return safetensors


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Folder of the run whose parameters are exported to "
                                          "--output.", flag_values=values)
  program.define_path("output", "The .safetensors file to write, or the folder for transformers.",
                      flag_values=values)
  program.define_path("state", "What was memorized, to be merged in.", flag_values=values)
  flags.DEFINE_integer("step", None, "Step to export. Default: the newest good one.",
                       flag_values=values)
  flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the exported numbers.",
                    flag_values=values)
  program.define_path("input", "The safetensors file to import into --workdir.",
                      flag_values=values)
  program.define_path("workdir", "Folder to make for the imported run.", flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  given = [name for name in ("checkpoint", "output", "input", "workdir")
           if f[name].value is not None]
  if len(argv) > 1 or given not in (["checkpoint", "output"], ["input", "workdir"]):
    raise app.UsageError("give --checkpoint and --output to export, or --input and --workdir to "
                         "import")
  with program.one_line(ValueError, OSError, ImportError, RuntimeError):
    startup.prepare()
    if f.output is not None:
      one = Path(f.output).suffix == ".safetensors"
      step = (write if one else write_folder)(f.checkpoint, f.output, f.step, f.dtype, f.state)
      size = (Path(f.output) if one else Path(f.output) / "model.safetensors").stat().st_size
      say(f"{f.output}: step {step} of {f.checkpoint}, {size:,} bytes")
    else:
      step = import_run(f.input, f.workdir)
      say(f"{f.workdir}: step {step}, without optimizer state; go on with python -m "
          f"hope_jax.generate --checkpoint={f.workdir}, or train from it with "
          f"--init_from={f.workdir}")


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
