"""What version 0.1.0 computed and wrote: golden numbers and files of three tiny models.

    git clone --branch 0.1.0 <this repository> /elsewhere
    cd /elsewhere && PYTHONPATH=/elsewhere python <here>/make.py [folder]

folder: that of this file, if none is given.

It was run with hope_jax 0.1.0 (it refuses another one), one CPU device, and the environment that
tests/conftest.py sets, into /mnt/v010 (Orbax writes down where it wrote), and is kept as the
reference of what the numbers are; README.md lists them.
"""

import functools
import importlib.metadata
import itertools
import os
from pathlib import Path
import platform
import shutil
import sys
import tempfile

# As tests/conftest.py, and before jax is imported.
FLAGS = ("--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
         "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax
import jax.numpy as jnp
import numpy as np

from configs import online, smoke
import hope_jax
from hope_jax import checkpoint, checks, config as configs, conversation, evaluation, export
from hope_jax import generate, integrity, loader
from hope_jax import memorize, model, step as steps, train, weights, written

ROOT = Path(hope_jax.__file__).resolve().parents[1]
STEPS, MORE = 20, 4  # of training; of training that goes on from the checkpoint
RANDOM = np.random.default_rng(10)
INPUTS = {"tokens": RANDOM.integers(1, 17, 40), "prompt": RANDOM.integers(1, 17, 8),
          "text": RANDOM.integers(1, 17, 100)}


def tiny(c):
  c.model.update(dict(dim=16, layers=2, heads=2, vocab=24, embed_std=0.125))
  c.mixer.hidden = 2.0
  c.teach.chunk = 16
  c.data.update(dict(task="recall", recall_pairs=4, recall_keys=8, recall_taught=True, seq=64,
                     align=16, batch=4))
  c.optim.update(dict(lr=2e-2, warmup=4))
  c.train.update(dict(steps=STEPS, log_every=1, eval_every=STEPS, eval_batches=2, save_every=STEPS,
                      keep=1))
  return c


def selfmod():
  """configs/smoke.py: self-modifying linear memories; Muon steps one level every second step."""
  c = tiny(smoke.get_config())
  c.mixer.levels = (configs.Level("fast", 0), configs.Level("slow", 128))
  c.selfmod.update(dict(chunk_generators=8, chunk_memory=16))
  return c


def attention():
  """configs/online.py: attention that sees 24 tokens, levels that write in context,
  and one that AdamW steps every second step.
  """
  c = tiny(online.get_config())
  c.attention.window = 24
  c.mixer.levels = (configs.Level("fast", 8, lr=0.5),
                    configs.Level("slow", 32, rule="momentum", lr=0.5), configs.Level("outer", 128))
  c.optim.name = "adamw"
  return c


def hybrid():
  """Attention, a Titan memory, a self-modifier trained through writes, in-context levels; AdamW."""
  c = tiny(configs.base())
  c.model.kind = "hope_hybrid"
  c.mixer.in_context = True
  c.mixer.levels = (configs.Level("fast", 4, lr=0.5),
                    configs.Level("slow", 32, rule="nl_l2_precond", lr=0.02))
  c.titan.update(dict(hidden=1.0, period=8, lr=0.003))
  c.teach.update(dict(scale=0.5, clip=0.5, through_writes="full"))
  return c


MODELS = {"selfmod": selfmod, "attention": attention, "hybrid": hybrid}


@functools.lru_cache
def apply(frozen):
  """(params, tokens (T,), state or None) -> logits (T, V) in one call."""
  return jax.jit(lambda params, tokens_T, fast=None: model.HopeLM(frozen).apply(
      {"params": params}, tokens_T[None], fast,
      None if fast is None else jnp.ones_like(tokens_T)[None])[0][0])


def logits(c, params, ids, fast=None):
  return np.asarray(apply(model.frozen(c))(params, jnp.asarray(ids, jnp.int32), fast))


def ints(ids):
  return [int(i) for i in ids]


def trained(c):
  """(parameters after the steps, golden numbers)."""
  batches, train_step = iter(loader.train_batches(c)), steps.make_train_step(c)
  state, outs = steps.init_state(c, jax.random.key(c.seed)), []
  for batch in itertools.islice(batches, STEPS):
    state, out = train_step(state, batch)
    outs.append(jax.device_get({name: out[name] for name in ("loss", "grad_norm", "lr")}))
  gold = {f"train/{name}": np.stack([out[name] for out in outs]) for name in outs[0]}
  eval_step = functools.partial(steps.make_eval_step(c), state.params)
  rows = [jax.device_get(eval_step(batch))
          for _, batch in loader.eval_batches(c, c.train.eval_batches)]
  gold |= {f"eval/{name}": np.stack([row[name] for row in rows])
           for name in ("nats", "labels", "correct")}
  result = evaluation.evaluate(c, eval_step, lambda batch: batch)
  gold |= {f"eval/{name}": np.float64(result[name]) for name in ("loss", "accuracy")}
  return state.params, gold


def read(c, params):
  """Golden numbers of reading, writing text and memorizing; and what was memorized."""
  gold = {"logits": logits(c, params, INPUTS["tokens"])}
  greedy = generate.Stream(c, params)
  gold["generate/greedy"] = np.array(list(greedy.generate(ints(INPUTS["prompt"]), 16)))
  gold["generate/sampled"] = np.array(list(generate.Stream(c, params, temperature=1.0, top_p=0.9,
                                                           seed=3).generate(
      ints(INPUTS["prompt"]), 16)))
  # as python -m hope_jax.memorize does
  fast, reports = memorize.study(c, params, ints(INPUTS["text"]), progress=False)
  for name, report in reports.items():
    gold[f"memorize/{name}"] = report.nats_BxT[report.labels_BxT]
  for level, stats in reports["read"].stats.items():
    gold |= {f"memorize/stats/{level}/{name}": np.asarray(value) for name, value in stats.items()}
  for path, total in reports["read"].totals().items():
    gold |= {f"memorize/totals/{path}/{name}": np.float64(value) for name, value in total.items()}
  return gold, fast


def make(c, folder):
  """A run, its export and two conversations, written into the folder."""
  run = folder / "run"
  train.train(c, run)
  for entry in run.iterdir():
    if entry.name not in ("config.json", "checkpoints"):
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
  export.write(run, folder / "model.safetensors")
  params, c, _ = weights.load(run / "checkpoints")
  stream = generate.Stream(c, params)
  list(stream.generate(ints(INPUTS["prompt"]), 6))
  stream.save(folder / "chat")
  fast, _ = memorize.study(c, params, ints(INPUTS["text"]), progress=False)
  conversation.save(folder / "memorized", fast, conversation.owner(c, params) | {"pending": None})


def reloaded(folder):
  """Golden numbers of what lies in the folder, and the checkpoint's parameters."""
  run = folder / "run"
  c = configs.load(run / "config.json")
  with checkpoint.Checkpoints(run / "checkpoints", keep=1) as saved:
    like = jax.eval_shape(lambda: steps.init_state(c, jax.random.key(0)))
    state, position, _ = saved.restore(saved.newest_good(), like)
  batches, train_step, losses = iter(loader.train_batches(c)), steps.make_train_step(c), []
  batches.set_state(position)
  for batch in itertools.islice(batches, MORE):
    state, out = train_step(state, batch)
    losses.append(np.asarray(out["loss"]))
  params, _, _ = weights.load(run / "checkpoints")
  exported, _, _ = export.read(folder / "model.safetensors")
  gold = {"run/losses": np.stack(losses), "run/logits": logits(c, params, INPUTS["tokens"]),
          "export/logits": logits(c, exported, INPUTS["tokens"])}
  for kind in ("chat", "memorized"):
    stream, other = (generate.Stream(c, params),
                     generate.Stream(c, params, temperature=1.0, top_p=0.9, seed=3))
    stream.load(folder / kind)
    other.load(folder / kind)
    # what the next token written depends on: the one that was written and not read, then ids
    ids = ([] if stream.pending is None else [stream.pending]) + ints(INPUTS["prompt"])
    gold[f"{kind}/count"], gold[f"{kind}/ids"] = np.array(stream.count), np.array(ids)
    gold[f"{kind}/logits"] = logits(c, params, ids, stream.fast)
    gold[f"{kind}/greedy"] = np.array(list(stream.generate(ints(INPUTS["prompt"]), 8)))
    gold[f"{kind}/sampled"] = np.array(list(other.generate(ints(INPUTS["prompt"]), 8)))
  return gold, params


def environment():
  cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name"))
  facts = {"hope_jax": hope_version(), "jax": jax.__version__,
           "jaxlib": importlib.metadata.version("jaxlib"),
           "numpy": np.__version__, "python": platform.python_version(), "cpu": cpu,
           "cores": str(os.cpu_count()),
           "XLA_FLAGS": os.environ["XLA_FLAGS"], "JAX_PLATFORMS": os.environ["JAX_PLATFORMS"],
           "JAX_NUM_CPU_DEVICES": os.environ["JAX_NUM_CPU_DEVICES"]}
  return {f"environment/{name}": np.array(value) for name, value in facts.items()}


def hope_version():
  """Of the code that runs here, whatever is installed."""
  lines = (ROOT / "pyproject.toml").read_text().splitlines()
  return next(line.split('"')[1] for line in lines if line.startswith("version"))


def main(folder):
  if hope_version() != "0.1.0" or Path(smoke.__file__).resolve().parents[1] != ROOT:
    sys.exit(f"this is {ROOT}, version {hope_version()}: set PYTHONPATH to a clone of 0.1.0")
  for name, build in MODELS.items():
    c = build()
    checks.validate(c, jax.device_count())
    params, gold = trained(c)
    more, _ = read(c, params)
    shutil.rmtree(folder / name, ignore_errors=True)
    make(c, folder / name)
    shutil.make_archive(folder / name, "zip", folder / name)
    shutil.rmtree(folder / name)
    with tempfile.TemporaryDirectory() as copy:
      shutil.unpack_archive(folder / f"{name}.zip", copy)
      again, loaded = reloaded(Path(copy))
    gold |= more | again | {f"inputs/{key}": value.astype(np.int32)
                            for key, value in INPUTS.items()}
    apart = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params,
                                             loaded)))
    text = np.concatenate([INPUTS["prompt"], gold["generate/greedy"]])
    top = np.sort(logits(c, params, text)[7:-1])
    print(f"{name}: {sum(p.size for p in jax.tree.leaves(params)):,} parameters; loss "
          f"{gold['train/loss'][0]:.4f} to {gold['train/loss'][-1]:.4f}; its parameters are within "
          f"{apart:.1e} of the checkpoint's; likeliest token ahead by "
          f"{(top[:, -1] - top[:, -2]).min():.4f}; greedy {gold['generate/greedy']}, "
          f"{written.paths(c)}", flush=True)
    np.savez_compressed(folder / f"{name}.npz", **gold, **environment())


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parent)
