"""Laws of level stacking: a new model computes the same until it writes or trains; refusals."""

import functools
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.checkpoints import weights
from hope_jax.data import loader
from hope_jax.model import checks, lm
from hope_jax.reading import study
from hope_jax.training import loop, stack, steps

ROOT = Path(__file__).resolve().parents[1]
VOCAB, TOKENS = 23, 20
CLOSE = dict(atol=1e-5, rtol=1e-5)
PERIODS = (2, 8, 16)
ACTIVATION = {"transformer": "swiglu", "hope_attention": "gelu"}


def levels(count):
  return tuple(config.Level(f"every_{p}", p, lr=0.05) for p in PERIODS[:count])


def tiny(kind, **fields):
  """A tiny transformer, or hope_attention of one level; fields of the mixer."""
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=8, layers=2, heads=2, vocab=VOCAB, embed_std=0.1))
  c.attention.window = 12
  c.channel.update(dict(kind="swiglu" if kind == "transformer" else "cms", hidden=1.5,
                      levels=(config.Level("only", 0),)))
  c.teach.chunk = 8
  c.data.update(dict(seq=32, align=8, batch=2))
  c.channel.update(fields)
  checks.validate(c)
  return c


def stacked(kind, count, **fields):
  """Its counterpart of `count` levels that write in context."""
  return tiny("hope_attention",
              **dict(activation=ACTIVATION[kind], levels=levels(count), in_context=True) | fields)


@functools.cache
def parameters(kind, count=1, connection="sequential"):
  """(config, parameters) of an original: noise, large enough that every parameter shows."""
  c = tiny(kind, levels=levels(count), connection=connection)
  noise = np.random.default_rng(1)
  return c, jax.tree.map(lambda s: jnp.asarray(0.5 * noise.standard_normal(s.shape), s.dtype),
                         jax.eval_shape(lambda: lm.init_params(c, jax.random.key(0))))


def text(batch=2):
  return jnp.asarray(np.random.default_rng(3).integers(0, VOCAB, (batch, TOKENS)))


def read(c, params, tokens, fast=None):
  """(logits, fast state)."""
  return lm.build(c).apply({"params": params}, tokens, fast)[:2]


@functools.cache
def wanted(*original):
  c, params = parameters(*original)
  return jax.jit(functools.partial(read, c))(params, text())[0]


def stacked_params(c, original, streamed=False):
  """The original's parameters, stacked; checks that `c` is their configuration and logits agree.

  streamed: also when a prompt is read, then single tokens.
  """
  old, trained = parameters(*original)

  @jax.jit
  def compute(trained):
    params = stack.stack(c, trained, old)
    out = [read(c, params, text())[0]]
    if streamed:
      logits, fast = read(c, params, text()[:, :16], lm.init_fast(c, 2))
      def one(fast, token_B):
        logits, fast = read(c, params, token_B[:, None], fast)
        return fast, logits[:, 0]
      _, rest = jax.lax.scan(one, fast, text()[:, 16:].T)
      out.append(jnp.concatenate([logits, rest.swapaxes(0, 1)], 1))
    return params, out

  params, out = compute(trained)
  chex.assert_trees_all_equal_shapes_and_dtypes(params,
                                                jax.eval_shape(
                                                    lambda: lm.init_params(c, jax.random.key(0))))
  for logits in out:
    np.testing.assert_allclose(logits, wanted(*original), **CLOSE)
  return params


