"""One optimizer step and one evaluation step: jitted, donated, nothing leaves the device.

A batch holds int32 (B, T) arrays: tokens, labels (the next token, -1 where there is none) and
segments (documents of a packed window, 0 for padding).
"""

import functools

import jax
import jax.numpy as jnp
import optax

from hope_jax.model import axes, lm, plan, sharding
from hope_jax.model.state import TrainState, by_stream
from hope_jax.reading import sequences
from hope_jax.training import groups, optimizer, spikes


def init_state(config, key) -> TrainState:
  """Fresh parameters and optimizer state."""
  params_key, rng = jax.random.split(key)
  params = lm.init_params(config, params_key)
  fast = lm.init_fast(config, config.data.batch) if config.data.carry else None
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.make(config).init(params), rng,
                    fast, spikes.fresh())


def state_shardings(config, devices):
  """Where each part of a TrainState lies."""
  return sharding.of_state(jax.eval_shape(lambda: init_state(config, jax.random.key(0))), devices)


def _reduces_once(config, devices) -> bool:
  """Whether devices work apart: no dropout masks, which are of the whole batch, and no tensor axis.

  Fast state is as large as parameters, for each stream: where it is written, parameters may well be
  whole. Otherwise fsdp is there to keep them cut.
  """
  _, fsdp, tensor = devices.shape.values()
  return (devices.size > 1 and tensor == 1 and not config.model.dropout
          and (fsdp == 1 or bool(plan.of(config).levels)))


def _sums(config, batch, fast, params, rng, step):
  """(gradients, loss, statistics, state of the streams) of a batch, in optim.accumulate pieces.

  fast: of streams that read on; None: they start here.
  """
  parts = config.optim.accumulate

  def add(gradients, piece):
    batch, fast, i = piece
    key = None if rng is None else jax.random.fold_in(rng, i)
    if fast is None:
      loss, stats, own = sequences.learn(config, params, batch, key, step)
    else:
      loss, stats, own, fast = sequences.learn_on(config, params, fast, batch, key, step)
    return sharding.constrain_params(jax.tree.map(jnp.add, gradients, own)), (loss, stats, fast)

  # rows of a piece are interleaved, so that every device works on every piece
  def cut(a, axis=0):
    a = jnp.moveaxis(a.reshape(*a.shape[:axis], -1, parts, *a.shape[axis + 1:]), axis + 1, 0)
    return axes.constrain(a, None, *[None] * axis, "streams")

  def whole(a, axis):
    a = jnp.moveaxis(a, 0, axis + 1)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2:])

  zeros = sharding.constrain_params(jax.tree.map(jnp.zeros_like, params))
  if parts == 1:
    gradients, (loss, stats, fast) = add(zeros, (batch, fast, 0))
    return gradients, loss, stats, fast
  gradients, (losses, stats, fast) = jax.lax.scan(
      add, zeros, (jax.tree.map(cut, batch), by_stream(cut, fast), jnp.arange(parts)))
  return (gradients, jnp.sum(losses), jax.tree.map(lambda a: jnp.mean(a, 0), stats),
          by_stream(whole, fast))


def make_train_step(config, devices=None):
  """(TrainState, batch) -> (TrainState, metrics): loss in nats per label, norms, gates, on device.

  On a mesh of devices: the state stays where sharding.py says, the metrics are on all of them.
  None: one device. A batch without labels changes nothing; nor, but for the counts, does a bad step
  (spikes.py) with train.rollback_after.
  """
  tx, factor = optimizer.make(config), optimizer.schedule(config)
  sums = functools.partial(_sums, config)
  if devices is not None and _reduces_once(config, devices):
    sums = sharding.apart(sums, devices)

  def train_step(state: TrainState, batch):
    rng = jax.random.fold_in(state.rng, state.step) if config.model.dropout else None
    labels = jnp.sum(batch["labels"] >= 0)
    some, count = labels > 0, jnp.maximum(labels, 1)
    with axes.within(devices):
      gradients, loss, stats, fast = sums(batch, state.fast, state.params, rng, state.step)
      gradients, loss = jax.tree.map(lambda g: g / count, gradients), loss / count
      norm = optax.tree.norm(gradients)
      good, guard = spikes.judge(state.guard, loss, norm, config.optim.skip_above)
      def apply():
        updates, opt_state = tx.update(gradients, state.opt_state, state.params, labels=labels,
                                       applied=state.guard.applied,
                                       last=state.step + 1 == config.train.steps)
        return optax.apply_updates(state.params, updates), opt_state, groups.norms(updates)
      pulled = groups.norms(gradients)
      still = jax.tree.map(jnp.zeros_like, pulled)
      old = state.params, state.opt_state
      (*new, moved), guard = jax.lax.cond(some, lambda: (apply(), guard),
                                          lambda: ((*old, still), state.guard))
    if config.train.rollback_after:
      new, fast, moved = spikes.choose(good, (tuple(new), fast, moved), (old, state.fast, still))
    metrics = {"loss": loss, "labels": labels, "grad_norm": norm,
               "lr": config.optim.lr * factor(state.guard.applied), "memory": stats,
               "gradient": pulled, "update": moved, "guard": guard}
    return TrainState(state.step + 1, *new, state.rng, fast, guard), metrics

  if devices is None:
    return jax.jit(train_step, donate_argnums=0)
  return jax.jit(train_step, donate_argnums=0,
                 out_shardings=(state_shardings(config, devices), sharding.replicated(devices)))


def make_eval_step(config, devices=None):
  """(params, batch, step) -> row sums (B,): nats, labels, correct; memories' statistics.

  Replicated. step: of the training, for teach.at_evaluation.
  """
  def eval_step(params, batch, step):
    with axes.within(devices):
      out, stats = sequences.read(config, params, batch, step)
    return {"nats": jnp.sum(out["nats_BxC"], 1), "labels": jnp.sum(batch["labels"] >= 0, 1),
            "correct": jnp.sum(out["correct_BxC"], 1), "memory": stats}

  return jax.jit(eval_step, out_shardings=None if devices is None else sharding.replicated(devices))
