"""A picture of what memory gains by the position in a document.

Left: nats per token, memory off and on. Right: their difference. Bands are the 95 % intervals.
Needs matplotlib (hope_jax[plots]).
"""

import math


def draw(result: dict):
  """The figure of a result of evals/longdoc.py."""
  from matplotlib.figure import Figure  # an extra: plots
  figure = Figure(figsize=(10, 3.6), layout="constrained")
  left, right = figure.subplots(1, 2)
  bins = [entry for entry in result["positions"] if entry["gain"]["low"] is not None]
  middle = [math.sqrt(max(entry["from"], 1) * entry["to"]) for entry in bins]
  for axis, name, colour in ((left, "off", "tab:gray"), (left, "on", "tab:blue"),
                             (right, "gain", "tab:green")):
    value, low, high = ([entry[name][key] for entry in bins] for key in ("value", "low", "high"))
    axis.plot(middle, value, marker=".", label=f"memory {name}", color=colour)
    axis.fill_between(middle, low, high, alpha=0.2, color=colour)
  right.axhline(0, color="black", linewidth=0.8)
  for axis, label in ((left, "nats per token"), (right, "gain, nats per token")):
    axis.set(xscale="log", xlabel="tokens of the document before", ylabel=label)
    axis.grid(alpha=0.3)
  left.legend()
  right.set_title(f"{result['documents']} documents, 95 % intervals", fontsize="small")
  return figure
