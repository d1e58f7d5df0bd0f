"""Levels on an imported model: it goes on learning while it reads (NL s. 7.3).

    python -m hope_jax.pretrained --model=<folder, .gguf or name> --workdir=runs/smollm
    python -m hope_jax.pretrained --model=runs/smollm --config=configs/levels.py:runs/smollm \\
        --workdir=runs/smollm_levels
    python -m hope_jax.memorize --checkpoint=runs/smollm_levels --text=manual.txt --state=out/

What stands after the colon is the run, and perhaps how many tokens each level writes after:
`configs/levels.py:runs/smollm,512,2048,8192` stacks two new levels on the model's own MLPs, which
become the slowest. Trained with --init_from=runs/smollm, or as it is. The rate was chosen on one
document of 2048 tokens, SmolLM2-135M, attention of 256 tokens: 1.185 bits per byte, 1.280 without
writing.
"""

from pathlib import Path

from hope_jax import config


def get_config(given="runs/smollm,128"):
  run, *periods = given.split(",")
  if not (Path(run) / "config.json").is_file():
    raise ValueError(f"no run {run}: import a model first, python -m hope_jax.pretrained "
                     f"--model=... --workdir={run}")
  c = config.load(Path(run) / "config.json")
  periods = sorted(map(int, periods)) or [128]
  c.channel.levels = tuple(config.Level(f"every_{p}", p, rule="adagrad", lr=5e-4) for p in periods)
  c.channel.in_context = True
  c.teach.chunk = 128
  c.data.seq = max(2048, *periods)
  c.data.align = 128
  c.data.batch = 1
  c.data.tokenizer = run
  c.data.dir = f"runs/data/{Path(run).name}"
  c.optim.lr = 1e-4
  return c
