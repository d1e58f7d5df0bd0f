"""The teach signal: what a block should have added, as the gradient of the loss at its output; and when it is let through.

delta_{l,t} = d (sum over tokens of the stream's next-token loss) / d (output of block l at token t), scaled by a schedule,
clipped token by token. A chunk writes where its surprise reaches the threshold.

Letters: L layers, B streams, C tokens, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp


def schedule(teach, step):
  """Factor of config.teach.scale at an optimizer step: linear warm-up, then linear decay to 0 (none where durations are 0)."""
  step = jnp.asarray(step, jnp.float32)
  factor = jnp.minimum(1.0, step / teach.warmup) if teach.warmup else jnp.ones(())
  if teach.decay_duration:
    factor *= 1 - jnp.clip((step - teach.decay_start) / teach.decay_duration, 0.0, 1.0)
  return factor


def norm(x_D):
  """Over the last axis; its gradient at 0 is 0."""
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x_D.astype(jnp.promote_types(x_D.dtype, jnp.float32))), -1), 1e-30))


def scaled(signal_xCxD, scale, clip: float):
  """The signal times the scale, clipped to a norm per token (0: not clipped)."""
  scale = jnp.asarray(scale)
  if clip:
    scale = scale * (clip / jnp.maximum(scale * norm(signal_xCxD), clip))[..., None]
  return (scale * signal_xCxD).astype(signal_xCxD.dtype)


def surprise(metric: str, signal_LxBxCxD, losses_BxC, logits_BxCxV, labelled_BxC):
  """(L, B): the mean over the chunk's labelled tokens of the signal's norm (`l2`), the loss, or the prediction's entropy."""
  if metric == "l2":
    value = norm(signal_LxBxCxD)
  elif metric == "loss":
    value = jnp.broadcast_to(losses_BxC, (signal_LxBxCxD.shape[0], *losses_BxC.shape))
  else:
    log_p = jax.nn.log_softmax(logits_BxCxV)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    value = jnp.broadcast_to(entropy, (signal_LxBxCxD.shape[0], *entropy.shape))
  return jnp.sum(jnp.where(labelled_BxC, value, 0), -1) / jnp.maximum(jnp.sum(labelled_BxC, -1), 1)
