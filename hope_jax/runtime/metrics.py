"""What a run writes down: JSON lines, TensorBoard events, its speed, lines of the console, tables.

    with Metrics(workdir, resume_step) as metrics:
      metrics.write(step, {"train": {"loss": 3.2}, "lr": 1e-3})
    -> workdir/metrics.jsonl   {"step": 10, "time": 1.7e9, "train/loss": 3.2, "lr": 0.001}
       workdir/tb              the same as TensorBoard events

A run resumed at step s drops the lines beyond s that the interrupted run left: it will write them
again.
"""

import contextlib
import datetime
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.runtime import boards, program
from hope_jax.runtime.startup import say


class Metrics:
  """Appends to workdir/metrics.jsonl, and shows on `shown` (boards.py); every line is on disk when
  `write` returns.

  `resume_step`: the step of the restored checkpoint; -1 for a run from the start, which drops every
  older line. Of several processes the first one writes, the others do nothing.
  `resumed`: what is already written at that step, as {name: number}.
  """

  def __init__(self, workdir: str | Path, resume_step: int = -1, shown: Sequence[str] = (),
               config: str = "{}"):
    self._writes, self.path = jax.process_index() == 0, Path(workdir) / "metrics.jsonl"
    self.resumed, logged = _drop_after(self.path, resume_step, self._writes)
    if not self._writes:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self.path.open("a")
    self._boards = boards.start(shown, Path(workdir), resume_step, logged, config)

  def write(self, step: int, values: dict) -> None:
    """One line. `values`: numbers or scalar arrays, in nested dicts; ValueError for larger ones."""
    if not self._writes:
      return
    row = {name: _number(name, x) for name, x in _flatten(jax.device_get(values)).items()}
    self._file.write(json.dumps({"step": int(step), "time": round(time.time(), 3)} | row) + "\n")
    self._file.flush()
    for board in self._boards:
      board.write(int(step), row)

  def __enter__(self) -> "Metrics":
    return self

  def __exit__(self, *_) -> None:
    if self._writes:
      for each in (self._file, *self._boards):
        with contextlib.suppress(OSError):  # a disk that is full: `write` has raised already
          each.close()


class Meter:
  """Tokens per second of training proper. Read it after fetching a step's metrics, when it is done.

  `tokens`: tokens per step.  `flops`: per token, forward and backward.
  `peak`: FLOP/s of all devices together.
  """

  def __init__(self, steps: int, tokens: int, flops: float, peak: float,
               clock: Callable[[], float] = time.perf_counter):
    self.steps, self.tokens, self.flops, self.peak = steps, tokens, flops, peak
    self._clock = clock
    self.start(0)

  def start(self, step: int) -> None:
    """An interval begins at `step`; also called after the first step, whose time is compilation."""
    self._step, self._since, self._paused = step, self._clock(), 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Time in here (evaluation, saving, compilation) is not training time."""
    began = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - began

  def read(self, step: int) -> dict[str, float]:
    """Since the last read or start: tokens_per_s, mfu (0 to 1), eta_s (no evaluations or saves)."""
    done, seconds = step - self._step, self._clock() - self._since - self._paused
    if done <= 0 or seconds <= 0:
      raise ValueError(f"no training between steps {self._step} and {step}; call Meter.read once "
                       "per interval")
    rate = done * self.tokens / seconds
    self.start(step)
    return {"tokens_per_s": rate, "mfu": rate * self.flops / self.peak,
            "eta_s": (self.steps - step) * seconds / done}


def format_line(step: int, steps: int, *, loss: float, bpb: float | None, rates: dict[str, float],
                grad_norm: float, lr: float, memory: Sequence[float] = ()) -> str:
  """An interval's console line. `rates`: Meter.read's; `memory`: each layer's update norm."""
  eta = datetime.timedelta(seconds=round(rates["eta_s"]))
  line = (f"step {step:{len(str(steps))}d}/{steps}  loss {loss:7.4f}  "
          f"{'' if bpb is None else f'bpb {bpb:6.4f}  '}"
          f"{_short(rates['tokens_per_s']):>6} tok/s  MFU {100 * rates['mfu']:4.1f}%  eta "
          f"{eta!s:>8}  grad {grad_norm:8.2e}  lr {lr:8.2e}")
  if len(memory) > 8:  # a line stays a line
    return f"{line}  memory {min(memory):.1e} to {max(memory):.1e} in {len(memory)} layers"
  return line + ("  memory " + " ".join(f"{x:.1e}" for x in memory) if len(memory) else "")


@functools.cache
def matmul_rate(dtype: str) -> float:
  """FLOP/s of all devices of this process on large square products: the 100 % of MFU.

  They compute at the same time, as in training: devices of a CPU share its cores. Takes about half
  a second on a CPU. dtype: "bfloat16" or "float32", at jax's default precision, as the model's.
  """
  n, products = (1024, 2) if jax.default_backend() == "cpu" else (8192, 8)
  mesh = jax.make_mesh((jax.local_device_count(),), ("each",), devices=jax.local_devices())
  place = jax.NamedSharding(mesh, jax.P("each"))

  @functools.partial(jax.jit, out_shardings=place)
  def draw(key):  # powers stay finite
    shape = (jax.local_device_count(), n, n)
    return jax.random.normal(key, shape, dtype) / jnp.asarray(n**0.5, dtype)

  w = draw(jax.random.key(0))
  power = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ w, x))
  power(w).block_until_ready()
  best = min(_seconds(power, w) for _ in range(5))
  return 2 * n**3 * products * jax.local_device_count() / best


def _seconds(f: Callable, x: jax.Array) -> float:
  began = time.perf_counter()
  f(x).block_until_ready()
  return time.perf_counter() - began


def _drop_after(path: Path, step: int, write: bool) -> tuple[dict[str, Any], int]:
  """Drops lines beyond a step, where they may be written; (what its own lines hold, the last step
  that there was, or -1).
  """
  lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
  # one without its end was cut by the interruption
  whole = [line for line in lines if line.endswith("\n")]
  read = [(line, row) for line in whole if (row := _row(line)) is not None]
  if len(read) < len(whole):
    say(f"{path}: {len(whole) - len(read)} damaged line(s) are left out")
  rows = [(line, row) for line, row in read if row["step"] <= step]
  if write and len(rows) < len(lines):
    program.replace(path, "".join(line for line, _ in rows))
  own = {name: x for _, row in rows if row["step"] == step for name, x in row.items()}
  return own, max((row["step"] for _, row in read), default=-1) if step >= 0 else -1


def _row(line: str) -> dict | None:
  """None for what is no row: a power cut may leave zeros."""
  try:
    row = json.loads(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) and "step" in row else None


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, x in values.items():
    flat |= _flatten(x, f"{prefix}{name}/") if isinstance(x, dict) else {f"{prefix}{name}": x}
  return flat


def _number(name: str, x: Any) -> int | float:
  x = np.asarray(x)
  if x.ndim:
    raise ValueError(f"metric {name} has shape {x.shape}; write one number per name, or a dict of "
                     "numbers")
  return x.item()


def _short(x: float) -> str:
  for unit, size in (("M", 1e6), ("k", 1e3)):
    if x >= size:
      return f"{x / size:.1f}{unit}"
  return f"{x:.0f}"
