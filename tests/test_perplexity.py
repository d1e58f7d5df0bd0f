"""Laws of evals/perplexity.py: whole documents, weighted by tokens, memories off and on."""

import json
from pathlib import Path
import sys

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.model import lm
from hope_jax.reading import opening, study
from tests import tiny_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import perplexity as program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("perplexity")
  tiny_run.save(folder / "run", tiny_run.configured("hope_attention", scale=3.0))
  for name in ("a", "b"):
    (folder / f"{name}.jsonl").write_text("".join(
        json.dumps({"text": name + tiny_run.tiny_text(i)}) + "\n" for i in range(3)))
  return folder


def call(folder, name, *argv):
  values = flags.FlagValues()
  program.define_flags(values)
  paths = ",".join(str(folder / f"{own}.jsonl") for own in "ab")
  program.main(values(["", f"--checkpoint={folder / 'run'}", f"--output={folder / name}",
                       f"--documents={paths}", "--batch=3", *argv]), values)
  return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def whole(folder):
  return call(folder, "whole.json", "--memorize")


def test_nothing_is_cut_and_tokens_count(folder, whole):
  """Off: one forward pass over each whole document, without state."""
  config, params, tokenizer = opening.load(folder / "run")
  apply = jax.jit(lambda ids: lm.build(config).apply({"params": params}, ids)[0])
  total, count = 0.0, 0
  for row in whole["rows"]:
    text = row["source"] + tiny_run.tiny_text(int(row["document"].split(":")[1]) - 1)
    ids = np.array([*tokenizer.begin, *tokenizer.encode(text)])
    padded = np.zeros(256, int)
    padded[:len(ids)] = ids
    nats = float(optax.softmax_cross_entropy_with_integer_labels(
        apply(jnp.array(padded)[None])[0, :len(ids) - 1], jnp.array(ids[1:])).sum())
    assert row["bytes"] == len(text.encode()) and row["tokens"] == len(ids) - 1
    assert row["nats"]["off"] == pytest.approx(nats, rel=1e-4)
    total, count = total + nats, count + len(ids) - 1
  assert whole["perplexity"]["off"]["value"] == pytest.approx(np.exp(total / count), rel=1e-4)
  assert set(whole["domains"]) == {"a/a", "b/b"} and whole["documents"] == 6
  own = [row for row in whole["rows"] if row["source"] == "a"]
  assert whole["domains"]["a/a"]["bits_per_byte"]["off"]["value"] == pytest.approx(
      sum(row["nats"]["off"] for row in own) / np.log(2) / sum(row["bytes"] for row in own))


def test_memorized_is_read_through_the_writes(folder, whole):
  config, params, tokenizer = opening.load(folder / "run")
  row = whole["rows"][1]
  text = row["source"] + tiny_run.tiny_text(int(row["document"].split(":")[1]) - 1)
  ids = [*tokenizer.begin, *tokenizer.encode(text)]
  _, report = study.memorize(config, params, lm.init_fast(config, 3), [ids] * 3)
  assert row["nats"]["on"] == pytest.approx(float(report.nats_BxT[0].sum()), rel=1e-4)
  assert abs(row["nats"]["on"] - row["nats"]["off"]) > 1e-3
  assert all(own["updates"] > 0 for own in whole["memories"].values()) and whole["memories"]


def test_without_memorizing_only_the_baseline_is_read(folder, whole):
  plain = call(folder, "plain.json")
  assert list(plain["perplexity"]) == list(plain["bits_per_byte"]) == ["off"]
  assert plain["memories"] == {} and plain["memorize"] is None
  np.testing.assert_allclose([row["nats"]["off"] for row in plain["rows"]],
                             [row["nats"]["off"] for row in whole["rows"]], rtol=1e-4)


@pytest.mark.slow
def test_carried_from_document_to_document_and_resumed(folder, whole, monkeypatch):
  options, read, calls = ("--memorize", "--memorize_no_reset"), program.read, []
  carried = call(folder, "carried.json", *options)
  afresh = {(row["source"], row["document"]): row["nats"]["on"] for row in whole["rows"]}
  same = [row["nats"]["on"] == pytest.approx(afresh[row["source"], row["document"]], rel=1e-4)
          for row in carried["rows"]]
  assert same == [True, *[False] * 5]
  def cut(*args):
    calls.append(0)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return read(*args)
  monkeypatch.setattr(program, "read", cut)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "cut.json", *options)
  monkeypatch.undo()
  again = call(folder, "cut.json", *options)
  assert again["perplexity"] == carried["perplexity"]
