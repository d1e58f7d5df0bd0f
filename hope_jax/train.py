"""The training loop. Its order is a contract: evaluate, save, draw, step, log the step before.

A workdir holds config.json, tokenizer.model, checkpoints/, metrics.jsonl and tb/. Starting again in it resumes: same
losses and parameters, bit for bit on a CPU, as if the run had not stopped.
"""

import contextlib
import itertools
import math
from pathlib import Path
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import checkpoint, config as configs, costs, data, sharding, stack, step as steps
from hope_jax.metrics import Meter, Metrics, format_line, matmul_rate
from hope_jax.ngram import Bigram
from hope_jax.startup import say


def train(config, workdir: str | Path, init_from: str | Path | None = None) -> dict:
  """Trains until config.train.steps, from the workdir's last checkpoint if it has one; returns the last evaluation.

  Args:
    init_from: workdir of another run; without a checkpoint of its own this one starts at its parameters (stack.py).

  Raises ValueError for a configuration, data or checkpoint that does not fit, OSError for a workdir that cannot be
  written, FloatingPointError for a loss that is not finite, SystemExit(128 + signal) after SIGTERM or SIGINT.
  """
  configs.validate(config, jax.device_count())
  workdir, tokenizer = Path(workdir), None
  c = config.train
  with checkpoint.Checkpoints(workdir / "checkpoints", c.keep, c.keep_best, c.keep_every) as saved:
    stacked = None
    if init_from is not None and saved.latest() is not None:
      say(f"{workdir} has a checkpoint and goes on from it: --init_from={init_from} is ignored")
    elif init_from is not None:
      stacked = stack.load(config, init_from)  # before data are built, which may take long
    if config.data.task == "text":
      data.build(config)
      tokenizer = data.tokenizer(config)
    return _Run(config, workdir, saved, tokenizer, stacked).train()


CLOSED_STEPS = 100  # without an open gate, after which it is said


