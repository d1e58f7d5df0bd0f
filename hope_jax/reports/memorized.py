"""A picture of one text that was memorized: what was lost and learned, chunk by chunk.

Above: nats per token of each chunk, before, while and after the text was learned. Below, for every
memory, means over layers: how far each chunk moved it, and the surprise with the chunks that it let
through. Self-modifying memories, which write at every token, are drawn by their distance from where
they started. Needs matplotlib (hope_jax[plots]).
"""

import json
from pathlib import Path

import numpy as np

COLOURS = {"before": "tab:gray", "read": "tab:blue", "after": "tab:green"}
MISSING = "pictures need matplotlib: pip install hope_jax[plots]"


def load(path: str | Path) -> dict:
  """What `memorize --output` wrote. ValueError for another file."""
  try:
    data = json.loads(Path(path).read_text())
    series = [data["predicted"], *data["nats"].values(), *data["selfmod"].values()]
    series += [memory[key] for memory in data["memories"].values()
               for key in ("updates", "open", "moved", "surprise")]
    np.asarray(series, float), float(data["chunk"]), float(data["threshold"])
    good = len(set(map(len, series))) == 1
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    good = False
  if not good:
    raise ValueError(f"{path} was not written by python -m hope_jax.memorize --output: run that "
                     "first")
  return data


def draw(data: dict):
  """The figure: one panel of losses and one for every memory, in the order of the file."""
  try:
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global
  except ImportError:
    raise ImportError(MISSING) from None
  panels = 1 + len(data["memories"]) + bool(data["selfmod"])
  figure = Figure(figsize=(9, 1 + 2 * panels), layout="constrained")
  losses, *axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
  predicted_N = np.array(data["predicted"])
  middle_N = (np.arange(len(predicted_N)) + 0.5) * data["chunk"]  # in tokens
  for name, nats in data["nats"].items():
    read = predicted_N > 0  # the last chunk may hold nothing but the last token
    losses.plot(middle_N[read], np.array(nats)[read] / predicted_N[read], label=name,
                color=COLOURS.get(name))
  losses.set(ylabel="nats per token")
  losses.legend(ncols=3, fontsize="small")
  for axis, (name, memory) in zip(axes, data["memories"].items()):
    _draw_memory(axis, middle_N, name, memory, data["chunk"], data["threshold"])
  if data["selfmod"]:
    for name, value_NxL in data["selfmod"].items():
      if name.startswith("moved/"):
        axes[-1].plot(middle_N, np.mean(value_NxL, 1), label=name.removeprefix("moved/"))
    axes[-1].set(title="selfmod", ylabel="distance from start")
    axes[-1].legend(ncols=6, fontsize="small")
  figure.align_ylabels()
  (axes or [losses])[-1].set_xlabel("tokens read")
  return figure


def _draw_memory(axis, middle_N, name, memory, chunk, threshold):
  """Bars: what a chunk changed. Line: its surprise; a dot: the gate was open in any layer."""
  def mean(key):
    return np.mean(memory[key], 1)
  axis.bar(middle_N, mean("moved"), width=0.9 * chunk, color="tab:orange")
  axis.set(title=f"{name}: period {memory['period']}, {mean('updates').sum():,.0f} updates a layer",
           ylabel="||dW|| of the chunk")
  surprise = axis.twinx()
  surprise.plot(middle_N, mean("surprise"), color="tab:purple", linewidth=1)
  is_open = mean("open") > 0
  surprise.plot(middle_N[is_open], mean("surprise")[is_open], ".", color="tab:purple")
  if threshold:
    surprise.axhline(threshold, color="tab:purple", linestyle="--", linewidth=1)
  surprise.set_ylabel("surprise", color="tab:purple")
