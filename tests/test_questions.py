"""Questions about memorized text: fresh or carried on, leaks are labelled, what is refused."""

import json
from pathlib import Path
import sys

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.model import lm
from hope_jax.reading import study
from tests import test_long_documents as documents
from tests.tiny import parameters, texts, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import questions as program

KIND, LOUD = "hope_attention", dict(scale=10.0)  # so that a single reading shows


def samples():
  return [program.Sample(*parts) for parts in zip(texts(20, 33, 17, seed=1), texts(5, 9, 1, seed=2),
                                                  texts(3, 1, 4, seed=3))]


def score(some, *, steps=1, batch=3, reset=True, leak=False, **teach):
  return program.score(tiny(KIND, **LOUD | teach), parameters(KIND), some, steps=steps, batch=batch,
                       reset=reset, leak=leak)


class Letters:
  """A tokenizer."""
  begin, encode = [0], staticmethod(lambda text: [ord(letter) for letter in text])


def column(rows, key):
  return np.array([row[key] for row in rows])


@pytest.mark.slow
def test_a_batch_is_its_samples_one_by_one():
  (rows, totals), (own, own_totals) = score(samples()), score(samples(), batch=1)
  for key in ("tokens", "off", "on"):
    np.testing.assert_allclose(column(rows, key), column(own, key), rtol=1e-4)
  assert np.abs(column(rows, "off") - column(rows, "on")).min() > 1e-4
  assert all(total["updates"] > 0
             for total in totals.values()) and totals.keys() == own_totals.keys()


@pytest.mark.slow
def test_a_sample_carries_on_or_starts_afresh():
  """What a question is answered with: both texts, or the second; the question leaves nothing."""
  c, params, some = tiny(KIND, **LOUD), parameters(KIND), samples()[:2]
  afresh, carried = score(some)[0], score(some, reset=False)[0]
  assert carried[0]["on"] == pytest.approx(afresh[0]["on"], rel=1e-4)
  assert abs(carried[1]["on"]
             - afresh[1]["on"]) > 1e-3 and carried[1]["off"] == pytest.approx(afresh[1]["off"],
                                                                              rel=1e-4)
  fast, _ = study.replay(c, params, lm.init_fast(c, 1), [some[0].text])
  fast, _ = study.replay(c, params, fast, [some[1].text])
  wanted, = program.ask(c, params, lm.forget_context(c, fast), some[1:])
  assert carried[1]["on"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_the_correct_answer_helps():
  without, leaking = (score(samples(), steps=4, leak=leak)[0] for leak in (False, True))
  assert column(leaking, "on").sum() < column(without, "on").sum() - 0.1
  np.testing.assert_allclose(column(leaking, "off"), column(without, "off"), rtol=1e-5)


def test_an_answer_is_scored_as_its_logits_say():
  c, params = tiny(KIND), parameters(KIND)
  sample, row = samples()[0], score(samples())[0][0]
  ids = np.array(sample.prompt + sample.answer)
  logits = jax.jit(lm.build(c).apply)({"params": params}, jnp.asarray(ids)[None],
                                      lm.init_fast(c, 1))[0]
  nats = -jax.nn.log_softmax(logits[0, :-1])[np.arange(len(ids) - 1), ids[1:]]
  assert row["off"] == pytest.approx(float(nats[-len(sample.answer):].sum()), rel=1e-4)


def test_a_memory_that_was_not_written_is_an_error():
  with pytest.raises(RuntimeError, match="made no update: no gate opened"):
    score(samples(), threshold=1e9)


@pytest.mark.parametrize("line, message", [
    ("{", "line 2: JSONDecodeError"),
    ('{"prompt": "a"}', "line 2: KeyError.'answer'.*one JSON object a line"),
    ('{"prompt": 3, "answer": "b"}', "line 2"), ('["a"]', "line 2"),
    ('{"prompt": "a", "answer": ""}', "line 2: the answer is empty"),
    ('{"text": "", "prompt": "a", "answer": "b"}', "line 2: the text is empty"),
    (None, "has 1 questions: an interval needs 2")])
def test_files_that_are_not_questions(tmp_path, line, message):
  good = '{"prompt": "a", "answer": "b"}'
  (tmp_path / "questions").write_text("\n".join([good] if line is None else [good, line]))
  with pytest.raises(ValueError, match=message):
    program.read(str(tmp_path / "questions"), Letters)


def test_only_a_newline_ends_a_line(tmp_path):
  lines = [{"prompt": f"a{letter}b", "answer": "c"} for letter in "\u2028\x85"]
  (tmp_path / "questions").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n"
                                              for line in lines))
  assert [len(sample.prompt)
          for sample in program.read(str(tmp_path / "questions"), Letters)] == [4, 4]


@pytest.mark.slow
def test_the_program_says_that_the_answer_leaks(tmp_path, capsys):
  documents.save(tmp_path, documents.tiny(in_context=True, levels=documents.LEVELS))
  lines = [{"text": documents.document(i), "prompt": "memory level", "answer": f"chunk {i}"}
           for i in range(3)]
  (tmp_path / "questions").write_text("\n".join(map(json.dumps, lines)))
  for leak in (True, False):
    values, output = flags.FlagValues(), tmp_path / "new" / "out.json"
    program.define_flags(values)
    program.main(values(["", f"--checkpoint={tmp_path}", f"--questions={tmp_path / 'questions'}",
                         f"--output={output}", f"--use_correct_answer={leak}"]), values)
    result = json.loads(output.read_text())
    assert result["leaks_the_answer"] is leak and (
        "LEAKS THE ANSWER" in capsys.readouterr().out) is leak
    assert result["samples"] == len(result["rows"]) == 3 and result["memories"]["cms_slow"][
        "updates"] > 0
    np.testing.assert_allclose(result["nats_per_token"]["on"]["value"],
                               column(result["rows"], "on").sum()
                               / column(result["rows"], "tokens").sum())