class _Run:
  """What the loop needs at every step."""

  def __init__(self, config, workdir, saved, tokenizer, stacked):
    self.config, self.workdir, self.saved, self.tokenizer = config, workdir, saved, tokenizer
    self.token_bytes = None if tokenizer is None else tokenizer.token_bytes
    self.devices = sharding.mesh(config)
    self.rows, places = sharding.own_rows(self.devices, config.data.batch), steps.state_shardings(config, self.devices)
    init = jax.jit(lambda key: steps.init_state(config, key), out_shardings=places)
    self.batches = iter(data.train_batches(config, self.rows))
    digest = tokenizer.digest if tokenizer else "none"
    self.meta = {"config": configs.to_json(config), "tokenizer": digest}
    self.start = saved.newest_good()
    if self.start is None:
      self.start, self.state = 0, init(jax.random.key(config.seed))
      if stacked is not None:
        params, meta = stacked
        checkpoint.check_tokenizer(meta, digest)
        self.state = self.state.replace(params=jax.device_put(jax.device_get(params), places.params))
    else:
      checkpoint.check_tokenizer(saved.meta(self.start), digest)
      like = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
                          jax.eval_shape(init, jax.random.key(0)), places)
      self.state, position, _ = saved.restore(self.start, like)
      self.batches.set_state(position)
    if jax.process_index() == 0:
      (workdir / "config.json").write_text(self.meta["config"])
      if tokenizer:
        shutil.copy(Path(config.data.dir) / "tokenizer.model", workdir / "tokenizer.model")
    self.closed = {}  # steps since a gate of each memory opened
    self.train_step = steps.make_train_step(config, self.devices)
    self.eval_step = steps.make_eval_step(config, self.devices)
    self.count_bytes = jax.jit(self.label_bytes, out_shardings=sharding.replicated(self.devices))

  def train(self) -> dict:
    c = self.config.train
    peak = matmul_rate(self.config.model.dtype) * jax.device_count()
    meter = Meter(c.steps, self.config.data.batch * self.config.data.seq, costs.model_flops(self.config), peak)
    say(f"{'resuming at step ' + str(self.start) if self.start else 'starting'} in {self.workdir}: "
        f"{sum(p.size for p in jax.tree.leaves(self.state.params)):,} parameters, {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s), matrix rate {peak / 1e9:,.0f} GFLOP/s")
    before, interval, result = None, [], {}
    with Metrics(self.workdir, self.start) as metrics, _Signals() as signals:
      for i in range(self.start, c.steps + 1):
        done, stop = i == c.steps, signals.caught
        resumed = i == self.start > 0
        due = lambda every: i and i % every == 0 and not resumed
        if (due(c.eval_every) or done or due(c.save_every) or stop) and before:
          self.log(metrics, meter, interval, before)  # nothing is evaluated or saved before its loss is known
          before = None
        with meter.pause():
          evaluated = due(c.eval_every) or done
          if evaluated:
            result = self.evaluate(metrics, i, done)
          if due(c.save_every) or (done and not resumed) or stop:
            self.saved.save(i, self.state, self.batches.get_state(), self.meta, result["loss"] if evaluated else None,
                            "stop" if done or stop else c.on_save_error)
        if stop:
          self.saved.wait()
          say(f"stopped by {signal.Signals(stop).name}: step {i} is saved; the same command resumes")
          raise SystemExit(128 + stop)
        if done:
          break
        batch = next(self.batches)
        placed = sharding.place_batch(batch, self.devices)
        if i == self.start:
          began = time.perf_counter()
          self.train_step = self.train_step.lower(self.state, placed).compile()
          say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
          meter.start(i)
        self.state, out = self.train_step(self.state, placed)
        if before:
          self.log(metrics, meter, interval, before)
        before = (i + 1, out, self.count_bytes(placed["labels"]))
      self.saved.wait()
    return result

  def label_bytes(self, labels_BxT):
    """(B,) bytes of text that the labels stand for."""
    table = jnp.zeros(1, jnp.int32) if self.token_bytes is None else jnp.asarray(self.token_bytes)
    return jnp.sum(jnp.where(labels_BxT >= 0, table[labels_BxT], 0), 1)

  def log(self, metrics, meter, interval, finished):
    """Checks a finished step's loss; at the end of an interval, writes its means."""
    i, out, size = finished
    out, size = jax.device_get((out, size))
    if not (np.isfinite(out["loss"]) and np.isfinite(out["grad_norm"])):
      good = self.saved.latest()
      raise FloatingPointError(
          f"step {i}: loss {out['loss']}, gradient norm {out['grad_norm']}. "
          + (f"Checkpoint {good} is good and a restart goes on from it. " if good is not None else "")
          + "Try a smaller optim.lr or optim.muon_lr, a longer optim.warmup, a smaller optim.clip, or selfmod.bound > 0")
    self.watch_gates(i, out["memory"])
    interval.append((float(out["loss"]), int(out["labels"]), int(size.sum())))
    if i % self.config.train.log_every and i != self.config.train.steps:
      return
    nats, labels, size = (sum(x) for x in zip(*((loss * n, n, b) for loss, n, b in interval)))
    interval.clear()
    values = {"loss": nats / labels, "grad_norm": out["grad_norm"], "lr": out["lr"]}
    if self.tokenizer:
      values["bpb"] = nats / math.log(2) / size
    rates = meter.read(i)
    layers = {str(layer): {name: value[layer] for name, value in out["memory"].items()}
              for layer in range(self.config.model.layers)} if out["memory"] else {}
    metrics.write(i, {"train": values | rates, "memory": layers})
    moved = [sum(value for name, value in layer.items() if name.startswith("moved")) for layer in layers.values()]
    say(format_line(i, self.config.train.steps, loss=values["loss"], bpb=values.get("bpb"), rates=rates,
                    grad_norm=float(values["grad_norm"]), lr=float(values["lr"]), memory=moved))

  def watch_gates(self, i: int, memory: dict):
    """Says so when no chunk's surprise has reached the threshold for a while."""
    for name, opened in memory.items():
      kind, _, path = name.partition("/")
      if kind == "open":
        self.closed[path] = 0 if opened.any() else self.closed.get(path, 0) + 1
        if self.closed[path] == CLOSED_STEPS:
          self.closed[path] = 0
          say(f"step {i}: no gate of {path} opened in {CLOSED_STEPS} steps: its surprise is now "
              f"{float(memory['surprise/' + path].max()):.3g}, teach.threshold is {self.config.teach.threshold:.3g}")

  def evaluate(self, metrics, i: int, last: bool) -> dict:
    """Validation loss, bits per byte and accuracy; at the end also the bigram model's, over the same training tokens."""
    bigram = self.bigram(i) if last and self.tokenizer else None
    total, domains, moved = dict.fromkeys(("nats", "labels", "correct", "bytes", "bigram"), 0.0), {}, []
    for names, batch in data.eval_batches(self.config, self.config.train.eval_batches):
      placed = sharding.place_batch(jax.tree.map(lambda a: a[self.rows], batch), self.devices)
      out = jax.device_get(self.eval_step(self.state.params, placed) | {"bytes": self.count_bytes(placed["labels"])})
      moved.append({name: float(np.mean(v)) for name, v in out["memory"].items() if name.startswith("moved") and self.writes(name)})
      for row, name in enumerate(names):
        if not name:
          continue
        labels = batch["labels"][row]
        values = {key: float(out[key][row]) for key in ("nats", "labels", "correct", "bytes")}
        values["bigram"] = bigram.nats(batch["tokens"][row], labels).sum() if bigram else 0.0
        for sums in (total, domains.setdefault(name, dict.fromkeys(total, 0.0))):
          for key in total:
            sums[key] += values[key]
    check_updates(moved)
    result = {"loss": total["nats"] / total["labels"], "accuracy": total["correct"] / total["labels"],
              "labels": int(total["labels"])}
    if self.tokenizer:
      bits = lambda sums, key="nats": sums[key] / math.log(2) / sums["bytes"]
      result |= {"bpb": bits(total), "domain": {name: bits(sums) for name, sums in domains.items()}}
      if bigram:
        result["bigram_bpb"] = bits(total, "bigram")
    metrics.write(i, {"validation": result})
    text = f"step {i} validation: loss {result['loss']:.4f}, accuracy {result['accuracy']:.4f}"
    if self.tokenizer:
      text += f", {result['bpb']:.4f} bits per byte"
    if bigram:
      text += f" (interpolated bigram on the same training tokens: {result['bigram_bpb']:.4f})"
    say(text)
    return result

  def writes(self, name: str) -> bool:
    """Whether the memory of a statistic ("moved/titan", "moved/k") may be written."""
    path = name.partition("/")[2]
    return (path if path in configs.paths(self.config) else "selfmod") in configs.enabled(self.config)

  def bigram(self, count: int) -> Bigram:
    """The bigram model of the batches of the first `count` steps."""
    model, batches = Bigram(self.config.model.vocab), iter(data.train_batches(self.config))
    for batch in itertools.islice(batches, count):
      model.add(batch["tokens"], batch["labels"])
    return model


def check_updates(moved: list[dict]) -> None:
  """RuntimeError if a memory did not move in any batch of an evaluation; `moved`: name -> distance, for each batch."""
  for name in moved[0]:
    if not any(m[name] > 0 for m in moved):
      raise RuntimeError(f"memory {name.split('/')[-1]} made no update in the whole evaluation: look at "
                         "teach.threshold, teach.scale and the level's period and lr (selfmod: eta_init, alpha_init, bound), "
                         "or leave the memory out (teach.paths)")


class _Signals(contextlib.AbstractContextManager):
  """Notes the first SIGTERM or SIGINT; the second acts as usual."""

  def __enter__(self):
    self.caught, self.before = 0, {}
    for number in (signal.SIGTERM, signal.SIGINT):
      self.before[number] = signal.signal(number, self.catch)
    return self

  def catch(self, number, _):
    self.caught = number
    self.restore()

  def restore(self):
    for number, handler in self.before.items():
      signal.signal(number, handler)

  def __exit__(self, *_):
    self.restore()
