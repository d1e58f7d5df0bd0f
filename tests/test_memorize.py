"""Laws of reading and learning: cuts, padding, batches, places change nothing; what is refused."""

import os
from pathlib import Path
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config
from hope_jax.model import lm, plan
from hope_jax.model.state import select
from hope_jax.reading import conversation, stream, study
from tests.tiny import CHUNK, KINDS, VOCAB, parameters, texts, tiny

CLOSE = dict(atol=3e-5, rtol=1e-4)


def read(kind, some, final=True, fast=None, **teach):
  c = tiny(kind, **teach)
  fast = lm.init_fast(c, len(some)) if fast is None else fast
  return study.memorize(c, parameters(kind), fast, some, final=final)


def updates(fast):
  return {name: np.asarray(level.updates_B) for name, level in fast.layers.levels.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_however_a_text_is_cut(kind, piece):
  """Rules 2 and the number of updates: any cut gives the same state, floor(n / p) updates."""
  n = 70
  some = texts(n, n)
  want, report = read(kind, some, flush_partial=False)
  fast = None
  for first in range(0, n, piece):
    fast, _ = read(kind, [t[first:first + piece] for t in some], first + piece >= n, fast,
                   flush_partial=False)
  chex.assert_trees_all_close(fast, want, **CLOSE)
  periods = {name: entry.period for name, entry in plan.of(tiny(kind)).levels.items()}
  for name, count in updates(want).items():
    np.testing.assert_array_equal(count, n // periods[name])
    assert report.stats[name]["moved"].sum() > 0
    np.testing.assert_array_equal(report.stats[name]["pending"][-1],
                                  n % periods[name] if periods[name] > CHUNK else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_alone(kind):
  """Rules 3 and 5: other streams, of other lengths, change nothing; so padding does not either."""
  some = texts(43, 30, 9, 2)
  together, report = read(kind, some)
  for b in (0, 2):
    alone, own = read(kind, [some[b]])
    chex.assert_trees_all_close(select(together, jnp.array([b])), alone, **CLOSE)
    np.testing.assert_allclose(report.loss_B[b], own.loss_B[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_padding_left_and_right_is_no_padding(kind):
  """Rule 5: streams that have learned read prompts of other lengths, padded; batch 1 is not."""
  c, lengths = tiny(kind), (8, 5, 1)
  learned, _ = read(kind, texts(40, 33, 24))
  prompts = texts(*lengths, seed=2)
  call = jax.jit(lambda *args: lm.build(c).apply({"params": parameters(kind)}, *args)[:2])
  for left in (False, True):
    here = np.array([np.arange(8) >= 8 - n if left else np.arange(8) < n for n in lengths])
    tokens = np.zeros((3, 8), np.int32)
    tokens[here] = np.concatenate(prompts)
    segments = np.where(here, np.asarray(learned.segment_B)[:, None], 0)
    logits, after = call(tokens, learned, segments)
    for b, prompt in enumerate(prompts):
      own, alone = call(np.array([prompt]), select(learned, jnp.array([b])),
                        segments[b][here[b]][None])
      chex.assert_trees_all_close(logits[b][here[b]], own[0], **CLOSE)
      chex.assert_trees_all_close(select(after, jnp.array([b])), alone, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_does_not_leak(kind):
  """Rule 6: another token at t changes no loss before it is to be predicted."""
  some, at = texts(40)[0], 21
  other = some[:at] + [(some[at] + 1) % VOCAB] + some[at + 1:]
  (_, a), (_, b) = read(kind, [some]), read(kind, [other])
  np.testing.assert_allclose(a.nats_BxT[0, :at - 1], b.nats_BxT[0, :at - 1], atol=1e-6)
  assert np.abs(a.nats_BxT[0, at - 1:] - b.nats_BxT[0, at - 1:]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_reading_goes_on_with_what_was_learned(kind):
  """A state of memorize, read on in one call or in two; and without writes nothing is learned."""
  c, params, (text,) = tiny(kind), parameters(kind), texts(60)
  learned, _ = read(kind, [text[:32]])
  _, with_it = study.memorize(c, params, jax.tree.map(jnp.copy, learned), [text[32:]], write=False)
  forgotten = jax.tree.map(jnp.copy, learned)
  forgotten = forgotten.replace(
      layers=forgotten.layers.replace(levels=lm.init_fast(c, 1).layers.levels))
  _, without = study.memorize(c, params, forgotten, [text[32:]], write=False)
  assert np.abs(with_it.nats_BxT - without.nats_BxT).max() > 1e-3
  half, _ = study.memorize(c, params, jax.tree.map(jnp.copy, learned), [text[32:45]], write=False)
  whole, _ = study.memorize(c, params, jax.tree.map(jnp.copy, learned), [text[32:]], write=False)
  rest, _ = study.memorize(c, params, half, [text[45:]], write=False)
  chex.assert_trees_all_close(rest, whole, **CLOSE)
  for name, level in whole.layers.levels.items():
    chex.assert_trees_all_equal(level.delta, learned.layers.levels[name].delta)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_untouched_and_a_closed_gate_changes_nothing(kind):
  """Rule 7, and bit for bit."""
  before = jax.tree.map(np.array, parameters(kind))
  read(kind, texts(40))
  fast, report = read(kind, texts(40), threshold=1e9)
  chex.assert_trees_all_equal(jax.tree.map(np.array, parameters(kind)), before)
  fresh, learned = lm.init_fast(tiny(kind),
                                1), lambda level: (level.delta, level.rule, level.updates_B)
  for name, level in fast.layers.levels.items():
    chex.assert_trees_all_equal(learned(level), learned(fresh.layers.levels[name]))
  with pytest.raises(RuntimeError,
                     match="memory .* made no update: no gate opened: the largest surprise was"):
    study.check_updates(report.totals())
  study.check_updates(report.totals(plan.of(tiny(kind, paths=("none",))).enabled))


def test_self_modifying_memories_that_stand_still_are_an_error():
  c, none = tiny("hope_selfmod", paths=("selfmod",)), np.zeros((1, 8))
  def report(moved):
    return study.Report(none, none > 0,
                        {"selfmod": {"moved/mem": np.full((1, 2), moved), "eta": np.ones((1, 2))}})
  with pytest.raises(RuntimeError, match="have not moved.*selfmod.eta_init"):
    study.check(c, [report(0.0)])
  study.check(c, [report(0.1)])
  study.check(tiny("hope_selfmod", paths=("none",)), [report(0.0)])


def test_a_memory_that_was_written_in_one_reading_was_written():
  """A text that is known surprises less: the gate may be closed when it is read again."""
  c, none = tiny("hope_attention", paths=("cms_mid",)), np.zeros((1, 8))
  names = ("updates", "open", "moved", "surprise", "pending")
  def report(opened, surprise):
    return study.Report(none, none > 0, {"mid": {
        name: np.full((1, 2, 1), surprise if name == "surprise" else float(opened))
        for name in names}})
  study.check(c, [report(True, 3.0), report(False, 1.0)])
  with pytest.raises(RuntimeError,
                     match="cms_mid made no update: no gate opened: the largest surprise was 2,"):
    study.check(c, [report(False, 2.0), report(False, 1.0)])


@pytest.mark.slow
def test_paths_and_layers():
  fast, report = read("hope_hybrid", texts(40), paths=("titan", "cms_mid"), layers=(1,))
  for name, count in updates(fast).items():
    assert (count[0] == 0).all() and (count[1] > 0).all() == (name in ("titan", "mid"))
  assert set(report.totals()) == {"titan", "cms_fast", "cms_mid", "cms_slow"}
  def memory(**teach):
    return read("hope_selfmod", texts(40), **teach)[0].layers.tokens["selfmod"].memory
  def moved(a, b):
    return [float(jnp.abs(x[i] - y[i]).max()) for i in (0, 1) for x, y in [list(map(
        lambda t: jax.tree.leaves(t)[0], (a, b)))]]
  still = moved(memory(paths=("none",)), memory(paths=("none",), layers=(0,)))
  assert still == [0, 0] and moved(memory(paths=("none",)),
                                   memory(paths=("selfmod",), layers=(1,)))[0] == 0
  assert moved(memory(paths=("none",)), memory(paths=("selfmod",), layers=(1,)))[1] > 0


@pytest.mark.parametrize("some, message", [
    (texts(1), "text 0 has 1 tokens: there is nothing to learn"), ([[]], "text 0 has 0 tokens"),
    ([[1, VOCAB]], "outside the vocabulary of 11")])
def test_what_cannot_be_learned_from(some, message):
  with pytest.raises(ValueError, match=message):
    read("hope_attention", some)


def test_a_memory_that_blows_up_is_said():
  with pytest.raises(FloatingPointError, match="not finite.*smaller lr of the levels"):
    read("hope_hybrid", texts(40), scale=1e6, clip=0.0)


def test_another_number_of_streams():
  with pytest.raises(ValueError, match="2 texts for a state of 1 streams"):
    read("hope_attention", texts(9, 9), fast=lm.init_fast(tiny("hope_attention"), 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_saved_and_goes_on(kind, tmp_path):
  """Rule 7: saved inside a chunk, it goes on the same; other batch sizes and levels are refused."""
  text, = texts(60)
  want, _ = read(kind, [text])
  early, _ = read(kind, [text[:21]], final=False)
  assert int((early.held_BxC >= 0).sum()) == 5  # 16 learned from, 5 wait
  own = conversation.owner(tiny(kind), parameters(kind))
  conversation.save(tmp_path / "state", early, own)
  def like(c, batch):
    return jax.eval_shape(lambda: lm.init_fast(c, batch))
  restored, _ = conversation.load(tmp_path / "state", like(tiny(kind), 1), own)
  got, _ = read(kind, [text[21:]], fast=restored)
  chex.assert_trees_all_close(got, want, **CLOSE)
  other = tiny(kind)
  other.channel.levels, other.titan.rule = other.channel.levels[:2], "momentum"
  longer = tiny(kind)  # arrays of the same shapes
  longer.channel.levels, longer.titan.period = (*longer.channel.levels[:2],
                                                config.Level("slow", 32)), 8
  for state in (like(tiny(kind), 2), like(other, 1)):
    with pytest.raises(ValueError, match="checkpoint of another fast state"):
      conversation.load(tmp_path / "state", state, own)
  for c in (other, longer):
    with pytest.raises(ValueError,
                       match="written by other levels: it has (titan|cms_slow)=.*set the same "
                             "levels"):
      conversation.load(tmp_path / "state", like(c, 1), conversation.owner(c, parameters(kind)))
  with pytest.raises(ValueError, match="belongs to another model"):
    conversation.load(tmp_path / "state", like(tiny(kind), 1), own | {"fingerprint": "another"})


def test_generation_reads_what_waits(tmp_path):
  """A stream started from a state of memorize first reads the tokens that wait, saved or not."""
  c, params, (text,) = tiny("hope_attention"), parameters("hope_attention"), texts(21)
  state, _ = read("hope_attention", [text], final=False)
  streams = [stream.Stream(c, params) for _ in range(3)]
  streams[0].start(state)
  streams[0].save(tmp_path / "talk")
  streams[1].load(tmp_path / "talk")
  streams[2].start(state.replace(held_BxC=jnp.full_like(state.held_BxC, -1)))
  assert [s.count for s in streams] == [21, 21, 16]
  want = list(streams[2].generate(text[16:], 5))
  for s in streams[:2]:
    assert list(s.generate([], 5)) == want and s.count == 26


def test_generation_reads_with_what_was_learned_until_it_is_reset():
  """Levels' weights are added up once; each token is the model's own choice all the same."""
  c, params, (text,) = tiny("hope_hybrid"), parameters("hope_hybrid"), texts(24)
  learned, _ = read("hope_hybrid", [text])
  learned = lm.forget_context(c, learned)  # what is left differs by the levels alone
  strong = {name: own.replace(delta=jax.tree.map(lambda d: 50 * d, own.delta))
            for name, own in learned.layers.levels.items()}
  learned = learned.replace(layers=learned.layers.replace(levels=strong))
  fresh = lm.init_fast(c, 1)
  call = jax.jit(lambda fast, token: lm.build(c).apply({"params": params}, token, fast))

  def drawn(fast, tokens):
    out, token = [], 3
    for _ in range(tokens):
      logits, fast, _ = call(fast, jnp.full((1, 1), token))
      key = jax.random.fold_in(jax.random.key(0), fast.count_B[0])
      token = int(stream.nucleus(logits[0, 0], key, 1.0, 1.0))
      out.append(token)
    return out

  own = stream.Stream(c, params, temperature=1.0)
  own.start(learned)
  assert list(own.generate([3], 8)) == drawn(learned, 8)
  own.reset()
  assert list(own.generate([3], 8)) == drawn(fresh, 8)
  assert drawn(learned.replace(count_B=fresh.count_B), 8) != drawn(fresh, 8)


SHARDED = """
import jax, numpy as np
from hope_jax.model import lm, sharding
from hope_jax.reading import study
from tests import test_memorize as t
c, some = t.tiny("hope_hybrid"), t.texts(*t.LENGTHS)
fast = sharding.place_fast(lm.init_fast(c, 8), sharding.mesh(c))
params = jax.device_put(t.parameters("hope_hybrid"), sharding.replicated(sharding.mesh(c)))
after, report = study.memorize(c, params, fast, some)
delta = after.layers.levels["fast"].delta["up"]["kernel"]
assert {s.data.shape[1] for s in delta.addressable_shards} == {1}, "not sharded"
print(*report.loss_B, *t.sizes(after))
"""
LENGTHS = 43, 30, 21, 9, 16, 2, 40, 33


def sizes(fast):
  """Of what each memory has learned in each layer."""
  return np.array([jnp.abs(level.delta["up"]["kernel"]).sum((1, 2, 3))
                   for level in fast.layers.levels.values()]).ravel()


@pytest.mark.slow
def test_many_devices_read_as_one():
  """Streams sharded over 8 devices of the host: the same losses, and the same is learned."""
  done = subprocess.run([sys.executable, "-c", SHARDED], cwd=Path(__file__).resolve().parents[1],
                        capture_output=True,
                        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"}, text=True)
  assert done.returncode == 0, done.stderr
  after, report = read("hope_hybrid", texts(*LENGTHS))
  np.testing.assert_allclose(list(map(float, done.stdout.split())), [*report.loss_B, *sizes(after)],
                             rtol=1e-4)
