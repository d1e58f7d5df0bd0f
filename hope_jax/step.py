"""One optimizer step and one evaluation step: jitted, donated, nothing leaves the device.

A batch holds int32 (B, T) arrays: tokens, labels (the next token, -1 where there is none) and segments (documents of a
packed window, 0 for padding).
"""

import jax
import jax.numpy as jnp
import optax

from hope_jax import model as models
from hope_jax import optim
from hope_jax.state import TrainState


def token_losses(logits_BxTxV, labels_BxT):
  """Cross-entropy in nats, 0 where there is no label."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, jnp.maximum(labels_BxT, 0))
  return jnp.where(labels_BxT >= 0, losses, 0.0)


def init_state(config, key) -> TrainState:
  """Fresh parameters and optimizer state."""
  params_key, rng = jax.random.split(key)
  params = models.init_params(config, params_key)
  return TrainState(jnp.zeros((), jnp.int32), params, optim.make(config).init(params), rng)


def make_train_step(config):
  """(TrainState, batch) -> (TrainState, metrics): loss in nats per label, norms, gates, as device arrays."""
  model, tx, factor = models.build(config), optim.make(config), optim.schedule(config)
  parts = config.optim.accumulate

  def loss_sum(params, batch, rng):
    logits, _, stats = model.apply({"params": params}, batch["tokens"], None, batch["segments"], aligned=True, rng=rng)
    return jnp.sum(token_losses(logits, batch["labels"])), stats

  def train_step(state: TrainState, batch):
    rng = jax.random.fold_in(state.rng, state.step) if config.model.dropout else None
    labels = jnp.sum(batch["labels"] >= 0)

    def part(gradients, piece_and_number):
      piece, i = piece_and_number
      key = None if rng is None else jax.random.fold_in(rng, i)
      (loss, stats), g = jax.value_and_grad(loss_sum, has_aux=True)(state.params, piece, key)
      return jax.tree.map(jnp.add, gradients, g), (loss, stats)

    # rows of a piece are interleaved, so that every device works on every piece
    pieces = jax.tree.map(lambda a: a.reshape(-1, parts, a.shape[1]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    if parts == 1:
      gradients, (loss, stats) = part(zeros, (jax.tree.map(lambda a: a[0], pieces), 0))
    else:
      gradients, (loss, stats) = jax.lax.scan(part, zeros, (pieces, jnp.arange(parts)))
      loss, stats = jnp.sum(loss), jax.tree.map(lambda a: jnp.mean(a, 0), stats)
    gradients = jax.tree.map(lambda g: g / labels, gradients)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss / labels, "labels": labels, "grad_norm": optax.tree.norm(gradients),
               "lr": config.optim.lr * factor(state.step), "memory": stats}
    return TrainState(state.step + 1, params, opt_state, state.rng), metrics

  return jax.jit(train_step, donate_argnums=0)


def make_eval_step(config):
  """(params, batch) -> per-row sums (B,): nats, labels, correct."""
  model = models.build(config)

  def eval_step(params, batch):
    logits, _, stats = model.apply({"params": params}, batch["tokens"], None, batch["segments"], aligned=True)
    labels = batch["labels"]
    hit = (jnp.argmax(logits, -1) == labels) & (labels >= 0)
    return {"nats": jnp.sum(token_losses(logits, labels), 1), "labels": jnp.sum(labels >= 0, 1),
            "correct": jnp.sum(hit, 1), "memory": stats}

  return jax.jit(eval_step)
