"""A fact stated once, 2 000 tokens before the question: 4 facts, 16 keys and values, gaps of up to
200 in training.

Takes 4 minutes of CPU time (9.5 min on two busy cores). 100 % from step 175; at a gap of 2 000 then
99.4 and 100 % (two seeds), with nothing written 6.6 %, chance 6.2 %.

    python -m hope_jax.launch --config=configs/recall_long.py --workdir=runs/recall_long
    python evals/recall_long.py --checkpoint=runs/recall_long --gaps=0,500,1000,2000,4000
"""

from configs import recall


def get_config():
  c = recall.get_config()
  c.data.recall_pairs = 4
  c.data.recall_keys = 16
  # it learns not to write what fills; then longer gaps are recalled as well
  c.data.recall_gap = 200
  c.data.recall_fillers = 32
  c.data.seq = 256
  c.data.batch = 32
  c.model.vocab = 65  # id 0, keys, values, fillers
  c.selfmod.alpha_init = 0.999  # retention; 0.98 learns as fast, and knows nothing after 500 tokens
  return c
