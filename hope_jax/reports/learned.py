"""Pictures of what is learned one after the other: a matrix of losses, and curves of accuracies.

    matrix(result).savefig("continual.png")             # of evals/continual.py
    curves(result).savefig("class_incremental.png")     # of evals/class_incremental.py

Needs matplotlib (hope_jax[plots]).
"""


def matrix(result: dict):
  """Left: bits per byte less than before any segment (rows: after which; columns: of which).
  Right: the same of each segment, along the learning.
  """
  from matplotlib.figure import Figure  # an extra: plots
  names = result["segments"]
  values = [[cell["value"] for cell in row] for row in result["bits_per_byte"]]
  gains = [[before - now for before, now in zip(values[0], row)] for row in values[1:]]
  most = max(abs(gain) for row in gains for gain in row) or 1.0
  figure = Figure(figsize=(5 + 0.9 * len(names), 2.2 + 0.4 * len(names)), layout="constrained")
  left, right = figure.subplots(1, 2)
  image = left.imshow(gains, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
  left.set_xticks(range(len(names)), names)
  left.set_yticks(range(len(names)), names)
  left.tick_params("x", rotation=45)
  left.set(xlabel="bits per byte gained on", ylabel="after learning")
  for row, own in enumerate(gains):
    for column, gain in enumerate(own):
      left.text(column, row, f"{gain:.3f}", ha="center", va="center", fontsize="small")
  figure.colorbar(image, ax=left)
  for i, name in enumerate(names):
    cells = [row[i] for row in result["bits_per_byte"]]
    right.plot([cell["value"] for cell in cells], marker=".", label=name)
    right.fill_between(range(len(cells)), [cell["low"] for cell in cells],
                       [cell["high"] for cell in cells], alpha=0.15)
  right.set(xlabel="segments learned", ylabel="bits per byte (95 %)")
  right.legend(fontsize="small")
  return figure


def curves(result: dict):
  """Accuracy on all classes seen so far, after each group, one curve a way."""
  from matplotlib.figure import Figure  # an extra: plots
  figure = Figure(figsize=(6, 3.6), layout="constrained")
  axis = figure.subplots()
  for way, own in result["ways"].items():
    if "after_each" not in own:
      axis.axhline(own["final"]["value"], linestyle=":", color="black", label=way)
      continue
    line, = axis.plot([cell["value"] for cell in own["after_each"]], marker=".",
                      label=way.replace("_", " "))
    axis.fill_between(range(len(own["after_each"])), [cell["low"] for cell in own["after_each"]],
                      [cell["high"] for cell in own["after_each"]], alpha=0.15,
                      color=line.get_color())
  axis.set(xlabel="groups of classes read", ylabel="accuracy, classes seen (95 %)", ylim=(0, 1),
           title=result["set"])
  axis.legend(fontsize="small", ncols=2)
  return figure
