"""Laws of longdoc.py: exact sums, held-out text, intervals, resumption, refusals."""

import functools
import json
import math
from pathlib import Path
import sys

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from hope_jax import config, memorize
from hope_jax.checkpoints import arrays, checkpoint
from hope_jax.data import corpus, heldout, tokenizer
from hope_jax.model import lm, plan
from hope_jax.model.state import TrainState
from hope_jax.reading import opening, study
from hope_jax.reports import gain as picture, memorized
from hope_jax.scoring import documents, intervals

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import longdoc as program

VOCAB, CHUNK, TOKENS = 290, 8, 48
WORDS = "read write memory chunk token slow fast level query value".split()
WRITTEN = ("--in_context", "--period=8", "--lr=0.05,0.1", "--paths=cms_slow")
BATCH = 3  # one shape: compiled once
SHORT = (f"--tokens={TOKENS}", "--min_tokens=20", f"--batch={BATCH}", "--max_samples=6")
# as --in_context makes them
LEVELS = config.Level("fast", 8, lr=0.05), config.Level("slow", 8, lr=0.1)


def tiny(kind="hope_attention", **mixer):
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=8, layers=2, heads=2, vocab=VOCAB))
  c.attention.window, c.channel.hidden, c.teach.chunk = 12, 1.0, CHUNK
  c.channel.levels = (config.Level("fast", 0), config.Level("slow", 0))
  c.channel.update(mixer)
  c.selfmod.update(dict(memory="linear", chunk_generators=8, chunk_memory=8))
  c.data.update(dict(seq=32, align=8, val_fraction=0.5))
  return c


def document(i: int) -> str:
  return " ".join(f"{WORDS[(i * j) % 10]}é_{WORDS[(i + j) % 10]}\n"
                  for j in range(4 + 2 * (i % 5)))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def parameters():
  """Drawn without compiling anything."""
  rng = np.random.default_rng(1)
  def draw(path, shape):
    return jnp.asarray(rng.normal("scale" in str(path[-1]), 0.5, shape.shape), jnp.float32)
  return jax.tree_util.tree_map_with_path(draw,
                                          jax.eval_shape(
                                              lambda: lm.init_params(tiny(), jax.random.key(0))))


def save(folder: Path, c) -> Path:
  """A run's folder, as the trainer leaves it."""
  tokenizer.train([document(i) for i in range(40)], folder / "tokenizer.model", VOCAB)
  meta = {"config": config.to_json(c),
          "tokenizer": tokenizer.Tokenizer(folder / "tokenizer.model").digest}
  with checkpoint.Checkpoints(folder / "checkpoints", keep=1) as saved:
    saved.save(7, TrainState(jnp.int32(7), parameters(), (), jax.random.key(0)), {}, meta)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """lines.jsonl, which is held out, notes/, which was trained on, and the run."""
  folder = tmp_path_factory.mktemp("documents")
  (folder / "lines.jsonl").write_text("".join(json.dumps({"body": document(i)}) + "\n"
                                              for i in range(12)))
  (folder / "notes").mkdir()
  for i in range(30):
    (folder / "notes" / f"{i}.txt").write_text(document(i))
  c = tiny()
  notes = dict(name="notes", kind="text", path=str(folder / "notes"), field="", domains="",
               weight=1.0)
  c.data.sources = (ConfigDict(notes),)
  (folder / "run").mkdir()
  save(folder / "run", c)
  return folder


def call(folder, name, *argv, checkpoint="run"):
  """The program in this process: what it wrote."""
  values = flags.FlagValues()
  program.define_flags(values)
  rest = values(["longdoc", f"--checkpoint={folder / checkpoint}",
                 f"--output={folder / name}", *argv])
  program.main(rest, values)
  return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def lines(folder):
  return f"--documents={folder / 'lines.jsonl'}", "--field=body"


@pytest.fixture(scope="module")
def whole(folder, lines):
  return call(folder, "whole.json", *lines, *WRITTEN, *SHORT)


