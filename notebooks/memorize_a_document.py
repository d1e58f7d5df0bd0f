# %% [markdown]
# # A model that learns a document while it reads it
#
# A few minutes on two cores, no GPU. In the browser: upload this file in
# [Colab](https://colab.research.google.com/), and a wheel of hope_jax beside it.
#
# The model sees 64 tokens; two levels of every layer write themselves as it reads. Parameters never
# change: what was learned is the state of one reader, and another one knows nothing of it.

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

from hope_jax.reading import opening, study
from hope_jax.reports import memorized
from hope_jax.runtime import program, startup
from hope_jax.training import loop
from IPython.display import Image

startup.prepare(4)
config = program.configuration("configs/online.py").copy_and_resolve_references()
config.train.update(dict(steps=2 if SMALL else 150, log_every=25, eval_every=50))
config.data.seq = 256 if SMALL else 1024
workdir = Path("runs/notebooks/memorize")
loop.train(config, workdir);

# %% [markdown]
# A text that no training saw, read twice. *before*: nothing is written. *read*: it is, chunk by
# chunk, so later chunks know the earlier ones. *after*: read again, with what was learned.

# %%
import this  # Python's own verses; their text comes out of a cipher
text = "".join(this.d.get(letter, letter) for letter in this.s) * (1 if SMALL else 3)
config, params, tokenizer = opening.load(workdir)
ids = [*tokenizer.begin, *tokenizer.encode(text)]
fast, reports = study.study(config, params, ids, steps=1)
for name, report in reports.items():
  print(f"{name:8} {float(report.loss_B[0]):.3f} nats per token")

# %%
memorized.draw(study.describe(config, reports)).savefig("memorized.png", dpi=80)
Image("memorized.png")

# %% [markdown]
# The control: the same text read by levels that write with the other sign. If that helped as much,
# it would not be learning.

# %%
reverse = config.copy_and_resolve_references()
reverse.control.sign = -1
_, other = study.study(reverse, params, ids, steps=1)
for name, each in (("learned", reports), ("reversed", other)):
  gain = float(each["before"].loss_B[0] - each["after"].loss_B[0])
  print(f"{name:9} gain {gain:+.3f} nats per token")

# %% [markdown]
# How many writes were made, and how far each level moved: an evaluation whose memory did nothing
# would be worth nothing.

# %%
for path, total in reports["read"].totals().items():
  print(f"{path:10} {total['updates']:6.1f} updates a layer, moved {total['moved']:.3g}")
