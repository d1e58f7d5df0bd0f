"""A fact stated once, 2 000 tokens before the question: 4 facts, 16 keys and values, gaps of up to 200 in training.

Takes 4 minutes of CPU time (9.5 min on two busy cores). 100 % from step 175; at a gap of 2 000 then 99.4 and 100 % (two
seeds), with nothing written 6.6 %, chance 6.2 %.

    python -m hope_jax.launch --config=configs/recall_long.py --workdir=runs/recall_long
    python evals/recall_long.py --checkpoint=runs/recall_long --gaps=0,500,1000,2000,4000
"""

from hope_jax import config


def get_config():
  c = config.base()
  c.data.task = "recall"
  c.data.recall_pairs = 4
  c.data.recall_keys = 16
  c.data.recall_gap = 200  # it learns not to write what fills; then longer gaps are recalled as well
  c.data.recall_fillers = 32
  c.data.seq = 256
  c.data.align = 64
  c.data.batch = 32
  c.model.vocab = 65  # id 0, keys, values, fillers
  c.model.dim = 64
  c.model.embed_std = 0.125  # as in recall.py
  c.model.layers = 2
  c.model.heads = 1
  c.mixer.hidden = 2.0
  c.selfmod.memory = "linear"
  c.selfmod.chunk_generators = 8
  c.selfmod.chunk_memory = 8
  c.selfmod.alpha_init = 0.999  # retention; 0.98 learns as fast, and knows nothing after 500 tokens
  c.optim.lr = 3e-3
  c.optim.warmup = 50
  c.optim.weight_decay = 0.0
  c.train.steps = 300
  c.train.log_every = 25
  c.train.eval_every = 25
  c.train.eval_batches = 8
  c.train.save_every = 150
  return c