def test_bits_per_byte_are_those_of_the_text(folder, whole):
  """Off: one forward pass over the whole document, without state. Bytes: counted in the file."""
  _, params, tok = opening.load(folder / "run")
  texts = {f"lines.jsonl:{i + 1}": document(i) for i in range(12)}
  apply = jax.jit(lambda ids: lm.build(tiny()).apply({"params": params}, ids)[0])
  assert len(whole["rows"]) == 6 and whole["cut"] == sum(row["whole"] > TOKENS
                                                         for row in whole["rows"]) > 0
  for row in whole["rows"]:
    ids = tok.encode(texts[row["document"]])
    assert row["whole"] == len(ids) and row["tokens"] == min(len(ids), TOKENS)
    ids = np.array([tok.bos, *ids[:TOKENS]])
    # causal: what follows changes nothing, and one shape compiles once
    padded = np.zeros(TOKENS + 1, int)
    padded[:len(ids)] = ids
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(padded[None])[0, :len(ids) - 1],
                                                             ids[1:])
    size = len(tok.decode_bytes(ids[1:]))
    assert row["bytes"] == size and (row["whole"] > TOKENS
                                     or size == len(texts[row["document"]].encode()))
    np.testing.assert_allclose(row["bits_per_byte"]["off"],
                               float(losses.sum()) / math.log(2) / size, rtol=1e-5)
  total = sum(row["nats"]["off"]
              for row in whole["rows"]) / math.log(2) / sum(row["bytes"] for row in whole["rows"])
  np.testing.assert_allclose(whole["bits_per_byte"]["off"]["value"], total)
  assert list(whole["domains"]) == ["lines/lines"]  # all of them
  assert all(value == whole[key] for key, value in whole["domains"]["lines/lines"].items())


