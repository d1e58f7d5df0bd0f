"""A small world for tests: models in which every memory writes, so that any difference shows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import checks, lm

VOCAB, CHUNK = 11, 8
KINDS = ["hope_hybrid",
         *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("hope_attention", "hope_selfmod",
                                                                                  "titan_hybrid"))]


def tiny(kind, **teach):
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=8, layers=2, heads=2, vocab=VOCAB))
  c.attention.window = 12
  c.channel.hidden = 1.0
  if kind == "titan_hybrid":
    c.channel.kind = "swiglu"
  else:
    c.channel.in_context = True
  c.channel.levels = (config.Level("fast", 2, lr=0.02),
                    config.Level("mid", 8, rule="momentum", lr=0.02),
                    config.Level("slow", 16, rule="nl_l2_precond", lr=0.02))
  c.titan.update(dict(period=4, lr=0.02))
  c.selfmod.update(dict(memory="linear", chunk_generators=8, chunk_memory=8, eta_init=0.5))
  c.teach.update(dict(chunk=CHUNK, clip=1.0) | teach)
  c.data.update(dict(seq=32, align=8, batch=2))
  checks.validate(c)
  return c


@functools.cache
def parameters(kind):
  return noisy(tiny(kind))


def noisy(c):
  """Fresh parameters with noise, so that no gradient is small."""
  params = jax.jit(functools.partial(lm.init_params, c))(jax.random.key(0))
  noise = np.random.default_rng(1)
  return jax.tree.map(lambda p: p + 0.2 * noise.standard_normal(p.shape, np.float32), params)


def texts(*lengths, seed=0):
  random = np.random.default_rng(seed)
  return [list(map(int, random.integers(0, VOCAB, n))) for n in lengths]


def batch_of(tokens_BxT, segments_BxT=None):
  tokens = np.asarray(tokens_BxT, np.int32)
  segments = np.ones_like(tokens) if segments_BxT is None else np.asarray(segments_BxT, np.int32)
  follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  labels = np.full_like(tokens, -1)
  labels[:, :-1] = np.where(follows, tokens[:, 1:], -1)
  return {"tokens": jnp.asarray(tokens), "labels": jnp.asarray(labels),
          "segments": jnp.asarray(segments)}
