"""The pilot of the reference notes: 12 layers, 512 wide, 2048 tokens, four CMS levels, teach signal, Muon hybrid, bf16.

    python -m hope_jax.launch --config=configs/pilot.py --workdir=runs/pilot

Its block (hope_hybrid), levels that write in context and teach signal are refused by this version, each with its fix.
What runs today, the same size:

    python -m hope_jax.launch --config=configs/pilot.py --workdir=runs/pilot --config.model.kind=hope_selfmod \\
      --config.mixer.in_context=False --config.teach.scale=0 --config.teach.clip=0 --config.teach.warmup=0 \\
      --config.teach.decay_start=0 --config.teach.decay_duration=0
"""

from hope_jax import config


def get_config():
  c = config.base()
  c.model.kind = "hope_hybrid"
  c.model.dim = 512
  c.model.layers = 12
  c.model.heads = 8
  c.model.vocab = 32_768
  c.model.dtype = "bfloat16"
  c.model.remat = "block"
  c.mixer.levels = (("fast", 1), ("mid", 4), ("slow", 32), ("ultra", 128))
  c.mixer.hidden = 4.0
  c.mixer.in_context = True
  c.selfmod.chunk_generators = 64
  c.selfmod.chunk_memory = 64
  c.teach.scale = 0.1
  c.teach.clip = 4.0
  c.teach.warmup = 2_000
  c.teach.decay_start = 120_000
  c.teach.decay_duration = 20_000
  c.data.dir = "runs/data/embedded_32k"
  c.data.tokenizer_chars = 30_000_000
  c.data.seq = 2048
  c.data.batch = 6
  c.optim.name = "muon"
  c.optim.lr = 3e-4
  c.optim.muon_lr = 1e-2
  c.optim.warmup = 2_000
  c.train.steps = 246_667  # 3 billion tokens
  c.train.eval_every = 1_000
  c.train.save_every = 1_000
  return c
