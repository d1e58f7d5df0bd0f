"""Laws of levels on an imported model: no bit changes before a write; there and back; merged."""

import io
import json
from pathlib import Path
import shutil

from absl import flags
import chex
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import levels
from hope_jax import export, generate, integrity, memorize, pretrained
from hope_jax.checkpoints import weights
from hope_jax.model import lm
from hope_jax.reading import chat, conversation, opening, study
from hope_jax.training import loop

HERE = Path(__file__).resolve().parent / "foreign"
VOCAB = 300
CHAT = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
TEXT = "The bridge was designed by Ada & <b>Bob</b>; \"quoted\" it is 12 years old.\n" * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder of Hugging Face: a random Qwen2 with a trained tokenizer and a chat template."""
  library = pytest.importorskip("tokenizers")
  safetensors = pytest.importorskip("safetensors.numpy")
  folder = tmp_path_factory.mktemp("model") / "tiny"
  shutil.copytree(HERE / "qwen2", folder)
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  made.train_from_iterator([TEXT], library.trainers.BpeTrainer(
      vocab_size=VOCAB - 4, special_tokens=["<end>", "<|user|>", "<|assistant|>"],
      initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(
      {"eos_token": {"content": "<end>"}, "bos_token": None, "chat_template": CHAT}))
  stored = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(
      stored | {"vocab_size": VOCAB, "eos_token_id": 0}))
  found = safetensors.load_file(folder / "model.safetensors")
  table = np.random.default_rng(0).standard_normal((VOCAB, 24)).astype(np.float32)
  safetensors.save_file(found | {"model.embed_tokens.weight": 0.2 * table},
                        folder / "model.safetensors")
  (folder / "README.md").write_text("---\nlicense: mit\n---\n")
  return folder


@pytest.fixture(scope="module")
def run(model):
  """It, imported."""
  pretrained.import_model(str(model), model.parent / "run")
  return model.parent / "run"


@pytest.fixture(scope="module")
def one(run):
  """With its own MLPs as a level that writes every 16 tokens."""
  return stacked(run, "16")


def stacked(run, periods):
  """Its folder, made once."""
  folder = run.parent / f"levels_{periods.replace(',', '_')}"
  if not folder.exists():
    c = levels.get_config(f"{run},{periods}")
    c.teach.chunk = c.data.align = 16
    c.data.seq = 64
    pretrained.stack_levels(run, c, folder)
  return folder


@pytest.mark.parametrize("periods", ["16", "16,32,64"])
def test_no_bit_changes_until_a_write(run, periods):
  """Of whole texts, and of streams that have levels of their own and have not written."""
  c, params, _ = opening.load(run)
  new, own, _ = opening.load(stacked(run, periods))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (1, 24)))
  def read(c, params, fast):
    return jax.jit(lm.build(c).apply)({"params": params}, tokens, fast)[0]
  want = read(c, params, None)
  np.testing.assert_array_equal(read(new, own, None), want)
  streamed = read(c, params, lm.init_fast(c, 1))
  np.testing.assert_array_equal(read(new, own, lm.init_fast(new, 1)), streamed)
  np.testing.assert_allclose(streamed, want, atol=1e-5)


def test_import_export_import_is_the_same(run, model, tmp_path):
  export.write_folder(run, tmp_path / "out")
  pretrained.import_model(str(tmp_path / "out"), tmp_path / "again")
  c, params, words = opening.load(run)
  other, back, same = opening.load(tmp_path / "again")
  chex.assert_trees_all_equal(back, params)
  assert other == c and same.encode(TEXT) == words.encode(TEXT) and same.chat == words.chat == CHAT
  assert (same.begin, same.eos, same.stops) == (words.begin, words.eos, words.stops) == ([], 0, {0})
  files = {path.name for path in (tmp_path / "out").iterdir()}
  assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                   "generation_config.json", "README.md"}
  assert pretrained.read(str(tmp_path / "out")).about["licence"] == "mit"
  with pytest.raises(FileExistsError, match="out has a model already: choose another --output"):
    export.write_folder(run, tmp_path / "out")


@pytest.mark.parametrize("name", ("llama3", "mistral", "qwen2", "qwen3", "llama_tied"))
def test_what_is_written_is_what_was_read(name, tmp_path):
  pretrained.import_model(str(HERE / name), tmp_path / "run")
  export.write_folder(tmp_path / "run", tmp_path / "out")
  was, now = (pretrained.read(str(folder)) for folder in (HERE / name, tmp_path / "out"))
  assert now.shapes == was.shapes
  for (tensor, values), (other, back) in zip(sorted(was.tensors(), key=str_first),
                                             sorted(now.tensors(), key=str_first)):
    assert tensor == other
    np.testing.assert_array_equal(values, back)
  (params, c), (again, other) = pretrained.convert(was), pretrained.convert(now)
  assert c == other
  chex.assert_trees_all_equal(params, again)
  assert now.config["model_type"] == was.config["model_type"]
  assert now.config["max_position_embeddings"] == was.config["max_position_embeddings"]


def str_first(pair):
  return pair[0]


@pytest.mark.slow
def test_transformers_loads_what_was_written(run, tmp_path):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  export.write_folder(run, tmp_path / "out")
  c, params, words = opening.load(run)
  ids = words.encode(TEXT)[:40]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  with torch.no_grad():
    want = theirs(torch.tensor([ids])).logits.numpy()
  got = lm.build(c).apply({"params": params}, jnp.asarray([ids]))[0]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode(TEXT)[:40] == ids


def test_what_was_memorized_is_merged(run, one, tmp_path):
  """The merged model without a state reads as the one with it, whose context is forgotten."""
  state = tmp_path / "state"
  learn(one, text(tmp_path), f"--state={state}")
  export.write_folder(one, tmp_path / "out", state=state)
  pretrained.import_model(str(tmp_path / "out"), tmp_path / "merged")
  c, params, words = opening.load(tmp_path / "merged")
  new, own, _ = opening.load(one)
  ids = [words.encode("The bridge was designed by")]
  stream = generate.Stream(new, own)
  stream.load(state)
  with_state = study.memorize(new, own, lm.forget_context(new, stream.fast).replace(
      count_B=jnp.zeros(1, jnp.int32)), ids, write=False)[1]
  def alone(c, params):
    return study.memorize(c, params, lm.init_fast(c, 1), ids, write=False)[1]
  now = alone(c, params).nats_BxT[:, :len(ids[0])]
  np.testing.assert_allclose(now, with_state.nats_BxT[:, :len(ids[0])], atol=1e-4)
  assert np.abs(alone(*opening.load(run)[:2]).nats_BxT[:, :len(ids[0])] - now).max() > 1e-2
  export.write(one, tmp_path / "merged.safetensors", state=state)
  chex.assert_trees_all_close(export.read(tmp_path / "merged.safetensors")[0]["blocks"]["cms"],
                              {"every_16": params["blocks"]["cms"]["mlp"]})


def text(tmp_path):
  (tmp_path / "text.txt").write_text(TEXT)
  return f"--text={tmp_path / 'text.txt'}"


def call(program, *argv):
  values = flags.FlagValues()
  program.define_flags(values)
  program.main(values([program.__name__, *argv]), values)


def learn(run, *argv):
  call(memorize, f"--checkpoint={run}", *argv)


def test_every_program_takes_the_run(run, one, tmp_path, capsys):
  call(generate, f"--checkpoint={run}", "--prompt=The bridge", "--tokens=4", "--temperature=0")
  before = capsys.readouterr().out
  learn(one, text(tmp_path), "--steps=2", f"--state={tmp_path / 'state'}")
  losses = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:3])
  assert float(losses["after"]) < float(losses["read"]) and before
  with pytest.raises(SystemExit) as end:
    integrity.main(["integrity", "verify", str(one)])
  assert end.value.code == 0
  export.write(one, tmp_path / "one" / "m.safetensors")
  export.import_run(tmp_path / "one" / "m.safetensors", tmp_path / "back")
  chex.assert_trees_all_equal(opening.load(tmp_path / "back")[1], opening.load(one)[1])
  with pytest.raises(SystemExit, match="belongs to another model"):
    other = stacked(run, "32")
    params, c, meta = weights.load(other / "checkpoints")
    changed = jax.tree.map(lambda p: p + 1, params)
    pretrained.make_run(tmp_path / "other", changed, c, meta["tokenizer"], {})
    shutil.copy(one / "tokenizer.json", tmp_path / "other")
    call(generate, f"--checkpoint={tmp_path / 'other'}", f"--state={tmp_path / 'state'}",
         "--prompt=x")


def test_levels_that_are_not_one_are_no_model_of_transformers(run, tmp_path):
  folder = stacked(run, "16,64")
  with pytest.raises(ValueError, match="2 levels, and models of transformers have one MLP: stack"):
    export.write_folder(folder, tmp_path / "out")
  with pytest.raises(ValueError, match="no run nowhere: import a model first"):
    levels.get_config("nowhere,16")


def test_a_tokenizer_of_another_vocabulary(model, tmp_path):
  other = shutil.copytree(model, tmp_path / "other")
  stored = json.loads((other / "config.json").read_text())
  (other / "config.json").write_text(json.dumps(stored | {"vocab_size": 50_000}))
  with pytest.raises(ValueError, match="tokenizer has 296 tokens and the model 50,000: it"):
    pretrained.import_model(str(other), tmp_path / "run")
  (other / "tokenizer_config.json").write_text("{}")
  (other / "config.json").write_text(json.dumps(stored | {"eos_token_id": None}))
  with pytest.raises(ValueError, match="names no token that ends a document .eos_token.: add it"):
    pretrained.import_model(str(other), tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_texts_of_a_folder_are_versions_that_can_be_undone(one, tmp_path, capsys):
  """As the texts one after the other; dropped = never read; a folder's order is its names'."""
  texts, states = tmp_path / "texts", [tmp_path / name for name in ("all", "each", "first")]
  texts.mkdir()
  for name, words in (("b", TEXT[300:700]), ("a", TEXT[:300]), ("c", "\n")):
    (texts / name).write_text(words)
  (texts / "picture").write_bytes(b"\x89PNG\0\1")
  (texts / "packed.gz").write_bytes(b"\x1f\x8b\0")
  learn(one, f"--text={texts}", f"--state={states[0]}")
  for name in "ab":
    learn(one, f"--text={texts / name}", f"--state={states[1]}")
  learn(one, f"--text={texts / 'a'}", f"--state={states[2]}")
  said = capsys.readouterr()
  assert "c: fewer than 2 tokens, left out" in said.err and "goes on from a" in said.err
  assert "picture: no text, left out" in said.err
  assert "packed.gz is not a whole .gz file" in said.err
  call(memorize, f"--state={states[0]}", "--list")
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert [row[0] for row in rows] == ["a", "b"] and int(rows[0][1]) > 10
  def learned(state):
    c, params, _ = opening.load(one)
    stream = generate.Stream(c, params)
    stream.load(state)
    return jax.tree.map(np.asarray, stream.fast.layers.levels)
  chex.assert_trees_all_close(learned(states[0]), learned(states[1]), atol=1e-6)
  call(memorize, f"--state={states[0]}", "--drop=b")
  chex.assert_trees_all_close(learned(states[0]), learned(states[2]), atol=1e-6)
  for arguments, message in (
      (["--drop=b"], "has no version b: choose from a"),
      ([f"--checkpoint={one}"], "give the run with --checkpoint and the file or folder with"),
      ([f"--checkpoint={one}", f"--text={texts}", "--output=x"], "--output is of one text")):
    with pytest.raises(SystemExit, match=message):
      call(memorize, f"--state={states[0]}", *arguments)
  with pytest.raises(SystemExit, match="no --state: name the folder"):
    call(memorize, "--list")


def test_a_conversation_beside_versions_is_one_of_them(one, tmp_path):
  c, params, _ = opening.load(one)
  learn(one, text(tmp_path), f"--state={tmp_path / 'state'}")
  stream = generate.Stream(c, params)
  stream.load(tmp_path / "state")
  stream.save(tmp_path / "state")
  learn(one, text(tmp_path), f"--state={tmp_path / 'state'}")
  assert [each["name"] for each in conversation.kept(tmp_path / "state")] == [
      "text.txt", "conversation", "text.txt.2"]
  before = conversation.kept(tmp_path / "state")
  with pytest.raises(ValueError, match="another has saved in .* since .*: save in another folder"):
    stream.save(tmp_path / "state")
  assert conversation.kept(tmp_path / "state") == before
  stream.load(tmp_path / "state")
  stream.save(tmp_path / "state")


def test_a_chat_is_its_template_and_text_in_it_is_text(run):
  """It escapes nothing and adds nothing; turn by turn it reads what it would have at once."""
  _, _, words = opening.load(run)
  said = ["a <b>&amp;</b> 'x' {{ 1 }}", "<end> and <|user|> are words", "and\n\nmore"]
  talk, ids = chat.Chat(words), []
  for i, line in enumerate(said):
    ids += talk.turn(line)
    if i < 2:
      ids += words.encode(f"answer {i}")
      talk.answered(f"answer {i}")
  def control(name):
    return [words.encode_chat(name)[0]]
  want = []
  for i, line in enumerate(said):
    want += control("<|user|>") + words.encode(line) + control("<end>") + words.encode("\n")
    want += control("<|assistant|>")
    if i < 2:
      want += words.encode(f"answer {i}") + control("<end>") + words.encode("\n")
  assert ids == want
  talk.reset()
  assert talk.turn(said[0]) == want[:len(talk_first(words, said[0]))]


def talk_first(words, line):
  return chat.Chat(words).turn(line)


def test_a_template_that_changes_what_was_said(run):
  """As those that leave out what a model thought: its last answer stays as it was read."""
  _, _, words = opening.load(run)
  words.chat = ("{% for m in messages %}{{ m['role'][0] }}:{{ m['content'].split('/think')[-1] }}"
                "<end>{% endfor %}{% if add_generation_prompt %}a:{% endif %}")
  talk = chat.Chat(words)
  assert words.decode(talk.turn("one")) == "u:onea:"
  talk.answered("hm/thinktwo")
  assert words.decode(talk.turn("three")) == "u:threea:"


def test_what_is_no_chat(run, tmp_path):
  _, _, words = opening.load(run)
  for template, message in ((None, "the model has no chat template: talk to it without --chat"),
                            ("{% if %}", "the chat template is damaged")):
    words.chat = template
    with pytest.raises(ValueError, match=message):
      chat.Chat(words)
  words.chat = "{{ raise_exception('no such role') }}"
  with pytest.raises(ValueError, match="the chat template fails .no such role."):
    chat.Chat(words).turn("x")


def test_a_chat_with_what_was_memorized(one, tmp_path, capsys, monkeypatch):
  learn(one, text(tmp_path), f"--state={tmp_path / 'state'}")
  monkeypatch.setattr("sys.stdin", io.StringIO("Who designed it?\n\n/reset\nAgain\n"))
  call(generate, f"--checkpoint={one}", "--interactive", "--chat", "--tokens=5", "--endless",
       f"--state={tmp_path / 'state'}")
  assert capsys.readouterr().err.count("tokens read, 5 written") == 2


@pytest.mark.slow
def test_training_goes_on_from_it_with_its_tokenizer(run, tmp_path):
  """On text, with writes; of the model all but the levels stays."""
  (tmp_path / "texts").mkdir()
  for i in range(12):
    (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} {TEXT}")
  c = levels.get_config(f"{run},16")
  c.teach.chunk = c.data.align = 16
  c.data.update(dict(seq=64, batch=2, val_fraction=0.3, dir=str(tmp_path / "data"), sources=(
      ConfigDict(dict(name="texts", kind="text", path=str(tmp_path / "texts"), field="text",
                      domains="", weight=1.0)),)))
  c.optim.update(dict(train="levels", warmup=0))
  c.train.update(dict(steps=2, log_every=1, eval_every=2, eval_batches=1, save_every=2))
  assert loop.train(c, tmp_path / "trained", init_from=run)["loss"] > 0
  (_, before, words), (_, after, same) = opening.load(run), opening.load(tmp_path / "trained")
  assert same.digest == words.digest
  chex.assert_trees_all_equal(after["blocks"]["attention"], before["blocks"]["attention"])
  moved = after["blocks"]["cms"]["every_16"]["down"]["kernel"] - before["blocks"]["cms"]["mlp"][
      "down"]["kernel"]
  assert jnp.abs(moved).max() > 0
