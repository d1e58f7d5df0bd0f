# %% [markdown]
# # A fact, and then two thousand tokens
#
# A few minutes on two cores, no GPU. In the browser: upload this file in
# [Colab](https://colab.research.google.com/), and a wheel of hope_jax beside it.
#
# Four facts are stated, other tokens follow, then each is asked for once. In training up to 200
# tokens lie between; afterwards as many as you like. The state does not grow.

# %%
import glob
import importlib.util
import os

if importlib.util.find_spec("hope_jax") is None:  # Colab, or any other empty machine
  wheel = os.environ.get("HOPE_JAX") or [*glob.glob("hope_jax-*.whl"), "."][0]
  failed = os.system(f"pip install -q '{wheel}[plots]'")
  assert not failed, "upload a wheel of hope_jax, or set HOPE_JAX to a wheel or a checkout"
SMALL = bool(os.environ.get("HOPE_JAX_SMALL"))  # as tests run it: a few steps

# %%
from pathlib import Path
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from hope_jax.data import loader
from hope_jax.model import lm
from hope_jax.model.state import fast_bytes
from hope_jax.reading import opening, sequences
from hope_jax.checkpoints import weights
from hope_jax.runtime import program, startup
from hope_jax.scoring import intervals
from hope_jax.training import loop

startup.prepare(32)
config = program.configuration("configs/recall_long.py").copy_and_resolve_references()
config.train.update(dict(steps=2 if SMALL else 175, log_every=25, eval_every=25, save_every=175))
workdir = Path("runs/notebooks/long")
loop.train(config, workdir);

# %%
params, config, _ = weights.load(workdir / "checkpoints", step=config.train.steps)
print(f"{fast_bytes(lm.init_fast(config, 1)):,} bytes of state, after any number of tokens")

def at(gap, write=True):
  """The same model, asked after so many tokens; write=False: memories stay as they start."""
  c = config.copy_and_resolve_references().unlock()
  places = c.data.seq - c.data.recall_gap
  c.data.update(recall_gap=gap, seq=-(-(places + gap) // c.data.align) * c.data.align, batch=16)
  c.teach.paths = () if write else ("none",)
  return c

def accuracy(c, batches):
  read = jax.jit(lambda params, batch: sequences.read(c, params, batch)[0]["correct_BxC"])
  right = asked = 0
  for _, batch in loader.eval_batches(c, batches):
    right, asked = right + int(read(params, batch).sum()), asked + int((batch["labels"] >= 0).sum())
  return right / asked

# %% [markdown]
# Memory on, and the control: the same parameters, nothing written. Intervals are of 95 %.

# %%
gaps, count = ([0, 50], 1) if SMALL else ([0, 200, 500, 1000, 2000], 4)
found = {"memory on": [], "memory off": []}
for gap in gaps:
  for name, values in found.items():
    values.append(accuracy(at(gap, name == "memory on"), count))
  print(f"gap {gap:5}", {name: f"{values[-1]:.3f}" for name, values in found.items()})

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
for name, values in found.items():
  low, high = np.array([intervals.wilson(value, 16 * count) for value in values]).T
  line, = axes.plot(gaps, values, "o-", label=name)
  axes.fill_between(gaps, low, high, alpha=0.2, color=line.get_color())
axes.axhline(1 / config.data.recall_keys, color="gray", linestyle=":", label="chance")
axes.set(xlabel="tokens between fact and question", ylabel="recall", ylim=(0, 1.05))
axes.legend();
