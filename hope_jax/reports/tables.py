"""Tables of results, as markdown."""


def markdown(head: list, rows: list) -> str:
  """A table; its first column names things, the others hold numbers."""
  lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def score(entry: dict) -> str:
  """A value with its interval (scoring/intervals.py), where it has one."""
  interval = "" if entry["low"] is None else f" ({entry['low']:.4f} to {entry['high']:.4f})"
  return f"{entry['value']:.4f}{interval}"


def memories(totals: dict, of: str) -> str:
  """What each memory did, {path: `Report.totals`}; nothing where none is written. `of`: in what."""
  if not totals:
    return ""
  return markdown([f"memory, a {of} and layer", "updates", "chunks let through", "surprise",
                   "sum of moves"],
                  [[path, f"{t['updates']:,.1f}", f"{t['gate_hits']:,.1f}", f"{t['surprise']:.3g}",
                    f"{t['moved']:.3g}"] for path, t in totals.items()])
