# %% [markdown]
# # Which memory stores and finds?
#
# A few minutes on two cores, no GPU. In the browser: upload this file in
# [Colab](https://colab.research.google.com/), and a wheel of hope_jax beside it.
#
# Recall without language: eight pairs of keys and values, then every key once. Models have 120 000
# parameters each, and see the same batches.

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

import matplotlib.pyplot as plt

from hope_jax import compare
from hope_jax.reports import comparison
from hope_jax.runtime import program, startup
from hope_jax.training import costs
from IPython.display import Markdown

startup.prepare(64)
names = ["transformer", "transformer_window", "gru", "gated_deltanet", "hope_selfmod"]
names = names[:2] if SMALL else names
found = {}
for name in names:
  c = program.configuration(f"configs/synthetic.py:mqar,{name}").copy_and_resolve_references()
  c.channel.in_context = False  # of HOPE the self-modifying memories alone
  c.data.recall_taught = False  # labels are answers
  found[name] = c
  print(f"{name:20} {costs.parameters(c)[0]:,} parameters")

# %%
workdir = Path("runs/notebooks/memories")
runs = compare.runs(found, dict.fromkeys(names, 2 if SMALL else 200), 1, workdir)
compare.train_all(runs, workers=1)

# %%
result = comparison.result([(run.name, run.seed, run.folder) for run in runs], names)
Markdown(comparison.table(result))

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
for run in result["runs"]:
  axes.plot([p["step"] for p in run["points"]], [p["score"] for p in run["points"]], ".-",
            label=run["name"])
axes.axhline(1 / 64, color="gray", linestyle=":", label="chance")
axes.set(xlabel="step", ylabel="recall on unseen sequences", ylim=(0, 1.05))
axes.legend(fontsize="small");

# %% [markdown]
# One seed each: initialisation decides much in such tasks. `evals/synthetic.py` asks all models at
# several seeds and at four times the length, with the controls of HOPE.
