"""A task without text and a model for it: TASK,MODEL[,CONTROL], 120 000 parameters each.

    python -m hope_jax.launch --config=configs/synthetic.py:parity,gru --workdir=runs/parity_gru
    python evals/synthetic.py --tasks=mqar,parity --models=gru,hope_selfmod --workdir=runs/synthetic

Models are those of baselines.py at size tiny, controls those of controls.py. All tasks but `gap`
are trained at 64 tokens; what is asked for is in hope_jax/data/synthetic.py.

    mqar          8 facts of 64 keys and values, then every key once
    gap           4 facts of 16, up to 200 tokens, then every key once
    copy          8 of 16 symbols among blanks
    in_context    16 keys and values, drawn anew for each sequence
    parity aa abab anbn anbncn shuffle2
"""

from configs import baselines
from hope_jax.data import synthetic

TASKS = {
    "mqar": dict(task="recall", recall_taught=True),
    "gap": dict(task="recall", recall_taught=True, recall_pairs=4, recall_keys=16, recall_gap=200,
                recall_fillers=32, seq=256, batch=16),
    "copy": dict(task="copy", recall_taught=True),
    "in_context": dict(task="in_context", recall_taught=True),
} | {name: dict(task=name) for name in synthetic.LANGUAGES}


def get_config(spec: str = "mqar,hope_selfmod"):
  task, model, *control = [*spec.split(","), "none"][:max(2, spec.count(",") + 1)]
  if task not in TASKS or model not in baselines.HIDDEN:
    raise ValueError(f"no task and model {spec}: choose TASK,MODEL from {', '.join(TASKS)} and "
                     f"{', '.join(baselines.HIDDEN)}")
  c = baselines.get_config(",".join([model, "tiny", *control]))
  c.data.update(TASKS[task])
  return c
