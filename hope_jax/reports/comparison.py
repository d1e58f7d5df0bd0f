"""Models that were trained on the same batches: their scores, what they cost, and the differences.

    result = comparison.result([("gru", 0, folder), ...], ["gru", ...])   # of trained runs
    print(comparison.table(result))
    comparison.draw(result, workdir)

Everything is read from the runs' metrics.jsonl and costs.json. Pictures need matplotlib
(hope_jax[plots]).
"""

from collections.abc import Sequence
import json
from pathlib import Path
import statistics

from hope_jax.reports import tables
from hope_jax.runtime.startup import say
from hope_jax.scoring import intervals

COSTS = "costs.json"  # in a run's folder, when it is done
SCORES = {"bpb": "bits per byte", "accuracy": "accuracy"}
AXES = {"tokens": "tokens", "flops": "FLOPs of matrix products", "seconds": "seconds of steps"}


def of_run(name: str, seed: int, folder: Path) -> dict:
  """What one run came to, and its points: all of validation, by tokens, FLOPs and seconds."""
  cost = json.loads((folder / COSTS).read_text())
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  score = "bpb" if any("validation/bpb" in row for row in rows) else "accuracy"
  points, seconds, before, rates = [], 0.0, 0, []
  for row in rows:
    if "train/tokens_per_s" in row:
      seconds += (row["step"] - before) * cost["tokens"] / row["train/tokens_per_s"]
      before = row["step"]
      rates.append((row["train/tokens_per_s"], row["train/mfu"]))
    if f"validation/{score}" in row and row["step"]:
      points.append({"step": row["step"], "tokens": row["step"] * cost["tokens"],
                     "flops": row["step"] * cost["flops"], "seconds": seconds,
                     "score": row[f"validation/{score}"]})
  if not points:
    raise ValueError(f"{folder} has no validation score: was its evaluation switched off, or did "
                     "it fail?")
  return {"name": name, "seed": seed, "score_is": score, "points": points,
          "tokens_per_s": statistics.median(rate for rate, _ in rates),
          "mfu": statistics.median(mfu for _, mfu in rates),
          **{key: cost[key] for key in ("parameters", "without_embedding", "bytes")}}


def result(runs: Sequence[tuple[str, int, Path]], names: Sequence[str]) -> dict:
  """{"score": its name, "runs", "models"}; differences are from the first name, paired by seed."""
  found = [of_run(*run) for run in runs]
  final = {name: {run["seed"]: run["points"][-1]["score"] for run in found if run["name"] == name}
           for name in names}
  models = []
  for name in names:
    own = [run for run in found if run["name"] == name]
    if not own:
      continue
    both = sorted(final[name].keys() & final[names[0]].keys())
    last = [run["points"][-1] for run in own]
    models.append({
        "name": name, "seeds": sorted(final[name]),
        "score": intervals.student([*final[name].values()]),
        "difference": intervals.student([final[name][seed] - final[names[0]][seed]
                                         for seed in both]) if both and name != names[0] else None,
        **{key: statistics.median(run[key] for run in own)
           for key in ("tokens_per_s", "mfu", "bytes", "parameters", "without_embedding")},
        **{key: statistics.mean(point[key] for point in last) for key in AXES}})
  kinds = {run["score_is"] for run in found}
  return {"score": kinds.pop() if len(kinds) == 1 else "none", "runs": found, "models": models}


def table(result: dict) -> str:
  """A row for each model, in markdown."""
  rows = [[m["name"], len(m["seeds"]), tables.score(m["score"]),
           "" if m["difference"] is None else tables.score(m["difference"]),
           f"{m['tokens_per_s']:,.0f}", f"{100 * m['mfu']:.1f}", f"{m['bytes'] / 2**20:,.0f}",
           f"{m['parameters'] / 1e6:.3f}", f"{m['without_embedding'] / 1e6:.3f}",
           f"{m['tokens'] / 1e6:.3f}", f"{m['flops'] / 1e12:.3f}", f"{m['seconds']:,.0f}"]
          for m in result["models"]]
  first = result["models"][0]["name"] if result["models"] else "none"
  return tables.markdown(
      ["model", "seeds", f"{SCORES.get(result['score'], 'score')} (95 %)", f"minus {first} (95 %)",
       "tokens/s", "MFU, %", "memory, MiB", "parameters, M", "without embedding, M", "tokens, M",
       "TFLOP", "seconds"], rows)


def draw(result: dict, folder: Path) -> None:
  """tokens.png, flops.png, seconds.png: mean over seeds, and each seed faintly."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    say("no pictures without matplotlib: pip install 'hope_jax[plots]'")
    return
  for key, label in AXES.items():
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(result["models"]):
      own = [run["points"] for run in result["runs"] if run["name"] == model["name"]]
      for points in own:
        axes.plot([p[key] for p in points], [p["score"] for p in points], color=f"C{number}",
                  alpha=0.25, linewidth=0.8)
      together = [*zip(*own)]
      axes.plot([statistics.mean(p[key] for p in at) for at in together],
                [statistics.mean(p["score"] for p in at) for at in together], color=f"C{number}",
                marker=".", label=model["name"])
    axes.set(xlabel=label, ylabel=f"validation, {SCORES.get(result['score'], 'score')}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(folder / f"{key}.png", dpi=120)
