"""The options of memorization: what they read from and write, and what they refuse."""

from absl import flags
import chex
import jax
import numpy as np
import pytest

from hope_jax.model import lm
from hope_jax.reading import conversation, study
from hope_jax.scoring import memorization, results
from tests import tiny_run
from tests.tiny import parameters, texts, tiny

KIND = "hope_hybrid"


def begin(run, *argv):
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", str(run), "", flag_values=values)
  memorization.define_options(values)
  values(["", *argv])
  return memorization.begin(values)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  tiny_run.save(folder / "writes", tiny_run.configured(KIND))
  plain = tiny_run.configured("hope_attention")
  plain.channel.in_context = False
  tiny_run.save(folder / "plain", plain)
  return folder


def test_options_reach_the_model(runs):
  c, _, tokenizer, how = begin(runs / "writes", "--memorize", "--memorize_steps=3",
                               "--memorize_no_reset", "--memorize_paths=titan",
                               "--memorize_layers=1", "--memorize_surprise_threshold=0.5",
                               "--memorize_control=reversed", "--memorize_scale=2",
                               "--memorize_use_correct_answer")
  assert how == memorization.Options(True, 3, False, True, None, "reversed")
  assert (c.teach.paths, c.teach.layers, c.teach.threshold) == (("titan",), (1,), 0.5)
  assert (c.teach.scale, c.teach.at_evaluation, c.control.sign) == (2.0, "full", -1)
  assert how.facts()["leaks_the_answer"] and tokenizer.encode("read")
  c, _, _, how = begin(runs / "plain")
  assert not how.on and how.facts() == {"leaks_the_answer": False, "memorize": None}


@pytest.mark.parametrize("run, argv, message", [
    ("writes", ["--memorize_steps=2"], "--memorize_steps says how.*add --memorize"),
    ("plain", ["--memorize"], "writes nothing while it reads"),
    ("writes", ["--memorize", "--memorize_paths=none"], "nothing is memorized"),
    ("writes", ["--memorize", "--memorize_layers=x"], "--memorize_layers=x: layers are numbers"),
    ("writes", ["--memorize", "--memorize_steps=0"], "name what is known already")])
def test_options_that_make_no_sense(runs, run, argv, message):
  with pytest.raises(ValueError, match=message):
    begin(runs / run, *argv)


def test_a_saved_state_is_where_every_sample_starts(tmp_path):
  c, params, some = tiny(KIND), parameters(KIND), texts(30, 9, seed=4)
  learned, did = memorization.learn(c, params, lm.init_fast(c, 1), some[:1],
                                    memorization.Options(True))
  assert results.memories(did)["titan"]["updates"] > 0
  conversation.save(tmp_path / "state", learned,
                    conversation.owner(c, params) | {"pending": None})
  how = memorization.Options(True, steps=0, state=str(tmp_path / "state"))
  fast = memorization.start(c, params, how, 2)
  for b in (0, 1):
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[:, b], fast.layers),
                                jax.tree.map(lambda a: a[:, 0], learned.layers))
  fast, did = memorization.learn(c, params, fast, [[1], [2]], how)
  assert did == [{}, {}] and np.all(fast.count_B == 30)
  conversation.save(tmp_path / "fresh", lm.init_fast(c, 1),
                    conversation.owner(c, params) | {"pending": None})
  with pytest.raises(RuntimeError, match="no memory was written in it"):
    memorization.start(c, params, how._replace(state=str(tmp_path / "fresh")), 2)


def test_updates_of_a_text_are_counted_wherever_its_stream_is():
  """A stream that goes on inside a chunk: all of the second text's chunks count."""
  c, params, some = tiny(KIND), parameters(KIND), texts(11, 14, seed=6)
  how = memorization.Options(True)
  fast, _ = memorization.learn(c, params, lm.init_fast(c, 1), some[:1], how)
  copy = jax.tree.map(np.copy, fast)
  _, did = memorization.learn(c, params, fast, some[1:], how)
  _, report = study.memorize(c, params, copy, some[1:])
  assert memorization.reach(c, 11, 14) == 17 and report.nats_BxT.shape[1] == 24
  assert did[0]["cms_fast"]["updates"] == report.totals()["cms_fast"]["updates"]


def test_what_a_stream_learned_is_its_own():
  """Lengths beside it do not count: updates of one text are those that it makes alone."""
  c, params, some = tiny(KIND), parameters(KIND), texts(40, 11, seed=5)
  _, together = memorization.learn(c, params, lm.init_fast(c, 2), some, memorization.Options(True))
  for b, text in enumerate(some):
    _, report = study.memorize(c, params, lm.init_fast(c, 1), [text])
    for path, total in report.totals().items():
      assert together[b][path]["updates"] == total["updates"] > 0
      assert together[b][path]["moved"] == pytest.approx(total["moved"], rel=1e-3)
