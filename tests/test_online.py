"""Training with in-context writes: gradients, packed documents, exact and chunked periods."""

import dataclasses
import functools
from pathlib import Path
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.memory import teach_signal
from hope_jax.model import lm, plan
from hope_jax.reading import reader, sequences, study
from hope_jax.scoring import validation
from hope_jax.training import steps
from tests.tiny import KINDS, VOCAB, batch_of, parameters, texts, tiny


@functools.cache
def losses(kind, **teach):
  """(params, batch) -> (summed loss, statistics, gradient) of a tiny model."""
  c = tiny(kind, **teach)
  return jax.jit(lambda params, batch: sequences.learn(c, params, batch, None, 10))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hope_hybrid", "hope_attention"])
def test_gradient_through_the_writes(kind, x64, monkeypatch):
  """through_writes = full against finite differences in float64; none leaves something out."""
  c = tiny(kind, through_writes="full", through_context="full", clip=0.3)
  c.model.dtype = "float64"
  def double(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)
  init_fast, wide = lm.init_fast, double(parameters(kind))
  monkeypatch.setattr(lm, "init_fast", lambda *args: double(init_fast(*args)))
  batch = batch_of(texts(24, 24))
  batch = jax.tree.map(lambda a: a[:, :24], batch)
  program = jax.jit(lambda params: sequences.learn(c, params, batch, None, 10))
  def loss(params):
    return float(program(params)[0])
  gradient = program(wide)[2]
  # jax's own attention weighs in float32: a smaller step shows its noise
  random, size = np.random.default_rng(0), 2e-4
  for part in ("embed", "blocks"):
    way = jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape)), wide[part])
    def move(s):
      return wide | {part: jax.tree.map(lambda p, d: p + s * d, wide[part], way)}
    want = (loss(move(size)) - loss(move(-size))) / (2 * size)
    got = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient[part]), jax.tree.leaves(way)))
    np.testing.assert_allclose(got, want, rtol=3e-4)
  data = c.copy_and_resolve_references()
  data.teach.through_writes = "none"
  cut = jax.jit(lambda params: sequences.learn(data, params, batch, None, 10))(wide)[2]
  assert np.abs(cut["blocks"]["attention"]["qkv"]["kernel"]
                - gradient["blocks"]["attention"]["qkv"]["kernel"]).max() > 1e-4
  if kind == "hope_hybrid":  # the self-modifier learns through its writes only
    def modifier(g):
      return max(float(jnp.abs(leaf).max())
                 for leaf in jax.tree.leaves(g["blocks"]["titan"]["modifier"]))
    assert modifier(cut) == 0 < modifier(gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_separate(kind):
  """Rule 4: memories, attention, levels, clocks start afresh at a document, at a chunk's start."""
  first, second = texts(13, 16, seed=3)
  packed = batch_of([first + [0] * 3 + second], [[1] * 13 + [0] * 3 + [2] * 16])
  apart = [batch_of([first + [0] * 19], [[1] * 13 + [0] * 19]),
           batch_of([second + [0] * 16], [[1] * 16 + [0] * 16])]
  program, params = losses(kind), parameters(kind)
  whole, _, gradient = program(params, packed)
  parts = [program(params, one) for one in apart]
  np.testing.assert_allclose(whole, sum(loss for loss, _, _ in parts), rtol=1e-5)
  chex.assert_trees_all_close(gradient, jax.tree.map(jnp.add, parts[0][2], parts[1][2]), atol=2e-4,
                              rtol=1e-3)


@pytest.mark.slow
def test_exact_is_chunked_where_the_period_is_the_chunk():
  """Exact shortens the chunk to the shortest period; in longer chunks a write is seen later."""
  def loss(chunk, mode):
    c = tiny("hope_attention")
    c.channel.levels = (config.Level("a", 8, lr=0.05), config.Level("b", 16, lr=0.05))
    c.teach.update(dict(chunk=chunk, mode=mode))
    params = lm.init_params(c, jax.random.key(0))
    return float(jax.jit(lambda params, batch: sequences.learn(c, params, batch, None, 10)[0])(
        params, batch_of(texts(32, 32))))
  assert loss(8, "chunked") == loss(16, "exact") != loss(16, "chunked")


@pytest.mark.slow
def test_what_a_level_is_told():
  """Gradients are at: exact, a level's own output; block, its block's; global, the last block's."""
  def first_chunk(**options):
    c = tiny("hope_attention", clip=0.0, **options)
    c.channel.levels = (config.Level("first", 8), config.Level("last", 8))
    params = lm.init_params(c, jax.random.key(0))
    read = jax.jit(lambda fast, piece: reader.chunk(c, params, fast, piece, reader.strength(c))[:2])
    out, fast = read(lm.init_fast(c, 2), jax.tree.map(lambda a: a[:, :8], batch_of(texts(9, 9))))
    return {name: (np.asarray(level.delta["up"]["kernel"]), np.asarray(out["stats"][name]["teach"]))
            for name, level in fast.layers.levels.items()}

  exact, block = first_chunk(), first_chunk(target="block")
  everywhere = first_chunk(target="block", signal="global")
  chex.assert_trees_all_close(exact["last"], block["last"], rtol=1e-4, atol=1e-6)
  assert np.abs(exact["first"][0] - block["first"][0]).max() > 1e-4
  np.testing.assert_array_equal(block["first"][1], block["last"][1])
  chex.assert_trees_all_close(jax.tree.map(lambda a: a[-1], everywhere),
                              jax.tree.map(lambda a: a[-1], block), rtol=1e-5)
  for _, teach_LxB in everywhere.values():
    np.testing.assert_array_equal(teach_LxB[0], teach_LxB[1])
    assert (teach_LxB[0] != block["last"][1][0]).all()


@pytest.mark.slow
def test_self_modifier_ablations():
  """on: trained through its writes. teach_only: written, not trained. off: not written."""
  params = parameters("hope_hybrid")
  def outcome(modifier):
    c = tiny("hope_hybrid", through_writes="full")
    c.titan.modifier = modifier
    _, stats, gradient = jax.jit(lambda p, batch: sequences.learn(c, p, batch, None,
                                                                10))(params,
                                                                     batch_of(texts(16, 16)))
    size = max(float(jnp.abs(leaf).max())
               for leaf in jax.tree.leaves(gradient["blocks"]["titan"]["modifier"]))
    return float(stats["moved/titan"].min()), size, plan.of(c).enabled

  (moved, size, _), (still_moved, frozen, _), (unmoved, _,
                                               enabled) = map(outcome, ("on", "teach_only", "off"))
  assert moved == still_moved > 0 == unmoved
  assert size > 0 == frozen and "titan" not in enabled


def test_schedule():
  t = tiny("hope_attention").teach
  t.update(dict(warmup=10, decay_start=100, decay_duration=50))
  assert [round(float(teach_signal.schedule(t, s)), 3)
          for s in (0, 5, 10, 100, 125, 150, 900)] == [0, 0.5, 1, 1, 0.5, 0, 0]
  t.update(dict(warmup=0, decay_duration=0))
  assert float(teach_signal.schedule(t, 0)) == float(teach_signal.schedule(t, 10**6)) == 1


def test_level_warmup_and_scale():
  c = tiny("hope_attention")
  c.channel.levels = (config.Level("fast", 2, lr=0.4, warmup=8), config.Level("slow", 16, lr=0.1))
  assert float(reader.strength(c, 2).rates["fast"]) == pytest.approx(0.1)
  assert reader.strength(c).rates == {"fast": 0.4, "slow": 0.1}


def test_evaluation_writes_as_training_does_at_that_step():
  """Warmed up, decayed, with nothing left of the signal; or at its full strength, if asked to."""
  batch, params = batch_of(texts(32, 32)), parameters("hope_attention")
  def configured(how):
    c = tiny("hope_attention", warmup=10, decay_start=20, decay_duration=20, at_evaluation=how)
    c.channel.levels = tuple(dataclasses.replace(level, lr=0.5, warmup=5)
                             for level in c.channel.levels)
    return c
  programs = {how: jax.jit(functools.partial(sequences.read, configured(how)))
              for how in ("as_trained", "full", "step:2")}
  def read(how, step):
    out, stats = programs[how](params, batch, step)
    return float(jnp.sum(out["nats_BxC"])), float(stats["moved/cms_fast"].sum())
  learn = jax.jit(lambda step: sequences.learn(configured("full"), params, batch, None, step)[0])
  full, most = read("full", 2)
  for step in (0, 2, 15, 30, 40):
    loss, moved = read("as_trained", step)
    assert loss == pytest.approx(float(learn(step)), rel=1e-6)
    assert (moved == 0) == (step in (0, 40)) and moved <= most
    assert (abs(loss - full) > 1e-3) == (step != 15)
  assert read("step:2", 15) == read("as_trained", 2)
  assert reader.shares(configured("as_trained"), 2)["cms_fast"] == pytest.approx(0.2 * 0.4)
  assert set(reader.shares(configured("full"), 2).values()) == {1.0}


def test_a_mean_signal_is_of_the_whole_batch_however_it_is_accumulated():
  batch, params = batch_of(texts(32, 32)), parameters("hope_attention")
  def learn(pieces):
    c = tiny("hope_attention", reduction="mean", scale=2000.0, clip=0.0)
    c.optim.accumulate = pieces
    program = jax.jit(lambda piece: sequences.learn(c, params, piece, None, 10)[:2])
    outs = [program(jax.tree.map(lambda a: a[i::pieces], batch)) for i in range(pieces)]
    return [float(sum(values)) for values in zip(*((loss, stats["moved/cms_fast"].sum() / pieces)
                                                   for loss, stats in outs))]
  (whole, moved), pieces = learn(1), learn(2)
  assert moved > 0.3 and pieces == pytest.approx([whole, moved], rel=1e-5)


def test_an_evaluation_says_how_strongly_it_wrote():
  c = tiny("hope_attention", warmup=10, metric="loss")
  c.data.update(dict(task="recall", recall_pairs=2, recall_keys=4, seq=32))
  c.model.vocab, c.train.eval_batches = VOCAB, 1
  step = steps.make_eval_step(c)
  def result(number):
    return validation.evaluate(c, number, lambda batch: step(parameters("hope_attention"), batch,
                                                             number), lambda batch: batch)
  assert result(5)["strength"]["cms_fast"] == 0.5 and result(50)["strength"]["cms_fast"] == 1
  assert result(0)["strength"]["cms_fast"] == 0  # as trained: that is no fault of a memory
  with pytest.raises(ValueError, match="at_evaluation=step:0 .* strength of 0, by the schedule"):
    study.check_strength(tiny("hope_attention", warmup=10, at_evaluation="step:0"))


@pytest.mark.parametrize("metric", ["l2", "loss", "logit_entropy"])
def test_surprise(metric):
  random = np.random.default_rng(0)
  signal, logits = random.standard_normal((2, 3, 4, 5)), random.standard_normal((3, 4, VOCAB))
  labels = random.integers(-1, VOCAB, (3, 4))
  labels[0] = -1
  nats = reader.token_losses(jnp.asarray(logits), jnp.asarray(labels))
  got = teach_signal.surprise(metric, teach_signal.norm(jnp.asarray(signal)), nats,
                              jnp.asarray(logits), jnp.asarray(labels >= 0))
  for layer in range(2):
    for b in range(3):
      p = np.exp(logits[b] - np.log(np.exp(logits[b]).sum(-1, keepdims=True)))
      per_token = {"l2": np.linalg.norm(signal[layer, b], axis=-1), "loss": np.asarray(nats)[b],
                   "logit_entropy": -(p * np.log(p)).sum(-1)}[metric]
      some = labels[b] >= 0
      np.testing.assert_allclose(got[layer, b], per_token[some].mean() if some.any() else 0,
                                 rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_a_step(kind):
  """Every memory says what it did, layer by layer; a batch of any size."""
  stats = losses(kind)(parameters(kind), batch_of(texts(32, 32, 32)))[1]
  for name, entry in plan.of(tiny(kind)).levels.items():
    path = plan.path(name)
    np.testing.assert_array_equal(stats[f"updates/{path}"], [32 // entry.period] * 2)
    np.testing.assert_array_equal(stats[f"open/{path}"], [4, 4])
    assert all(stats[f"{what}/{path}"].min() > 0 for what in ("moved", "surprise", "teach"))


def test_nested_levels_start_afresh():
  """NL Eq. 72: at the end of the next slower level's period, a level is at meta-learned weights."""
  c = tiny("hope_attention")
  c.channel.connection = "nested"
  c.channel.levels = (config.Level("fast", 8, lr=0.02), config.Level("slow", 24, lr=0.02))
  c.data.seq = 48
  read = jax.jit(lambda params, fast, piece: reader.chunk(c, params, fast, piece,
                                                          reader.strength(c))[1])
  fast, params = lm.init_fast(c, 1), lm.init_params(c, jax.random.key(0))
  def size(name):
    return float(jnp.abs(fast.layers.levels[name].delta["up"]["kernel"]).max())
  sizes = []
  chunks = reader.scan_chunks(c, batch_of(texts(48)))
  for i in range(6):
    fast = read(params, fast, jax.tree.map(lambda a: a[i], chunks))
    sizes.append((size("fast") > 0, size("slow") > 0))
  assert sizes == [(True, False), (True, False),
                   (False, True)] + [(True, True), (True, True), (False, True)]


TWO = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import NamedSharding, PartitionSpec as P
from tests import test_online as t
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
batch = jax.tree.map(np.asarray, t.batch_of(t.texts(32, 32, 32, 32)))
def mine(a):
  place, first = NamedSharding(mesh, P("data")), 2 * int(sys.argv[2])
  return jax.make_array_from_process_local_data(place, a[first:][:2])
def everywhere(a):
  return jax.make_array_from_callback(a.shape, NamedSharding(mesh, P()), lambda i: np.asarray(a)[i])
params = jax.tree.map(everywhere, t.parameters("hope_hybrid"))
loss, stats, gradient = t.losses("hope_hybrid")(params, jax.tree.map(mine, batch))
kernel = gradient["blocks"]["cms"]["fast"]["up"]["kernel"]
print(float(loss), float(stats["moved/titan"][0]), float(abs(kernel).sum()))
"""


@pytest.mark.slow
def test_two_processes_write_as_one():
  """Streams in two processes: the same loss, writes and gradient as in one."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  def start(i):
    return subprocess.Popen([sys.executable, "-c", TWO, address, str(i)], stdout=subprocess.PIPE,
                            text=True, stderr=subprocess.PIPE,
                            cwd=Path(__file__).resolve().parents[1])
  outputs = [p.communicate(timeout=240) for p in [start(0), start(1)]]
  loss, stats, gradient = losses("hope_hybrid")(parameters("hope_hybrid"),
                                                batch_of(texts(32, 32, 32, 32)))
  want = [float(loss), float(stats["moved/titan"][0]),
          float(abs(gradient["blocks"]["cms"]["fast"]["up"]["kernel"]).sum())]
  for out, error in outputs:
    assert out, error
    np.testing.assert_allclose(list(map(float, out.splitlines()[-1].split())), want, rtol=1e-4)
