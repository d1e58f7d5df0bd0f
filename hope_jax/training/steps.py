"""One optimizer step and one evaluation step: jitted, donated, nothing leaves the device.

A batch holds int32 (B, T) arrays: tokens, labels (the next token, -1 where there is none) and
segments (documents of a packed window, 0 for padding).
"""

import functools

import jax
import jax.numpy as jnp
import optax

from hope_jax.model import axes, lm, plan, sharding
from hope_jax.model.state import TrainState
from hope_jax.reading import reader
from hope_jax.training import optimizer, spikes


def init_state(config, key) -> TrainState:
  """Fresh parameters and optimizer state."""
  params_key, rng = jax.random.split(key)
  params = lm.init_params(config, params_key)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.make(config).init(params), rng,
                    guard=spikes.fresh())


def state_shardings(config, devices):
  """Where each part of a TrainState lies."""
  return sharding.of_state(jax.eval_shape(lambda: init_state(config, jax.random.key(0))), devices)


def _whole(config, params, batch, rng, _):
  """Summed loss and memory statistics of one pass over whole sequences, and the gradient."""
  def loss_sum(params):
    logits, _, stats = lm.build(config).apply(
        {"params": params}, batch["tokens"], None, batch["segments"], aligned=True, rng=rng)
    return jnp.sum(reader.token_losses(logits, batch["labels"])), reader.by_layer(config, stats)

  (loss, stats), gradient = jax.value_and_grad(loss_sum, has_aux=True)(params)
  return loss, stats, gradient


def _online(config, params, batch, rng, step):
  """The same where memories are written by the teach signal: chunk after chunk."""
  strong, second_order = reader.strength(config, step), config.teach.through_writes == "full"
  pieces = reader.scan_chunks(config, batch)
  fast = sharding.constrain_fast(lm.init_fast(config, batch["tokens"].shape[0]))

  def learn(params, carry, xs):
    (fast, gradients), (i, piece) = carry, xs
    key = None if rng is None else jax.random.fold_in(rng, i)
    out, fast, g = reader.chunk(config, params, fast, piece, strong, outer=not second_order,
                                rng=key)
    gradients = (None if second_order
                 else sharding.constrain_params(jax.tree.map(jnp.add, gradients, g)))
    fast = sharding.constrain_fast(fast)
    return (fast, gradients), (jnp.sum(out["nats_BxC"]), out["stats"])

  def scan(params, gradients):
    body = functools.partial(learn, params)
    numbers = jnp.arange(len(pieces["tokens"]))
    (_, gradients), (losses, stats) = jax.lax.scan(jax.checkpoint(body) if second_order else body,
                                                   (fast, gradients), (numbers, pieces))
    return jnp.sum(losses), (reader.summary(config, stats), gradients)

  if second_order:
    (loss, (stats, _)), gradients = jax.value_and_grad(scan, has_aux=True)(params, None)
  else:
    loss, (stats, gradients) = scan(params, jax.tree.map(jnp.zeros_like, params))
  return loss, stats, gradients


def gradients_of(config, params, batch, rng, step):
  """(summed loss, memory statistics, gradients) of a batch at an optimizer step;
  rng: key for dropout, or None.
  """
  return (_online if plan.of(config).levels else _whole)(config, params, batch, rng, step)


def _reduces_once(config, devices) -> bool:
  """Whether devices work apart: where there are no dropout masks, which are drawn for the whole
  batch, nor tensor axis.

  Fast state is as large as parameters, for each stream: where it is written, parameters may well be
  whole. Otherwise fsdp is there to keep them cut.
  """
  _, fsdp, tensor = devices.shape.values()
  return (devices.size > 1 and tensor == 1 and not config.model.dropout
          and (fsdp == 1 or bool(plan.of(config).levels)))


