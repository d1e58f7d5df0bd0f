"""The reference notes' target: the pilot with 32 layers of 1536, 8192 tokens, 100 billion of them.

    python -m hope_jax.launch --config=configs/target.py --workdir=runs/target --config.mesh.fsdp=8

1,334 M parameters, of which 378 M are the self-modifiers that only write: the notes' 1.3 B. They
give no hidden widths; with the pilot's (4 x 1536 in the four levels and the Titan memory) it would
be 5,789 M.
"""

from configs import pilot


def get_config():
  c = pilot.get_config()
  c.model.dim = 1536
  c.model.layers = 32
  c.model.heads = 24
  c.channel.hidden = 0.75
  c.titan.hidden = 1.0
  c.titan.period = 32
  c.data.seq = 8192
  c.data.batch = 64
  c.train.steps = 190_735  # 100 billion tokens
  c.teach.decay_start = 93_000
  c.teach.decay_duration = 15_000
  return c
