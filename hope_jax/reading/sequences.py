"""A batch of whole sequences from a fresh state, read or learned from.

At once, or chunk after chunk where levels are written by the teach signal. A batch holds int32
(B, T) arrays: tokens, labels (the next token, -1 where there is none) and segments (documents of a
packed window, 0 for padding).
"""

import jax
import jax.numpy as jnp

from hope_jax.model import lm, sharding
from hope_jax.reading import reader


def read(config, params, batch: dict, step=None):
  """({"nats_BxC", "correct_BxC"} with C = T, statistics). Memories write as they do in training at
  this step, or as teach.at_evaluation says.
  """
  strong = reader.at_evaluation(config, step)
  if strong is None:
    out, _, _ = reader.chunk(config, params, None, batch, strong)
    return out, reader.by_layer(config, out.pop("stats"))

  def one(fast, piece):
    out, fast, _ = reader.chunk(config, params, fast, piece, strong)
    return fast, out

  _, out = jax.lax.scan(one, _fresh(config, batch), reader.scan_chunks(config, batch))
  stats = reader.summary(config, out.pop("stats"))
  return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), out), stats


def learn(config, params, batch: dict, rng, step):
  """(summed loss, statistics, gradients) at an optimizer step; rng: key for dropout, or None."""
  strong, second_order = reader.in_training(config, step), config.teach.through_writes == "full"
  if strong is None:
    out, _, gradients = reader.chunk(config, params, None, batch, strong, outer=True, rng=rng)
    return jnp.sum(out["nats_BxC"]), reader.by_layer(config, out["stats"]), gradients
  pieces, fast = reader.scan_chunks(config, batch), _fresh(config, batch)

  def one(params, carry, xs):
    (fast, gradients), (i, piece) = carry, xs
    key = None if rng is None else jax.random.fold_in(rng, i)
    out, fast, own = reader.chunk(config, params, fast, piece, strong, outer=not second_order,
                                  rng=key)
    if not second_order:
      gradients = sharding.constrain_params(jax.tree.map(jnp.add, gradients, own))
    return (sharding.constrain_fast(fast), gradients), (jnp.sum(out["nats_BxC"]), out["stats"])

  def total(params, gradients):
    def body(carry, xs):
      return one(params, carry, xs)
    (_, gradients), (losses, stats) = jax.lax.scan(
        jax.checkpoint(body) if second_order else body, (fast, gradients),
        (jnp.arange(len(pieces["tokens"])), pieces))
    return jnp.sum(losses), (reader.summary(config, stats), gradients)

  if second_order:
    (loss, (stats, _)), gradients = jax.value_and_grad(total, has_aux=True)(params, None)
  else:
    loss, (stats, gradients) = total(params, jax.tree.map(jnp.zeros_like, params))
  return loss, stats, gradients


def _fresh(config, batch: dict):
  return sharding.constrain_fast(lm.init_fast(config, batch["tokens"].shape[0]))