@pytest.mark.parametrize("connection",
                         ["sequential", pytest.param("independent", marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_transformer_becomes_levels(count, connection):
  stacked_params(stacked("transformer", count, connection=connection), ("transformer",),
                 streamed=True)


@pytest.mark.parametrize("before, after, connection",
                         [(1, 3, "nested"), (2, 3, "sequential"), (2, 2, "independent")])
def test_hope_attention_becomes_more_levels(before, after, connection):
  original = ("hope_attention", before, "independent" if connection == "independent"
              else "sequential")
  c, (old, trained) = stacked("hope_attention", after, connection=connection), parameters(*original)
  params = stacked_params(c, original)
  # the slowest are the trained ones
  for new, entry in zip(reversed(c.channel.levels), reversed(old.channel.levels)):
    chex.assert_trees_all_equal(params["blocks"]["cms"][new.name],
                                trained["blocks"]["cms"][entry.name])


@pytest.mark.parametrize("connection", ["sequential", "independent"])
def test_one_independent_level_becomes_two(connection):
  """Its share is all there is, whatever its parameter."""
  original = "hope_attention", 1, "independent"
  assert parameters(*original)[1]["blocks"]["cms"]["share"].any()
  stacked_params(stacked("hope_attention", 2, connection=connection), original)


def test_new_levels_can_learn():
  """What adds nothing has a gradient."""
  old, trained = parameters("transformer")
  c = stacked("transformer", 2)
  params = stack.stack(c, trained, old)
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(read(c, p, text())[0]))))(params)
  for entry in c.channel.levels[:-1]:
    assert not params["blocks"]["cms"][entry.name]["down"]["kernel"].any()
    assert (
        jnp.abs(gradient["blocks"]["cms"][entry.name]["down"]["kernel"]).max((1, 2)) > 1e-3).all()


def test_it_differs_from_the_first_write_on():
  old, trained = parameters("transformer")
  c = stacked("transformer", 2)
  params = stack.stack(c, trained, old)
  fast, _ = study.memorize(c, params, lm.init_fast(c, 2),
                           [list(map(int, row)) for row in text()[:, :-4]])
  assert all((level.updates_B > 0).all() for level in fast.layers.levels.values())
  after, _ = jax.jit(functools.partial(read, c))(params, text()[:, -4:], fast)
  assert jnp.abs(after - wanted("transformer")[:, -4:]).max() > 1e-2


@pytest.mark.parametrize("fields, message", [
    ({"model.pattern": ("selfmod",)}, r"model.pattern=\('selfmod',\), but to go on from this "
                                      r"checkpoint \(attention, "
                                      r"swiglu\) it must be \('attention',\): set "
                                      r"--config.model.pattern"),
    ({"channel.kind": "swiglu"}, "channel.kind=swiglu, .* must be cms: set "
                                 "--config.channel.kind=cms"),
    ({"channel.activation": "gelu"}, "channel.activation=gelu, .* must be swiglu: set "
                                   "--config.channel.activation=swiglu"),
    ({"channel.norm": "layer"},
     "channel.norm=layer, .* must be rms: set --config.channel.norm=rms"),
    ({"channel.hidden": 2.0},
     "channel.hidden=2.0, .* must be 1.5: set --config.channel.hidden=1.5"),
    ({"model.dim": 16}, "model.dim=16, .* must be 8: set --config.model.dim=8"),
    ({"model.layers": 3}, "model.layers=3, .* must be 2: set"),
    ({"model.heads": 1}, "model.heads=1, .* must be 2: set"),
    ({"model.vocab": 24}, "model.vocab=24, .* must be 23: set"),
    ({"model.embed_std": 0.02}, "model.embed_std=0.02, .* must be 0.1: set"),
    ({"attention.window": 0}, "attention.window=0, .* must be 12: set"),
    ({"attention.rope_base": 500.0}, "attention.rope_base=500.0, .* must be 10000.0: set"),
    ({"channel.levels": ()}, "channel.levels: 0 levels, the checkpoint has 1: give 1 or more"),
])
def test_what_does_not_fit_a_transformer(fields, message):
  c = stacked("transformer", 2)
  c.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    stack.stack(c, {}, tiny("transformer"))


