"""What one device does in a compiled program, by its HLO text: bytes it sends, FLOPs of its dots.

    collectives.count(compiled.as_text())  ->  {"all-gather": 1.2e6, ..., "flops": ...}

Bytes are those of ring algorithms in groups of n devices: (n-1)/n of the whole array for
all-gather, reduce-scatter and all-to-all, twice that for all-reduce, all of it for
collective-permute. A loop counts as often as it runs, a conditional as its dearest branch. Dots
that a backend turns into calls of its library (GPUs) are not seen.
"""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def count(text: str) -> dict[str, float]:
  """{kind of collective: bytes sent, "flops": of dots}, for one run of a program on one device.

  ValueError where a loop with collectives or dots does not say how often it runs.
  """
  devices = int((re.search(r"num_partitions=(\d+)", text.partition("\n")[0]) or [0, 1])[1])
  computations, entry = _split(text)
  done = {}

  def total(name):
    if name not in done:
      done[name] = _total(computations[name], devices, total)
    return done[name]

  return total(entry)


def _split(text):
  """({computation: its instructions}, name of the entry)."""
  computations, entry, lines = {}, None, None
  for line in text.splitlines():
    if not line.startswith((" ", "}")) and (head := _COMPUTATION.match(line)):
      lines = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif lines is not None and (found := _INSTRUCTION.match(line)):
      lines.append(found.groups())
  return computations, entry


def _total(instructions, devices, total):
  types = {name: kind for name, kind, _, _ in instructions}
  out = dict.fromkeys((*KINDS, "flops"), 0.0)
  for _, result, op, rest in instructions:
    operands = [types.get(name, "") for name in re.findall(r"%[\w.\-]+", rest.partition(")")[0])]
    kind = op.removesuffix("-start")
    if kind in KINDS:
      out[kind] += _sent(kind, sum(map(_bytes, operands)), _group(rest, devices))
    elif op == "dot":
      out["flops"] += _dot_flops(result, operands[0], rest)
    elif op == "while":
      _add(out, total(_named(rest, "body")[0]), lambda: _trips(rest))
    elif op == "conditional":
      branches = [total(name)
                  for key in ("branch_computations", "true_computation", "false_computation")
                  for name in _named(rest, key)]
      _add(out, {key: max(branch[key] for branch in branches) for key in out})
    else:
      for name in _named(rest, "calls") + (_named(rest, "to_apply") if op == "call" else []):
        _add(out, total(name))
  return out


def _add(out, more, times=lambda: 1):
  if any(more.values()):
    repeats = times()
    for key, value in more.items():
      out[key] += repeats * value


def _trips(rest) -> int:
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
  if not found:
    raise ValueError("a loop of the compiled program does not say how often it runs: write it with "
                     "jax.lax.scan")
  return int(found[1])


def _named(rest, key) -> list[str]:
  found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", rest)
  return [name[1:] for name in re.findall(r"%[\w.\-]+", found[1])] if found else []


def _dims(text) -> list[int]:
  return [int(n) for n in text.split(",") if n]


def _bytes(kind) -> int:
  return sum(math.prod(_dims(dims)) * max(int(bits or 8) // 8, 1)
             for _, bits, dims in _ARRAY.findall(kind))


def _dot_flops(result, left, rest) -> int:
  shape, = (_dims(dims) for _, _, dims in _ARRAY.findall(left))
  size = sum(math.prod(_dims(dims)) for _, _, dims in _ARRAY.findall(result))
  return 2 * size * math.prod(shape[i]
                              for i in _dims(re.search(r"lhs_contracting_dims=\{([\d,]*)\}",
                                                       rest)[1]))


def _sent(kind, given, n) -> float:
  """Bytes, from those of the operands and the devices in a group."""
  factor = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1,
            "collective-permute": 1}.get(kind, (n - 1) / n)
  return factor * given


def _group(rest, devices) -> int:
  """Devices of one: replica_groups={{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2], ... {'b'}."""
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return len(_dims(found[1]))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
    return int(found[1])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(part or sizes[axis])
                     for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]))
  return devices