def make_train_step(config, devices=None):
  """(TrainState, batch) -> (TrainState, metrics): loss in nats per label, norms, gates, as device
  arrays.

  On a mesh of devices: the state stays where sharding.py says, the metrics are on all of them.
  None: one device. With train.rollback_after, a bad step (spikes.py) changes nothing but the
  counts.
  """
  tx, factor, parts = optimizer.make(config), optimizer.schedule(config), config.optim.accumulate

  def train_step(state: TrainState, batch):
    with axes.within(devices):
      return update(state, batch)

  def sums(batch, params, rng, step):
    """(gradients, loss, statistics) of a batch, piece by piece."""
    def part(gradients, piece_and_number):
      piece, i = piece_and_number
      key = None if rng is None else jax.random.fold_in(rng, i)
      loss, stats, g = gradients_of(config, params, piece, key, step)
      return sharding.constrain_params(jax.tree.map(jnp.add, gradients, g)), (loss, stats)

    # rows of a piece are interleaved, so that every device works on every piece
    pieces = jax.tree.map(lambda a: axes.constrain(a.reshape(-1, parts, a.shape[1]).swapaxes(0, 1),
                                                   None, "streams"), batch)
    zeros = sharding.constrain_params(jax.tree.map(jnp.zeros_like, params))
    if parts == 1:
      gradients, (loss, stats) = part(zeros, (jax.tree.map(lambda a: a[0], pieces), 0))
    else:
      gradients, (loss, stats) = jax.lax.scan(part, zeros, (pieces, jnp.arange(parts)))
      loss, stats = jnp.sum(loss), jax.tree.map(lambda a: jnp.mean(a, 0), stats)
    return gradients, loss, stats

  if devices is not None and _reduces_once(config, devices):
    sums = sharding.apart(sums, devices)

  def update(state: TrainState, batch):
    rng = jax.random.fold_in(state.rng, state.step) if config.model.dropout else None
    labels = jnp.sum(batch["labels"] >= 0)
    gradients, loss, stats = sums(batch, state.params, rng, state.step)
    gradients, loss = jax.tree.map(lambda g: g / labels, gradients), loss / labels
    norm = optax.tree.norm(gradients)
    good, guard = spikes.judge(state.guard, loss, norm, config.optim.skip_above)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    new = optax.apply_updates(state.params, updates), opt_state
    if config.train.rollback_after:
      new = spikes.choose(good, new, (state.params, state.opt_state))
    metrics = {"loss": loss, "labels": labels, "grad_norm": norm,
               "lr": config.optim.lr * factor(state.guard.applied), "memory": stats, "guard": guard}
    return TrainState(state.step + 1, *new, state.rng, guard=guard), metrics

  if devices is None:
    return jax.jit(train_step, donate_argnums=0)
  return jax.jit(train_step, donate_argnums=0,
                 out_shardings=(state_shardings(config, devices), sharding.replicated(devices)))


def read(config, params, batch):
  """(losses (B, T), right predictions (B, T) bool, statistics).
  Memories write as they do in training.
  """
  if not plan.of(config).levels:
    logits, _, stats = lm.build(config).apply({"params": params}, batch["tokens"], None,
                                              batch["segments"], aligned=True)
    hit = (jnp.argmax(logits, -1) == batch["labels"]) & (batch["labels"] >= 0)
    return reader.token_losses(logits, batch["labels"]), hit, reader.by_layer(config, stats)

  def chunk(fast, piece):
    out, fast, _ = reader.chunk(config, params, fast, piece, reader.strength(config))
    return fast, out
  fast = sharding.constrain_fast(lm.init_fast(config, batch["tokens"].shape[0]))
  _, out = jax.lax.scan(chunk, fast, reader.scan_chunks(config, batch))
  def rows(a):
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)
  return rows(out["nats_BxC"]), rows(out["correct_BxC"]), reader.summary(config, out["stats"])


def make_eval_step(config, devices=None):
  """(params, batch) -> per-row sums (B,): nats, labels, correct;
  and the memories' statistics, on all devices of the mesh.
  """
  def eval_step(params, batch):
    with axes.within(devices):
      nats, hit, stats = read(config, params, batch)
    return {"nats": jnp.sum(nats, 1), "labels": jnp.sum(batch["labels"] >= 0, 1),
            "correct": jnp.sum(hit, 1), "memory": stats}

  return jax.jit(eval_step, out_shardings=None if devices is None else sharding.replicated(devices))