@pytest.mark.parametrize("old, new, message", [
    (dict(count=3), dict(count=2),
     "channel.levels: 2 levels, the checkpoint has 3: give 3 or more"),
    (dict(count=2), dict(count=2, connection="independent"),
     "channel.connection=independent, but the checkpoint's 2 levels are sequential: .* set "
     ".*connection=sequential"),
    (dict(count=2, connection="independent"), dict(count=3, connection="nested"),
     "channel.connection=nested, but the checkpoint's 2 levels are independent: .* set "
     ".*connection=independent"),
    (dict(count=2, connection="independent"), dict(count=3, connection="independent"),
     "channel.levels: 3 levels, the checkpoint has 2; among independent levels, .*: give 2"),
    (dict(count=1), dict(count=2, activation="swiglu"),
     "channel.activation=swiglu, .* checkpoint .attention, cms. it must be gelu"),
    (dict(count=1, norm="layer"), dict(count=2),
     "channel.norm=rms, .* must be layer: set --config.channel.norm=layer"),
    (dict(count=0, in_context=False), dict(count=2), "channel.levels are none"),
])
def test_what_does_not_fit_hope_attention(old, new, message):
  with pytest.raises(ValueError, match=message):
    stack.stack(stacked("hope_attention", **new), {}, stacked("hope_attention", **old))


@pytest.mark.parametrize("kind", ["hope_selfmod", "hope_hybrid"])
def test_other_models_have_no_place_for_levels(kind):
  old = stacked("transformer", 1)
  old.model.update(config.PRESETS[kind])
  with pytest.raises(ValueError,
                     match="the checkpoint's model is .*: levels are stacked on attention alone"):
    stack.stack(stacked("transformer", 2), {}, old)


def recall(kind, count):
  """A tiny run on recall; the outer optimizer trains levels, one of them on a clock of its own."""
  c = tiny(kind, activation="swiglu",
           levels=(config.Level("fast", 0), config.Level("slow", 64))[-count:])
  c.data.update(dict(task="recall", recall_pairs=2, recall_keys=8, batch=4))
  c.optim.update(dict(warmup=1, lr=1e-2))
  c.train.update(dict(steps=3, log_every=1, eval_every=10, eval_batches=1, save_every=2))
  return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The folder of a transformer, trained for three steps."""
  folder = tmp_path_factory.mktemp("stack")
  loop.train(recall("transformer", 1), folder / "transformer")
  return folder / "transformer"


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


@pytest.mark.slow
def test_launch_goes_on_from_a_transformer_and_resumes(trained, capfd):
  c, run, file = (recall("hope_attention", 2), trained.parent / "levels",
                  trained.parent / "levels.py")
  file.write_text("from hope_jax import config\nget_config = lambda: "
                  f"config.from_json({config.to_json(c)!r})")
  command = [sys.executable, "-m", "hope_jax.launch", f"--config={file}", f"--workdir={run}",
             f"--init_from={trained}"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
  assert done.returncode == 0 and "starting in" in done.stderr, done.stderr

  params, old, _ = weights.load(trained / "checkpoints")
  batch = next(iter(loader.train_batches(c)))  # the first that the new run trains on
  out = steps.make_eval_step(old)(params, batch, 0)
  first = losses(run)
  assert set(first) == {1, 2, 3}
  np.testing.assert_allclose(first[1], out["nats"].sum() / out["labels"].sum(), rtol=1e-5)

  shutil.rmtree(run / "checkpoints" / "3")  # a run that was stopped after step 2
  loop.train(c, run, init_from="nowhere")
  said = capfd.readouterr().err
  assert "has a checkpoint and goes on from it: --init_from=nowhere is ignored" in said
  assert "resuming at step 2" in said
  assert losses(run) == pytest.approx(first, rel=1e-4)


def test_a_start_that_does_not_fit_is_refused_before_anything_is_trained(trained, tmp_path,
                                                                         monkeypatch):
  c = recall("hope_attention", 2)
  with pytest.raises(FileNotFoundError, match="no checkpoint in .*nowhere"):
    loop.train(c, tmp_path / "run", tmp_path / "nowhere")
  params, old, meta = weights.load(trained / "checkpoints")
  monkeypatch.setattr(weights, "load", lambda *_, **__: (params, old, meta | {"tokenizer": "abc"}))
  with pytest.raises(ValueError,
                     match="tokenizer does not match the checkpoint: it was trained with abc"):
    loop.train(c, tmp_path / "run", trained)
  assert not (tmp_path / "run" / "config.json").exists()
