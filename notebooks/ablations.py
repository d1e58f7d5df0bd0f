# %% [markdown]
# # What is each part worth?
#
# A few minutes on two cores, no GPU, at a toy size: the way, not the verdict. In the browser:
# upload this file in [Colab](https://colab.research.google.com/), and a wheel of hope_jax beside
# it. The verdicts come from `python -m hope_jax.ablate`, which this page can read.

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
import json
from pathlib import Path

import matplotlib.pyplot as plt

from hope_jax import ablate, compare
from hope_jax.reports import comparison
from hope_jax.runtime import program, startup
from IPython.display import Markdown

startup.prepare(8)
SETS = program.module("configs/ablations.py").SETS
for name, changes in SETS.items():
  print(f"{name:10} {', '.join(changes)}")

# %% [markdown]
# Three of them, at two seeds: all levels, one level, and writes of the other sign. Every model sees
# the same batches at the same seed, so differences are paired.

# %%
names = ["full", "cms_one", "reversed"][:2 if SMALL else 3]
settings = ["model.dim=64", "model.layers=2", "data.batch=8", "train.eval_batches=4"]
found = {name: compare.named([f"configs/ablations.py:{name}"], settings)[name] for name in names}
workdir = Path("runs/notebooks/ablations")
steps, seeds = (2, 1) if SMALL else (60, 2)
runs = compare.runs(found, dict.fromkeys(names, steps), seeds, workdir)
compare.train_all(runs, workers=1)

# %%
result = comparison.result([(run.name, run.seed, run.folder) for run in runs], names)
Markdown(comparison.table(result))

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
for number, name in enumerate(names):
  for run in result["runs"]:
    if run["name"] == name:
      axes.plot([p["tokens"] for p in run["points"]], [p["score"] for p in run["points"]], ".-",
                color=f"C{number}", label=name if run["seed"] == 0 else None)
axes.set(xlabel="tokens", ylabel="validation, bits per byte")
axes.legend();

# %% [markdown]
# What each memory did: how far a step's writes moved it, mean over layers and logged steps.

# %%
for run in runs[:len(names)]:
  moved = ablate.moved(run.folder)
  print(f"{run.name:10}", {path: round(value, 4) for path, value in moved.items()})

# %% [markdown]
# A whole report of `python -m hope_jax.ablate --workdir=runs/ablations`, where there is one:

# %%
report = Path("runs/ablations/reports/ablations.json")
if report.exists():
  for name, part in json.loads(report.read_text())["sets"].items():
    display(Markdown(f"## {name}\n\n{comparison.table(part)}"))
else:
  print("none yet")
