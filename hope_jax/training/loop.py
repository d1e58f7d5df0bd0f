"""The training loop. Its order is a contract: evaluate, save, draw, step, log the step before.

A workdir holds config.json, the tokenizer, checkpoints/, metrics.jsonl, goodput.json and tb/.
Starting again in it resumes: same losses and parameters, bit for bit on a CPU, as if the run had
not stopped.

A signal (signals.py) ends it: what is learned is saved, an evaluation under way is given up and
made by the resumed run. Until the steps are compiled there is nothing to save, and the program ends
at once.

Many processes (hosts.py) take the same steps and decide by what is the same for all. A signal that
one of them has caught travels with a step's metrics: all know of it when they log that step, and
stop at the same one.
"""

import contextlib
import math
from pathlib import Path
import signal
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import config as configs, versions
from hope_jax.checkpoints import checkpoint, sidecar, stored
from hope_jax.data import loader, tokenized
from hope_jax.data.tokenizer import find as find_tokenizer
from hope_jax.model import checks, lm, sharding
from hope_jax.runtime import boards, hosts, lock, program
from hope_jax.runtime.goodput import Goodput
from hope_jax.runtime.metrics import Meter, Metrics, format_line, matmul_rate
from hope_jax.runtime.signals import Signals
from hope_jax.runtime.startup import say
from hope_jax.scoring import validation
from hope_jax.training import changes, costs, evaluations, groups, stack, steps
from hope_jax.training.activity import Activity


def train(config, workdir: str | Path, init_from: str | Path | None = None,
          allow_changes: bool = False) -> dict:
  """Trains until config.train.steps, from the last checkpoint if any; returns the last evaluation.

  Args:
    init_from: workdir of another run; without a checkpoint of its own this one starts at its
      parameters (stack.py).
    allow_changes: goes on although fields were changed that make it another run (changes.py).

  Raises ValueError for a configuration, data or checkpoint that does not fit, OSError for a workdir
  that cannot be written, FloatingPointError for a loss that is not finite (train.rollback_after),
  SystemExit(128 + signal) after a signal.
  """
  checks.validate(config, jax.device_count())
  evaluations.entries(config)
  boards.check(config.train.boards)
  workdir, tokenizer, c = Path(workdir), None, config.train
  alone = (lock.held(workdir / ".lock", "another --workdir") if jax.process_index() == 0
           else contextlib.nullcontext())
  with alone, checkpoint.Checkpoints(workdir / "checkpoints", c.keep, c.keep_best,
                                     c.keep_every) as saved:
    own = f".{jax.process_index()}" if jax.process_index() else ""  # each process keeps its account
    goodput, stacked = Goodput(workdir / f"goodput{own}.json"), None
    if init_from is not None and saved.latest() is not None:
      say(f"{workdir} has a checkpoint and goes on from it: --init_from={init_from} is ignored")
    elif init_from is not None:
      stacked = stack.load(config, init_from)  # before data are built, which may take long
    if config.data.task == "text":
      tokenized.build(config, verify=True, together=jax.process_count() > 1)
      tokenizer = tokenized.tokenizer(config)
    return _Run(config, workdir, saved, tokenizer, stacked, goodput, allow_changes).train()


class Taken(NamedTuple):
  """A step that was started; its numbers are read when the next one is under way."""
  step: int  # steps taken with it
  out: dict  # metrics, as steps.make_train_step returns them
  bytes_B: jax.Array  # of text, behind the labels of each row
  told: jax.Array  # the signal that some process has caught, or 0