def test_with_memory_is_each_document_memorized(folder, whole):
  """Other documents of a batch change nothing; statistics are of its own chunks and --paths."""
  _, params, tok = opening.load(folder / "run")
  c = tiny(in_context=True, levels=LEVELS)
  c.teach.paths, c.teach.at_evaluation = ("cms_slow",), "step:7"
  assert all(json.loads(config.to_json(c))[part] == whole["config"][part]
             for part in ("channel", "teach"))
  for row in (whole["rows"][0], whole["rows"][-1]):
    ids = [tok.bos, *tok.encode(document(int(row["document"].split(":")[1]) - 1))[:TOKENS]]
    _, alone = study.memorize(c, params, lm.init_fast(c, BATCH), [ids] * BATCH)
    np.testing.assert_allclose(row["nats"]["on"], alone.nats_BxT[0].sum(), rtol=1e-5)
    total = alone.totals()["cms_slow"]
    assert list(row["memories"]) == ["cms_slow"] and total["updates"] == -(-(len(ids) - 1) // 8)
    np.testing.assert_allclose([row["memories"]["cms_slow"][key] for key in total],
                               list(total.values()), rtol=1e-4)
  assert list(whole["memories"]) == whole["written"] == ["cms_slow"]


def test_positions_add_up_and_nothing_is_gained_before_the_first_write(whole):
  bins = whole["positions"]
  assert [bins[0]["from"], bins[0]["to"], bins[-1]["to"]] == [0, CHUNK, TOKENS]
  assert all(a["to"] == b["from"] for a, b in zip(bins, bins[1:]))
  np.testing.assert_allclose(bins[0]["gain"]["value"], 0, atol=1e-6)
  assert all(abs(entry["gain"]["value"]) > 1e-3 for entry in bins[1:])
  for name in ("off", "on", "gain"):
    total = sum(entry[name]["value"] * entry["tokens"] for entry in bins)
    np.testing.assert_allclose(total / whole["tokens"], whole["nats_per_token"][name]["value"],
                               rtol=1e-6, atol=1e-9)
  assert bins[-1]["documents"] == whole["cut"] < bins[0]["documents"] == 6


@pytest.mark.parametrize("chunk, tokens", [(64, 8192), (64, 8200), (64, 60), (1, 9), (8, 8)])
def test_edges_are_two_an_octave(chunk, tokens):
  at = documents.edges(chunk, tokens)
  assert at[0] == 0 and at[-1] == tokens and (np.diff(at) > 0).all()
  if tokens > 4 * chunk and chunk > 1:
    assert at[1] == chunk and at[3] == 2 * chunk and at[5] == 4 * chunk and (at[2:] < 1.5
                                                                             * at[1:-1]).all()


def test_intervals():
  """Ratios of sums over documents drawn with replacement; equal differences have no width."""
  rng = np.random.default_rng(0)
  top, bottom = rng.normal(5, 1, 20), rng.integers(1, 9, 20).astype(float)
  got = intervals.interval(top, bottom, 0)
  drawn = rng.integers(0, 20, (20_000, 20))
  want = np.quantile(top[drawn].sum(1) / bottom[drawn].sum(1), (0.025, 0.975))
  np.testing.assert_allclose([got["low"], got["high"]], want, rtol=0.02)
  assert got["value"] == top.sum() / bottom.sum() and got == intervals.interval(top, bottom, 0)
  both = intervals.both_ways(top, top - 0.25 * bottom, bottom, 0)
  np.testing.assert_allclose(list(both["gain"].values()), 0.25)
  np.testing.assert_allclose(list(intervals.interval([*top, 9.0], [*bottom, 0.0], 0).values()),
                             list(got.values()))
  assert intervals.interval([3.0, 0.0], [2.0, 0.0], 0) == {"value": 1.5, "low": None, "high": None}


def test_interrupted_and_resumed_is_the_same_file(folder, lines, whole, monkeypatch):
  reads, read = [], documents.read
  def once(*args):
    reads.append(args[3])
    if len(reads) == 2:
      raise KeyboardInterrupt
    return read(*args)
  monkeypatch.setattr(documents, "read", once)
  with pytest.raises(KeyboardInterrupt):
    call(folder, "again.json", *lines, *WRITTEN, *SHORT)
  partial = folder / "again.json.partial"
  partial.write_text(partial.read_text() + '[{"cut')
  again = call(folder, "again.json", *lines, *WRITTEN, *SHORT)
  assert len(reads) == 3 and reads[1] == reads[2] != reads[0] and not partial.exists()
  assert {"date", "command"} <= whole.keys()
  assert again | dict.fromkeys(("date", "command")) == whole | dict.fromkeys(("date", "command"))
  partial.write_text('{"seed": 1}\n[]\n[]\n')  # of other settings: not used
  assert call(folder, "again.json", *lines, *WRITTEN,
              *SHORT)["rows"] == whole["rows"] and len(reads) == 5


def test_only_validation_documents_of_what_was_trained_on(folder):
  c, _, tok = opening.load(folder / "run")
  def pick(names, **k):
    return heldout.choose(heldout.sources(names, "text", c.data.sources, 0.5), tok, **dict(
        tokens=9, min_tokens=2, skip=0, count=99, seed=0) | k)
  names = {f"{i}.txt" for i in range(30)}
  held_out = {name for name in names if corpus.split_of(name, 0.5) == "validation"}
  assert 5 < len(held_out) < 25
  for documents in (["own"], [str(folder / "notes")]):
    assert {sample.name for sample in pick(documents)} == held_out
  with pytest.raises(ValueError, match="overlaps with .*give --documents=own"):
    pick([str(folder / "notes" / "1.txt")])
  chosen, rest = pick(["own"], count=4), pick(["own"], skip=4)
  assert len(chosen) == 4 and sorted(sample.name for sample in chosen + rest) == sorted(held_out)
  assert pick(["own"], count=4) == chosen != pick(["own"], count=4, seed=1)
  assert all(sample.whole >= 60 for sample in pick(["own"], min_tokens=60))
  with pytest.raises(ValueError, match="1 documents .* lower --min_tokens or --skip"):
    pick(["own"], skip=len(held_out) - 1)
  (python, fraction), = heldout.sources(["embedded"], "text", (tiny().data.sources), 0.5)
  assert (python.kind, fraction) == ("embedded", 0.5)
  assert heldout.sources(["embedded"], "text", c.data.sources, 0.5)[0][1] is None


def test_the_picture_is_the_gain_by_position(folder, whole):
  pytest.importorskip("matplotlib", reason="pip install hope_jax[plots]")
  assert (folder / "whole.png").read_bytes().startswith(b"\x89PNG")
  axis = picture.draw(whole).axes[1]
  gain = [entry["gain"] for entry in whole["positions"]]
  line, band = axis.lines[0], axis.collections[0].get_paths()[0].vertices[:, 1]
  np.testing.assert_array_equal(line.get_ydata(), [entry["value"] for entry in gain])
  assert {entry[key] for entry in gain
          for key in ("low", "high")} <= set(band) and axis.get_xscale() == "log"


def test_a_memory_without_updates_fails(whole):
  """In all documents together: one alone may be without surprise."""
  closed = dict(updates=0.0, gate_hits=0.0, moved=0.0, surprise=0.1, surprise_max=0.25)
  rows = [row | {"memories": {"cms_slow": closed}} for row in whole["rows"]]
  with pytest.raises(RuntimeError,
                     match="memory cms_slow made no update: no gate opened: .* surprise was 0.25"):
    documents.memories(rows, ["cms_slow"])
  did = documents.memories([*rows, whole["rows"][0]], ["cms_slow"])
  assert did["memories"]["cms_slow"]["updates"] > 0
  still = [{"memories": {}, "selfmod": {"moved/mem": 0.0, "eta": 0.1}}]
  with pytest.raises(RuntimeError, match="self-modifying memories have not moved"):
    documents.memories(still, ["selfmod"])
  assert documents.memories(still, ["cms_slow"])["selfmod"] == still[0]["selfmod"]


@pytest.mark.parametrize("argv, message", [
    ((), "writes nothing more with memory on than with memory off: add --in_context"),
    (("--period=8",), "--period: .* add --in_context"),
    (("--in_context", "--period=8,8,8"), "3 values for cms_fast, cms_slow"),
    (("--in_context", "--period=64"), "--period: a level is written in context if"),
    ((*WRITTEN, "--paths=titan"), "teach.paths: titan is not written by this model"),
    (("--in_context", "--period=8", "--lr=0"), "writes nothing more"),
    ((*WRITTEN, "--field=text"), "no text in field 'text'"),
    ((*WRITTEN, "--min_tokens=999"), "0 documents of 999 tokens or more")])
def test_refusals(folder, lines, argv, message):
  with pytest.raises(SystemExit, match=message):
    call(folder, "refused.json", *lines, *SHORT, *argv)
  assert not (folder / "refused.json").exists()


def test_memory_off():
  """Nothing is written, by self-modifying memories either, unless they are to write both times."""
  c = tiny("hope_selfmod", in_context=True, levels=(config.Level("fast", 8),))
  assert plan.of(c).enabled == ("selfmod", "cms_fast")
  assert plan.of(documents.switched_off(c, False)).enabled == () and c.teach.paths == ()
  assert plan.of(documents.switched_off(c, True)).enabled == ("selfmod",)
  c.teach.paths = ("cms_fast",)
  assert plan.of(documents.switched_off(c, True)).enabled == ()


def test_flags_set_titan_and_levels():
  values = flags.FlagValues()
  program.define_flags(values)
  values(["", "--checkpoint=x", "--output=y", "--period=4,8,16", "--rule=muon", "--lr=0.1,0.2,0.3",
          "--layers=1"])
  levels = (config.Level("fast", 8), config.Level("slow", 8))
  c = program.change(tiny("hope_hybrid", in_context=True, levels=levels), values)
  assert [(e.period, e.rule, e.lr) for e in plan.of(c).levels.values()] == [
      (4, "muon", 0.1), (8, "muon", 0.2), (16, "muon", 0.3)]
  assert c.teach.layers == (1,)


def test_numbers_of_memorize_are_drawn(tmp_path, monkeypatch):
  """memorize --output: chunks add up to its totals, and report.py takes the file."""
  save(tmp_path, tiny(in_context=True, levels=LEVELS))
  (tmp_path / "text").write_text(document(4))

  def studied(config, params, ids, steps, fast):
    """As if the text had been read."""
    rng, shape = np.random.default_rng(0), (1, -(-len(ids) // CHUNK) * CHUNK)
    labels = np.arange(shape[1])[None] < len(ids) - 1
    names, reads = ("updates", "open", "moved", "surprise", "teach",
                    "pending"), ("before", "read", "after")
    stats = {level: {name: rng.random((shape[1] // CHUNK, 2, 1)) for name in names}
             for level in ("fast", "slow")}
    return None, {name: study.Report(rng.random(shape) * labels, labels, stats) for name in reads}

  monkeypatch.setattr(study, "study", studied)
  values, output = flags.FlagValues(), tmp_path / "new" / "out.json"
  memorize.define_flags(values)
  memorize.main(values(["", f"--checkpoint={tmp_path}", f"--text={tmp_path / 'text'}",
                        f"--output={output}"]), values)
  data = memorized.load(output)
  assert sum(data["predicted"]) == data["tokens"] - 1 and len(data["predicted"]) == -(
      -data["tokens"] // CHUNK)
  assert list(data["nats"]) == ["before", "read", "after"]
  assert data["fingerprint"] == arrays.fingerprint(parameters())
  for name, nats in data["nats"].items():
    np.testing.assert_allclose(sum(nats) / (data["tokens"] - 1), data["nats_per_token"][name],
                               rtol=1e-5)
  assert list(data["memories"]) == ["cms_fast", "cms_slow"]
  for path, memory in data["memories"].items():
    for key, name in (("updates", "updates"), ("open", "gate_hits"), ("moved", "moved")):
      np.testing.assert_allclose(np.sum(np.mean(memory[key], 1)), data["totals"][path][name],
                                 rtol=1e-5)
