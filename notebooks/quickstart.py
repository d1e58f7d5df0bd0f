# %% [markdown]
# # Train a HOPE model and let it write
#
# A few minutes on two cores, no GPU. In the browser: upload this file in
# [Colab](https://colab.research.google.com/), and a wheel of hope_jax beside it.
#
# A HOPE model replaces attention by memories that are written at every token, and the MLP by levels
# that are updated at their own pace. Here: two layers, on text that every Python carries.

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

from hope_jax.reading import opening
from hope_jax.reading.stream import Stream
from hope_jax.runtime import program, startup
from hope_jax.training import costs, loop

startup.prepare(16)
config = program.configuration("configs/smoke.py").copy_and_resolve_references()
config.train.update(dict(steps=2 if SMALL else 200, log_every=20, eval_every=50))
print(f"{costs.parameters(config)[0]:,} parameters")

# %% [markdown]
# Training. Stopped at any moment, the same call goes on where it was.

# %%
workdir = Path("runs/notebooks/quickstart")
final = loop.train(config, workdir)
print(f"{final['bpb']:.3f} bits per byte; an interpolated bigram model: {final['bigram_bpb']:.3f}")

# %%
rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
figure, axes = plt.subplots(figsize=(7, 3.5))
for key, style in (("train/bpb", "-"), ("validation/bpb", "o-")):
  points = [(row["step"], row[key]) for row in rows if key in row]
  axes.plot(*zip(*points), style, label=key)
axes.axhline(final["bigram_bpb"], color="gray", linestyle=":", label="bigram")
axes.set(xlabel="step", ylabel="bits per byte")
axes.legend();

# %% [markdown]
# Was anything written? The distance of every memory from where it started, at the end of a
# sequence, in the first layer. A memory that stays at 0 would be no memory.

# %%
last = [row for row in rows if "memory/0/moved/mem" in row][-1]
for name, value in last.items():
  if name.startswith("memory/0/moved"):
    print(f"{name.split('/')[-1]:8} {value:.3f}")

# %% [markdown]
# It writes token by token, in constant memory: what it has read is in its memories, of one size
# however long the text.

# %%
config, params, tokenizer = opening.load(workdir)
stream = Stream(config, params, temperature=0.7, top_p=0.95, seed=1)
prompt = [*tokenizer.begin, *tokenizer.encode("def read(self):")]
print(tokenizer.decode([*prompt, *stream.generate(prompt, 16 if SMALL else 120)]))