class _Run:
  """What the loop needs at every step."""

  def __init__(self, config, workdir, saved, tokenizer, stacked, goodput, allow_changes):
    self.config, self.workdir, self.saved, self.tokenizer, self.goodput = (config, workdir, saved,
                                                                           tokenizer, goodput)
    self.token_bytes = None if tokenizer is None else tokenizer.token_bytes
    self.devices = sharding.mesh(config)
    self.rows, places = (sharding.own_rows(self.devices, config.data.batch),
                         steps.state_shardings(config, self.devices))
    init = jax.jit(lambda key: steps.init_state(config, key), out_shardings=places)
    self.like = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype,
                                                                   sharding=where),
                             jax.eval_shape(init, jax.random.key(0)), places)
    self.batches = iter(loader.train_batches(config, self.rows))
    digest = tokenizer.digest if tokenizer else "none"
    self.meta = {"config": configs.to_json(config), "tokenizer": digest,
                 "data": tokenized.digest(config)}
    with goodput.span("restore"):
      self.start, self.interval = saved.newest_good(), []
    if self.start is None:
      self.start, self.state = 0, init(jax.random.key(config.seed))
      if stacked is not None:
        params, meta = stacked
        stored.check_tokenizer(meta, digest)
        # an imported run may keep them in bfloat16
        wide = jax.tree.map(lambda own, like: np.asarray(own, like.dtype), params, self.like.params)
        self.state = self.state.replace(params=jax.device_put(wide, places.params))
    else:
      meta = saved.meta(self.start)
      stored.check_tokenizer(meta, digest)
      tokenized.check_unchanged(config, meta)
      then = configs.from_json(meta["config"])
      changes.check(self.start, then, config, meta["data"] == self.meta["data"], allow_changes)
      with goodput.span("restore"):
        self.state, position, meta = saved.restore(self.start, self.like)
      self.batches.set_state(versions.position(position, then.data.batch))
      self.interval = meta["interval"]
    goodput.resume(self.start)
    if jax.process_index() == 0:
      program.replace(workdir / "config.json", self.meta["config"])
      if tokenizer:
        words = find_tokenizer(tokenized.build(config))
        sidecar.copy(words, workdir / words.name)
    self.activity = Activity(config)
    self.train_step = steps.make_train_step(config, self.devices)
    self.eval_step = steps.make_eval_step(config, self.devices)
    self.tally = jax.jit(self.bytes_and_signal, out_shardings=sharding.replicated(self.devices))
    self.told = 0  # the signal that all processes know of
    self.evaluates = True
    try:
      loader.eval_batches(config, 1)
    except ValueError as error:
      self.evaluates = False
      self.forgive(f"there will be no evaluation: {error}", error)

  def train(self) -> dict:
    c = self.config.train
    peak = matmul_rate(self.config.model.dtype) * jax.process_count()
    say(f"{'resuming at step ' + str(self.start) if self.start else 'starting'} in {self.workdir}: "
        f"{sum(p.size for p in jax.tree.leaves(self.state.params)):,} parameters, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s), matrix rate "
        f"{peak / 1e9:,.0f} GFLOP/s")
    say("parameters: " + ", ".join(
        f"{name} {size:,}" for name, size in groups.sizes(self.state.params).items()))
    self.compile()
    self.meter = Meter(c.steps, self.config.data.batch * self.config.data.seq,
                       costs.model_flops(self.config), peak)
    with (Metrics(self.workdir, self.start, c.boards, self.meta["config"]) as self.metrics,
          Signals() as self.signals):
      self.goodput.enter("steps")
      self.meter.start(self.start)
      result = self.loop()
      with self.pause("save"):
        self.saved.wait()
      self.account(c.steps)
      if "goodput/steps" not in self.metrics.resumed:
        self.record(c.steps, {"goodput": self.goodput.summary()})
    return result

  def compile(self):
    """Both steps before the first one: later, nothing long is between a signal and the save."""
    began = time.perf_counter()
    with self.goodput.span("compile"):
      batch = costs.train_program(self.config)[2]
      self.eval_step = self.eval_step.lower(self.state.params, batch, self.state.step).compile()
      if self.start < self.config.train.steps:
        self.train_step = self.train_step.lower(self.state, batch).compile()
    say(f"compiled in {time.perf_counter() - began:.1f} s")

  @property
  def stop(self) -> int:
    """The signal that ends the run, or 0; the same in every process."""
    return self.told or (self.signals.caught if jax.process_count() == 1 else 0)

  def loop(self) -> dict:
    c, before = self.config.train, None
    for i in range(self.start, c.steps + 1):
      done, fresh = i == c.steps, i > self.start
      def due(every):
        return fresh and i % every == 0
      evaluate = due(c.eval_every) or done or (i and not i % c.eval_every
                                               and "validation/loss" not in self.metrics.resumed)
      if before and (evaluate or due(c.save_every) or self.stop):
        if self.log(before):  # nothing is evaluated or saved before its loss is known
          self.state = self.roll_back(before)
        before = None
      save = due(c.save_every) or (done and fresh)
      if save:  # before the evaluation, which may fail
        self.save(i, "stop" if done or self.stop else c.on_save_error)
      result = evaluations.at(self, i, evaluate) if not self.stop else {}
      if self.stop:
        if not save:
          self.save(i)
        with self.pause("save"):
          self.saved.wait()
        self.account(i)
        say(f"stopped by {signal.Signals(self.stop).name}: step {i} is saved; the same command "
            "resumes")
        raise SystemExit(128 + self.stop)
      if done:
        return result
      batch = self.draw(i, before)
      placed = sharding.place_batch(batch, self.devices)
      self.state, out = self.train_step(self.state, placed)
      if before and self.log(before):  # on the parameters that are left behind: taken again
        self.state, out = self.train_step(self.roll_back(before), placed)
      before = Taken(i + 1, out, *self.tally(
          placed["labels"], sharding.one_each(self.devices, self.signals.caught)))

  @contextlib.contextmanager
  def pause(self, kind: str):
    """Time in here is not training time, but of this kind."""
    with self.meter.pause(), self.goodput.span(kind):
      yield

  def bytes_and_signal(self, labels_BxT, caught_N):
    """(bytes of text of each row's labels (B,), a signal that some process caught, or 0)."""
    table = jnp.zeros(1, jnp.int32) if self.token_bytes is None else jnp.asarray(self.token_bytes)
    return jnp.sum(jnp.where(labels_BxT >= 0, table[labels_BxT], 0), 1), jnp.max(caught_N)

  def draw(self, i: int, before: Taken | None) -> dict:
    """The next batch. Data that cannot be read end the run, and what it has learned is saved.

    Not where other processes may have read theirs: that run goes on from the last checkpoint.
    """
    try:
      with self.goodput.span("data"):
        return next(self.batches)
    except (OSError, ValueError):
      if jax.process_count() == 1 and i > self.start and not (before and self.log(before)):
        self.save(i)
        say(f"step {i} is saved; the same command resumes once the data are back")
      raise

  def save(self, i: int, on_error: str = "stop"):
    with self.pause("save"):
      rest = {"applied": int(self.state.guard.applied), "interval": self.interval}
      self.saved.save(i, self.state, self.batches.get_state(), self.meta | rest, on_error)
    self.record(i)

  def record(self, i: int, values: dict | None = None):
    """A line of metrics, if there are values, and the account of the time until step i.

    Raises OSError where they cannot be written; with train.on_save_error=warn that is said, as of a
    checkpoint.
    """
    try:
      if values is not None:
        self.metrics.write(i, values)
      self.goodput.write(i)
    except OSError as error:
      failed = f"step {i} cannot be logged in {self.workdir}: {error.strerror}"
      if self.config.train.on_save_error == "stop" or jax.process_count() > 1:
        raise OSError(error.errno, f"{failed}; free some space or choose another --workdir, then "
                                   "start again") from None
      say(f"{failed}; training goes on without it")

  def account(self, i: int):
    """The end of this process: where all the time went, what was skipped and what did nothing."""
    self.record(i)
    self.activity.report()
    guard = jax.device_get(self.state.guard)
    say(self.goodput.line() + (f"; {guard.skipped} steps skipped, {guard.rollbacks} rollbacks"
                               if guard.skipped else ""))

  def log(self, finished: Taken) -> bool:
    """Reads a finished step, writes means at an interval's end; whether too many were bad."""
    i, out, size, told = jax.device_get(finished)
    self.told = self.told or int(told)
    if out["guard"].in_a_row:
      self.bad(i, out)
    else:
      self.activity.see(i, out["memory"], out["update"])
      self.interval.append([float(out["loss"]), int(out["labels"]), int(size.sum())])
    if i % self.config.train.log_every == 0 or i == self.config.train.steps:
      self.write(i, out)
      self.interval.clear()
    return 0 < self.config.train.rollback_after <= out["guard"].in_a_row

  def bad(self, i: int, out):
    """A step that is skipped; FloatingPointError if none may be."""
    guard = out["guard"]
    text = f"step {i}: loss {out['loss']}, gradient norm {out['grad_norm']}"
    if not self.config.train.rollback_after:
      good = self.saved.latest()
      raise FloatingPointError(
          f"{text}. " + (f"Checkpoint {good} is good and a restart goes on from it. "
                         if good is not None else "")
          + "Try train.rollback_after=10, which skips such steps, or, with --allow_changes, a "
            "smaller optim.lr or muon.lr, a longer optim.warmup, a smaller optim.clip, "
            "selfmod.bound > 0")
    say(f"{text} (mean {guard.norm:.3g}): skipped; {guard.in_a_row} in a row, {guard.skipped} in "
        "all")

  def roll_back(self, finished: Taken):
    """To the newest checkpoint with fewer applied steps; the data go on where they are."""
    i, guard = finished.step, jax.device_get(finished.out["guard"])
    with self.pause("restore"):
      self.saved.wait()
      self.state, state = None, None  # room for the other one
      for older in reversed(sidecar.steps(self.saved.directory)):
        try:
          if self.saved.meta(older)["applied"] < guard.applied:
            state, _, _ = self.saved.restore(older, self.like)
            break
        except ValueError as error:  # damaged, or of another model: the one before it
          say(f"not rolled back to step {older}: {error}")
      if state is None:
        raise FloatingPointError(
            f"step {i}: {self.config.train.rollback_after} bad steps in a row, and no checkpoint "
            "to roll back to. Try a smaller optim.lr or muon.lr, a larger optim.skip_above, "
            "a larger train.keep or a smaller train.save_every")
      guard = state.guard.replace(skipped=guard.skipped, in_a_row=np.int32(0),
                                  rollbacks=guard.rollbacks + 1)
      state = state.replace(step=np.int32(i), guard=guard)
      if state.fast is not None:  # of documents that the data have left
        state = state.replace(fast=lm.init_fast(self.config, self.config.data.batch))
    self.goodput.lose(i - older)
    say(f"step {i}: rolled back to the parameters of step {older}; the data go on")
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, self.like)

  def write(self, i: int, out):
    """The means of an interval; a skipped step's own figures are left out."""
    values, good = {"lr": out["lr"]}, not out["guard"].in_a_row
    if out["guard"].skipped:
      values |= {"skipped": out["guard"].skipped, "rollbacks": out["guard"].rollbacks}
    nats, labels, size = (sum(x)
                          for x in zip(*((loss * n, n, b)
                                         for loss, n, b in self.interval))) if self.interval else (
                                             0, 0, 0)
    if labels:
      values["loss"] = nats / labels
      if self.tokenizer:
        values["bpb"] = nats / math.log(2) / size
    if good:
      values["grad_norm"] = out["grad_norm"]
    rates = self.meter.read(i)
    # not-a-number: of other mixers' layers
    layers = {str(layer): {name: value[layer] for name, value in out["memory"].items()
                           if not math.isnan(value[layer])}
              for layer in range(self.config.model.layers)} if out["memory"] and good else {}
    parts = {name: out[name] for name in ("gradient", "update") if good}
    self.record(i, {"train": values | rates, "memory": layers} | parts)
    if labels:
      moved = [sum(value for name, value in layer.items() if name.startswith("moved"))
               for layer in layers.values()]
      say(format_line(i, self.config.train.steps, loss=values["loss"], bpb=values.get("bpb"),
                      rates=rates,
                      grad_norm=float(out["grad_norm"]), lr=float(values["lr"]), memory=moved))

  def evaluate(self, i: int) -> dict:
    """The scores at step i, at the end beside the bigram model's; {} when a signal comes, or where
    it fails and train.on_evaluation_error is warn.
    """
    def stopped():
      self.told = hosts.highest(self.signals.caught)
      return self.told

    def place(batch):
      return sharding.place_batch(jax.tree.map(lambda a: a[self.rows], batch), self.devices)

    if not self.evaluates:
      return {}
    written = {name: self.metrics.resumed.get(f"validation/{name}") for name in validation.BIGRAM}
    counts = i == self.config.train.steps and self.tokenizer and None in written.values()
    try:
      with self.pause("evaluation"):
        bigram = validation.bigram(self.config, i, lambda: self.signals.caught) if counts else None
        result = validation.evaluate(
            self.config, i, lambda batch: self.eval_step(self.state.params, batch, self.state.step),
            place, self.token_bytes, bigram, stopped)
    except (ValueError, RuntimeError, OSError) as error:
      self.forgive(f"the evaluation of step {i} failed: {type(error).__name__}: {error}", error)
      return {}
    if result is None:
      return {}
    if i == self.start and None not in written.values():
      result |= written
    if i > self.start or "validation/loss" not in self.metrics.resumed:
      self.record(i, {"validation": result})
    with self.pause("save"):
      self.saved.rate(i, result["loss"])
    validation.tell(i, result)
    return result

  def forgive(self, what: str, error: Exception):
    """Says what is wrong with an evaluation; raises it where training is to stop."""
    if self.config.train.on_evaluation_error == "stop" or jax.process_count() > 1:
      raise error
    say(f"{what}; training goes on (train.on_evaluation_error=warn)")
