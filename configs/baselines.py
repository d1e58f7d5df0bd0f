"""Models to be compared, with as many parameters at each size: NAME[,SIZE[,CONTROL]], of `HIDDEN`.

    python -m hope_jax.launch --config=configs/baselines.py:gated_deltanet --workdir=runs/deltanet
    python -m hope_jax.launch --config=configs/baselines.py:samba,mid --dry_run
    python -m configs.baselines                   # parameters of each, with and without embedding

Sizes: tiny (synthetic.py), small (minutes on two cores), pilot, mid, target (totals of
configs/pilot.py and so on, in the shapes of common Transformers). Data, batch, schedule and
optimizer of a size are the same for all; what differs is the pattern, and the hidden width that
makes up for it. Attention is swapped by name: _window sees an eighth of the sequence, _deltanet is
the gated delta rule. Controls: controls.py.
"""

from configs import controls, mid, online, pilot, recall, smoke, target
from hope_jax import config

SIZES = ("tiny", "small", "pilot", "mid", "target")
SHAPES = {"tiny": (64, 2, 2), "small": (128, 4, 2), "pilot": (1024, 18, 16), "mid": (1536, 24, 24),
          "target": (2048, 24, 32)}  # width, layers, heads
TOTALS = {"tiny": 0.12e6, "small": 1.32e6, "pilot": 256e6, "mid": 764e6, "target": 1334e6}
HIDDEN = {  # of the channel mixer, or of each of its levels, at each size
    "transformer": (204, 352, 2656, 4416, 5856),
    "transformer_window": (204, 352, 2656, 4416, 5856),
    "gated_deltanet": (178, 304, 2304, 3872, 5152),
    "samba": (158, 272, 2272, 3872, 5152),
    "gru": (204, 352, 2944, 4864, 6496),
    "titans_lmm": (156, 256, 2240, 3808, 5088),
    "titans_mac": (94, 128, 1216, 2272, 3040),
    "titans_mag": (89, 128, 1216, 2272, 3040),
    "titans_mal": (90, 128, 1216, 2272, 3040),
    "titan_hybrid": (183, 304, 2304, 3904, 5184),
    "hope_attention": (153, 256, 992, 1664, 2208),
    "hope_attention_window": (153, 256, 992, 1664, 2208),
    "hope_attention_deltanet": (133, 224, 864, 1440, 1920),
    "hope_selfmod": (150, 256, 1184, 1952, 2624),
    "hope_hybrid": (100, 160, 576, 1024, 1376),
    "hope_hybrid_window": (100, 160, 576, 1024, 1376),
    "hope_hybrid_deltanet": (80, 112, 448, 832, 1088),
}
WINDOWED = ("samba", "titans_mag", "titans_mal")
SWAPS = {"window": {}, "deltanet": dict(pattern=("gated_deltanet",))}


def base(size: str):
  """What all models of a size share."""
  if size == "tiny":
    c = recall.get_config()
    c.channel.levels = (config.Level("fast", 8, lr=0.1), config.Level("slow", 32, lr=0.1))
    c.channel.in_context = True
  elif size != "small":
    c = {"pilot": pilot, "mid": mid, "target": target}[size].get_config()
  else:
    c, levels = smoke.get_config(), online.get_config().channel
    c.channel.levels, c.channel.in_context = levels.levels, True
  c.model.dim, c.model.layers, c.model.heads = SHAPES[size]
  c.titan.hidden = 0.5
  return c


def described(name: str, size: str, hidden: int):
  """The model of that name and hidden width."""
  c = base(size)
  preset, _, swap = (name, "", "") if name in config.PRESETS else name.rpartition("_")
  c.model.update(config.PRESETS[preset] | SWAPS.get(swap, {}))
  if swap == "window" or preset in WINDOWED:
    c.attention.window = c.data.seq // 8
  if not preset.startswith("hope"):
    c.channel.kind, c.channel.in_context = "swiglu", False
  c.channel.hidden = (hidden + 0.5) / c.model.dim  # the model takes the whole part
  return c


def get_config(spec: str = "transformer"):
  name, size, control = (spec.split(",") + ["small", ""][spec.count(","):])[:3]
  if name not in HIDDEN or size not in SIZES:
    raise ValueError(f"no baseline {spec}: choose NAME or NAME,SIZE from {', '.join(HIDDEN)} and "
                     f"{', '.join(SIZES)}")
  c = described(name, size, HIDDEN[name][SIZES.index(size)])
  return controls.controlled(c, control) if control else c


def main():
  """Prints the table."""
  from hope_jax.training import costs
  print(f"{'':26}" + "".join(f"{size + ', M':>10}{'without':>10}" for size in SIZES))
  for name in HIDDEN:
    counts = (costs.parameters(get_config(f"{name},{size}")) for size in SIZES)
    print(f"{name:26}" + "".join(f"{total / 1e6:>10,.2f}{rest / 1e6:>10,.2f}"
                                 for total, rest in counts))


if __name__ == "__main__":
  main()
