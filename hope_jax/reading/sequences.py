"""A batch of whole sequences, read or learned from, from a fresh state or from where streams are.

At once, or chunk after chunk where levels are written by the teach signal. A batch holds int32
(B, T) arrays: tokens, labels (the next token, -1 where there is none) and segments (documents of a
packed window, 0 for padding).
"""

import jax
import jax.numpy as jnp

from hope_jax.model import lm, sharding
from hope_jax.reading import backward, reader


def read(config, params, batch: dict):
  """({"nats_BxC", "correct_BxC"} with C = T, statistics). Memories write as they do in training."""
  strong = reader.strength(config)
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
  fast = None if reader.strength(config) is None else _fresh(config, batch)
  return learn_on(config, params, fast, batch, rng, step)[:3]


def learn_on(config, params, fast, batch: dict, rng, step):
  """(summed loss, statistics, gradients, state) of streams that read on; their past is data.

  fast: their state; None where nothing writes: they start here, and no state is returned.
  """
  strong = reader.strength(config, step)
  if strong is None:
    out, fast, gradients = reader.chunk(config, params, fast, batch, strong, outer=True, rng=rng)
    return jnp.sum(out["nats_BxC"]), reader.by_layer(config, out["stats"]), gradients, fast
  losses, stats, gradients, fast = backward.gradient(
      config, params, fast, reader.scan_chunks(config, batch), strong, rng)
  return jnp.sum(losses), reader.summary(config, stats), gradients, fast


def _fresh(config, batch: dict):
  return sharding.constrain_fast(lm.init_fast(config, batch["tokens"].shape[0]))
