"""The teach signal: what a block should have added, as the gradient of the loss at its output.

    delta_{l,t} = d (sum over tokens of the stream's next-token loss) / d (output of block l at t)

scaled by a schedule, clipped token by token. A chunk writes where its surprise reaches the
threshold.

Letters: L layers, B streams, C tokens, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp


def schedule(teach, step):
  """Factor of config.teach.scale at a step: linear warm-up, linear decay to 0 (0 steps: none)."""
  step = jnp.asarray(step, jnp.float32)
  factor = jnp.minimum(1.0, step / teach.warmup) if teach.warmup else jnp.ones(())
  if teach.decay_duration:
    factor *= 1 - jnp.clip((step - teach.decay_start) / teach.decay_duration, 0.0, 1.0)
  return factor


def norm(x_D):
  """Over the last axis; its gradient at 0 is 0."""
  return jnp.sqrt(jnp.maximum(
      jnp.sum(jnp.square(x_D.astype(jnp.promote_types(x_D.dtype, jnp.float32))), -1), 1e-30))


def factor(signal_xCxD, scale, clip: float):
  """Of a signal, per token: the scale, less where its norm would exceed the clip (0: nowhere)."""
  size_xC = norm(signal_xCxD)
  scale = jnp.broadcast_to(scale, size_xC.shape).astype(size_xC.dtype)
  return scale * (clip / jnp.maximum(scale * size_xC, clip)) if clip else scale


def scaled(signal_xCxN, factor_xC):
  """The signal, or another gradient of the same tokens, times the factor of each token."""
  return (factor_xC[..., None] * signal_xCxN).astype(signal_xCxN.dtype)


def surprise(metric: str, norm_LxBxC, losses_BxC, logits_BxCxV, labelled_BxC):
  """(L, B): mean over labelled tokens of the signal's norm (`l2`), loss or prediction's entropy."""
  if metric == "l2":
    value = norm_LxBxC
  elif metric == "loss":
    value = jnp.broadcast_to(losses_BxC, norm_LxBxC.shape)
  else:
    log_p = jax.nn.log_softmax(logits_BxCxV)
    value = jnp.broadcast_to(-jnp.sum(jnp.exp(log_p) * log_p, -1), norm_LxBxC.shape)
  return jnp.sum(jnp.where(labelled_BxC, value, 0), -1) / jnp.maximum(jnp.sum(labelled_BxC, -1), 1)
