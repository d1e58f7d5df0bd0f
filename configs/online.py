"""Levels that write themselves while they read, on the embedded corpus: attention sees 64 tokens,
the rest is for the levels.

    python -m hope_jax.launch --config=configs/online.py --workdir=runs/online
    python -m hope_jax.memorize --checkpoint=runs/online --text=README.md --state=out/
"""

from configs import smoke
from hope_jax import config


def get_config():
  c = smoke.get_config()
  c.model.update(config.PRESETS["hope_attention"])
  c.attention.window = 64
  c.channel.hidden = 2.0
  c.channel.levels = (config.Level("fast", 64, lr=0.01), config.Level("slow", 256, lr=0.01))
  c.channel.in_context = True
  c.data.seq = 1024
  c.data.batch = 4
  return c
