"""Associative recall (MQAR): 8 key-value pairs, 64 keys, sequence 64. Can the memory store and find
what it read once?

Takes 80 s on two cores and reaches 100 % on unseen sequences from step 225.

    python -m hope_jax.launch --config=configs/recall.py --workdir=runs/recall
"""

from hope_jax import config


def get_config():
  c = config.base()
  c.data.task = "recall"
  c.data.recall_pairs = 8
  c.data.recall_keys = 64
  c.data.seq = 64
  c.data.align = 64
  c.data.batch = 64
  c.model.vocab = 129  # filler, keys, values
  c.model.dim = 64
  # at this learning rate smaller embeddings move faster than a memory can learn to use them
  c.model.embed_std = 0.125
  c.model.layers = 2
  c.model.heads = 1
  c.channel.hidden = 2.0
  c.selfmod.memory = "linear"
  c.selfmod.chunk_generators = 8
  c.selfmod.chunk_memory = 8
  c.optim.lr = 3e-3
  c.optim.warmup = 50
  c.optim.weight_decay = 0.0
  c.train.steps = 300
  c.train.log_every = 25
  c.train.eval_every = 25
  c.train.eval_batches = 8
  c.train.save_every = 150
  return c
