"""Tables of results, as markdown."""


def markdown(head: list, rows: list) -> str:
  """A table; its first column names things, the others hold numbers."""
  lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
