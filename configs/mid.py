"""The reference notes' middle size: the pilot with 24 layers of 1024, 4096 tokens, 30 billion of
them.

    python -m hope_jax.launch --config=configs/mid.py --workdir=runs/mid --config.mesh.fsdp=8

764 M parameters, of which 126 M are the self-modifiers that only write: the notes' 760 M. They give
no hidden widths; with the pilot's (4 x 1024 in the four levels and the Titan memory) it would be
1,946 M.
"""

from configs import pilot


def get_config():
  c = pilot.get_config()
  c.model.dim = 1024
  c.model.layers = 24
  c.model.heads = 16
  c.channel.hidden = 2.25
  c.titan.hidden = 1.0
  c.titan.period = 16
  c.data.seq = 4096
  c.data.batch = 64
  c.train.steps = 114_441  # 30 billion tokens
  c.teach.decay_start = 56_000
  c.teach.decay_duration = 9_000
  return c
