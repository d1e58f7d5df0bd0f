"""The pilot of the reference notes: 12 layers, 512 wide, 2048 tokens, four CMS levels, teach
signal, Muon hybrid, bf16.

    python -m hope_jax.launch --config=configs/pilot.py --workdir=runs/pilot

Attention with a Titan memory and levels that write themselves while they read, written by the teach
signal at every 1, 4, 32 and 128 tokens, in chunks of 128 tokens (README.md).
"""

from hope_jax import config


def get_config():
  c = config.base()
  c.model.update(config.PRESETS["hope_hybrid"])
  c.model.dim = 512
  c.model.layers = 12
  c.model.heads = 8
  c.model.vocab = 32_768
  c.model.dtype = "bfloat16"
  c.channel.levels = (config.Level("fast", 1), config.Level("mid", 4), config.Level("slow", 32),
                    config.Level("ultra", 128))
  c.channel.hidden = 4.0
  c.channel.in_context = True
  c.teach.scale = 0.1
  c.teach.clip = 4.0
  c.teach.warmup = 2_000
  c.teach.decay_start = 120_000
  c.teach.decay_duration = 20_000
  c.teach.chunk = 128
  c.data.align = 128
  c.data.dir = "runs/data/embedded_32k"
  c.data.tokenizer_chars = 30_000_000
  c.data.seq = 2048
  c.data.batch = 6
  c.optim.name = "muon"
  c.optim.lr = 3e-4
  c.muon.lr = 1e-2
  c.optim.warmup = 2_000
  c.train.steps = 246_667  # 3 billion tokens
  c.train.eval_every = 1_000
  c.train.save_every = 1_000
  return c
