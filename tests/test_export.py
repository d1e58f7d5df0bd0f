"""Laws of export: it comes back bit for bit, names mean what they say, bad files are refused."""

import hashlib
import sys

from absl import flags
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from hope_jax import config, export
from hope_jax.checkpoints import arrays, sidecar, weights
from hope_jax.data import tokenizer
from hope_jax.memory import linear_memory, mlp_memory, write_rule
from hope_jax.model import checks, lm, mixers
from hope_jax.reading import opening
from hope_jax.training import loop, stack

VOCAB = 23
MODELS = {  # every kind, and every option that adds or changes a parameter
    "transformer": {"model.pattern": ("attention",), "channel.kind": "swiglu"},
    "hope_attention": {"model.pattern": ("attention",), "channel.connection": "independent"},
    "mlp": {"selfmod.gate_skip": True},
    "adaptive": {"selfmod.adaptive_q": True, "selfmod.conv": "shared", "selfmod.hidden": 1.5},
    "linear": {"selfmod.memory": "linear", "selfmod.conv": "none"},
    "linear_adaptive": {"selfmod.memory": "linear", "selfmod.adaptive_q": True,
                        "channel.levels": ()},
    "hope_hybrid": {"model.pattern": ("attention",), "model.titan": "modified",
                    "channel.activation": "swiglu", "channel.norm": "layer"},
    "gru": {"model.pattern": ("gru", "attention")},
    "imported": {"model.pattern": ("attention",), "model.heads": 4, "attention.kv_heads": 2,
                 "attention.width": 6, "attention.bias": "all", "attention.qk_norm": False,
                 "model.tied": False, "channel.kind": "swiglu", "channel.bias": True},
    "gated_deltanet": {"model.pattern": ("gated_deltanet",)},
    "samba": {"model.pattern": ("mamba", "attention"), "attention.window": 16},
    "titans_mac": {"model.pattern": ("titans_mac",)},
    "titans_mag": {"model.pattern": ("titans_mag", "titans_mal"), "titans.residual": False},
    "titans_lmm": {"model.pattern": ("titans_lmm",), "titans.depth": 3},
    "titan_hybrid": {"model.pattern": ("attention",), "model.titan": "plain",
                     "channel.kind": "swiglu"},
}


def tiny(name):
  c = config.base()
  c.model.update(dict(dim=16, layers=2, heads=2, vocab=VOCAB))
  c.channel.levels = (config.Level("fast", 0), config.Level("slow", 1024))
  c.data.update(dict(task="recall", recall_pairs=2, recall_keys=8))
  c.update_from_flattened_dict(MODELS[name])
  checks.validate(c)
  return c


def parameters(c, seed=0):
  """Noise: no two numbers are the same."""
  noise = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(0.3 * noise.standard_normal(s.shape), s.dtype),
                      jax.eval_shape(lambda: lm.init_params(c, jax.random.key(0))))


def make_run(folder, name="transformer", step=7, tokenizer_text=b"pieces"):
  """A run's folder with one step of parameters; tokenizer_text None: it was not trained on text."""
  c, digest = tiny(name), "none"
  folder.mkdir()
  if tokenizer_text is not None:
    (folder / "tokenizer.model").write_bytes(tokenizer_text)
    digest = hashlib.sha256(tokenizer_text).hexdigest()
  params = parameters(c)
  weights.save(folder / "checkpoints", step, params,
               {"config": config.to_json(c), "tokenizer": digest})
  return c, params


def test_every_kind_is_here():
  assert {mixer for name in MODELS for mixer in tiny(name).model.pattern} == set(mixers.TABLE)
  assert {tiny(name).model.titan for name in MODELS} == set(checks.CHOICES["model.titan"])


@pytest.mark.parametrize("name",
                         [pytest.param(name, marks=pytest.mark.slow) if name in ("mlp", "adaptive")
                          else name
                                  for name in MODELS])
def test_there_and_back_is_bit_equal(name):
  c = tiny(name)
  params = parameters(c)
  named = export.tensors(params, c)
  assert sum(t.size for t in named.values()) == sum(p.size for p in jax.tree.leaves(params))
  back = export.assembled(named, c)
  chex.assert_trees_all_equal(back, params)
  chex.assert_trees_all_equal_dtypes(back, params)
  assert arrays.fingerprint(back) == arrays.fingerprint(params)


BLOCK = """input_layernorm.weight (16,)
self_modifying.in_proj.weight (16, 16)
self_modifying.out_proj.weight (16, 16)
self_modifying.norm.weight (8,)
self_modifying.q_proj.weight (2, 8, 8)
self_modifying.conv_k.weight (4, 16)
self_modifying.conv_v.weight (4, 16)
self_modifying.conv_q.weight (4, 16)
self_modifying.memory_k.w_in (2, 8, 8)
self_modifying.memory_k.w_out (2, 8, 8)
self_modifying.memory_v.w_in (2, 8, 8)
self_modifying.memory_v.w_out (2, 8, 8)
self_modifying.memory_mem.w_in (2, 8, 8)
self_modifying.memory_mem.w_out (2, 8, 8)
self_modifying.memory_eta.w_in (2, 8, 8)
self_modifying.memory_eta.w_out (2, 1, 8)
self_modifying.memory_eta.w_skip (2, 1, 8)
self_modifying.memory_eta.bias (2,)
self_modifying.memory_alpha.w_in (2, 8, 8)
self_modifying.memory_alpha.w_out (2, 1, 8)
self_modifying.memory_alpha.w_skip (2, 1, 8)
self_modifying.memory_alpha.bias (2,)
cms.fast.norm.weight (16,)
cms.fast.up_proj.weight (32, 16)
cms.fast.down_proj.weight (16, 32)
cms.slow.norm.weight (16,)
cms.slow.up_proj.weight (32, 16)
cms.slow.down_proj.weight (16, 32)"""


def test_names_and_shapes():
  c = tiny("mlp")
  want = {f"model.layers.{layer}.{line}" for layer in range(2) for line in BLOCK.split("\n")}
  want |= {"model.embed_tokens.weight (23, 16)", "model.norm.weight (16,)"}
  assert {f"{name} {t.shape}" for name, t in export.tensors(parameters(c), c).items()} == want


@pytest.mark.parametrize("name", ["mlp", "adaptive", "linear", "linear_adaptive"])
def test_a_memory_has_its_own_name(name):
  """By what the memories themselves call each other."""
  c = tiny(name)
  params, rule = parameters(c), write_rule.from_config(c.selfmod)
  named, kind = (export.tensors(params, c), linear_memory if c.selfmod.memory == "linear"
                 else mlp_memory)
  for layer in range(2):
    for head in range(2):
      own = {key: value[layer, head] for key, value in params["blocks"]["selfmod"].items()
             if key[:2] in ("v_", "g_", "w")}
      for memory, kernels in kind.weights(rule, own, kind.fresh(rule, own)).items():
        prefix = f"model.layers.{layer}.self_modifying.memory_{memory}"
        kernels = ({f"w_{part}": w for part, w in kernels.items()} if kind is mlp_memory
                   else {"weight": kernels})
        for part, weight in kernels.items():
          np.testing.assert_array_equal(named[f"{prefix}.{part}"][head], weight)


def read_by_name(t, c, tokens_T):
  """Logits of a transformer from the file alone."""
  width, total = c.model.dim // c.model.heads, len(tokens_T)
  def norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * t[name]
  def rotate(x_TxHxK):
    angle = np.arange(total)[:, None,
                             None] * c.attention.rope_base ** (-np.arange(width // 2)
                                                               / (width // 2))
    a, b = np.split(x_TxHxK, 2, -1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)], -1)
  x = t["model.embed_tokens.weight"][tokens_T] / c.model.embed_std
  for layer in range(c.model.layers):
    at = f"model.layers.{layer}."
    qkv = norm(x, at + "input_layernorm.weight") @ t[at + "self_attn.qkv_proj.weight"].T
    q, k, v = (part.reshape(total, -1, width) for part in np.split(qkv, 3, -1))
    q, k = (rotate(norm(q, at + "self_attn.q_norm.weight")),
            rotate(norm(k, at + "self_attn.k_norm.weight")))
    scores = np.where(np.tri(total), np.einsum("thk,shk->hts", q, k) / np.sqrt(width), -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("hts,shk->thk", share / share.sum(-1, keepdims=True), v)
    x = x + y.reshape(total, -1) @ t[at + "self_attn.o_proj.weight"].T
    h = norm(x, at + "post_attention_layernorm.weight")
    gate, up = h @ t[at + "mlp.gate_proj.weight"].T, h @ t[at + "mlp.up_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * up) @ t[at + "mlp.down_proj.weight"].T
  return norm(x, "model.norm.weight") @ t["model.embed_tokens.weight"].T


def test_a_reader_of_the_names_computes_the_logits(tmp_path):
  c, params = make_run(tmp_path / "run")
  export.write(tmp_path / "run", tmp_path / "out" / "m.safetensors")
  named = safetensors.numpy.load_file(tmp_path / "out" / "m.safetensors")
  tokens = np.random.default_rng(1).integers(0, VOCAB, 12)
  call = jax.jit(lambda p: lm.build(c).apply({"params": p}, tokens[None])[0][0])
  np.testing.assert_allclose(read_by_name(named, c, tokens), call(params), atol=1e-4, rtol=1e-4)
  export.import_run(tmp_path / "out" / "m.safetensors", tmp_path / "in")
  loaded, read, _ = weights.load(tmp_path / "in" / "checkpoints")
  assert read == c
  chex.assert_trees_all_equal(call(loaded), call(params))


@pytest.mark.slow
def test_an_imported_run(tmp_path):
  c, params = make_run(tmp_path / "run", "mlp", tokenizer_text=None)
  file, imported = tmp_path / "m.safetensors", tmp_path / "in"
  assert export.write(tmp_path / "run", file) == export.import_run(file, imported) == 7
  assert [p.name for p in tmp_path.glob("*") if p.is_file()] == ["m.safetensors"]
  assert file.stat().st_mode == (imported / "config.json").stat().st_mode
  assert sidecar.check(imported / "checkpoints"
                       / "7") == [] and config.load(imported / "config.json") == c
  with pytest.raises(ValueError,
                     match=r"step 7 is parameters alone, .* another --workdir and "
                           r"--init_from=\S*in$"):
    loop.train(c, imported)
  start, _ = stack.load(c, imported)
  chex.assert_trees_all_equal(start, params)
  c.selfmod.eta_init = 0.2
  with pytest.raises(ValueError,
                     match="without new levels, give its own model, channel, titan, attention, "
                           "selfmod, gru"):
    stack.load(c, imported)
  with pytest.raises(FileExistsError,
                     match="step 7 already|has a checkpoint already: choose another --workdir"):
    export.import_run(file, imported)


def test_generate_loads_an_imported_run(tmp_path):
  run, file, c = tmp_path / "run", tmp_path / "out" / "m.safetensors", tiny("mlp")
  run.mkdir()
  tokenizer.train(["the cat sat on the mat and the dog ran to the cat\n" * 20],
                  run / "tokenizer.model", 280)
  c.model.vocab, c.data.task = 280, "text"
  params, digest = parameters(c), sidecar.sha256(run / "tokenizer.model")
  weights.save(run / "checkpoints", 2, params, {"config": config.to_json(c), "tokenizer": digest})
  export.write(run, file)
  export.import_run(file, tmp_path / "in")
  read, loaded, words = opening.load(tmp_path / "in")
  c.teach.at_evaluation = "step:2"  # the checkpoint's, also after a file
  assert read == c and words.digest == digest
  chex.assert_trees_all_equal(loaded, params)


def test_bfloat16_is_the_rounded_parameters(tmp_path):
  c, params = make_run(tmp_path / "run", "hope_hybrid")
  export.write(tmp_path / "run", tmp_path / "out" / "m.safetensors", dtype="bfloat16")
  named = safetensors.numpy.load_file(tmp_path / "out" / "m.safetensors")
  assert {t.dtype for t in named.values()} == {jnp.dtype(jnp.bfloat16)}
  back, _, facts = export.read(tmp_path / "out" / "m.safetensors")
  chex.assert_trees_all_equal(back,
                              jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32),
                                           params))
  assert facts["fingerprint"] == arrays.fingerprint(back)


def test_a_step_by_its_number(tmp_path):
  make_run(tmp_path / "run")
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 6 in .*there: steps 7"):
    export.write(tmp_path / "run", tmp_path / "m.safetensors", step=6)
  assert export.write(tmp_path / "run", tmp_path / "out" / "m.safetensors", step=7) == 7


def test_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="no row for parameter blocks/new_thing: add one"):
    export.tensors({"blocks": {"new_thing": np.zeros(2)}}, tiny("transformer"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """(bytes of a file, its tensors, its metadata)."""
  folder = tmp_path_factory.mktemp("export")
  make_run(folder / "run", tokenizer_text=None)
  export.write(folder / "run", folder / "m.safetensors")
  with safetensors.safe_open(folder / "m.safetensors", framework="numpy") as file:
    return (folder / "m.safetensors").read_bytes(), {n: file.get_tensor(n)
                                                     for n in file.keys()}, file.metadata()


@pytest.mark.parametrize("change, message", [
    (lambda data: b"some other file, not tensors",
     "is no safetensors file, or a part of one .*: copy it again or write"),
    (lambda data: data[:-8], "is no safetensors file, or a part of one"),
    (lambda data: data[:100], "is no safetensors file, or a part of one"),
    (lambda data: b"", "is no safetensors file, or a part of one"),
    (lambda data: data[:-1] + bytes([data[-1] ^ 1]),
     "is damaged or was changed: .* fingerprint .* copy it again or write"),
])
def test_bad_bytes(exported, tmp_path, change, message):
  (tmp_path / "m.safetensors").write_bytes(change(exported[0]))
  with pytest.raises(ValueError, match=message):
    export.import_run(tmp_path / "m.safetensors", tmp_path / "in")
  assert not (tmp_path / "in").exists()


GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.mark.parametrize("tensors, facts, message", [
    ({}, None, "was not written by hope_jax.export: its metadata has no config, fingerprint, "
               "hope_jax, step, tokenizer"),
    ({}, {"hope_jax": "2"}, "is of format 2, this version of hope_jax reads 1: export it again"),
    ({}, {"config": "{}"}, "configuration of another version of hope_jax .*: import it with that "
                           "one"),
    ({GATE: None}, {}, rf"1 of 20 arrays .*\n  {GATE}: the file has none, its configuration \(32, "
                       r"16\)\nexport the param"),
    ({"extra": np.zeros(2)}, {}, r"1 of 21 .*\n  extra: the file \(2,\), its configuration has "
                                 r"none"),
    ({GATE: np.zeros((16, 32), np.float32)}, {},
     rf"{GATE}: the file \(16, 32\), its configuration \(32, 16\)"),
    ({GATE: np.zeros((32, 16), np.float32)}, {}, "is damaged or was changed: .* fingerprint"),
    ({}, {"tokenizer": "abc"}, "no .*tokenizer.model: put the tokenizer.model there that the model "
                               "was trained with"),
])
def test_bad_contents(exported, tmp_path, tensors, facts, message):
  tensors = {name: t for name, t in (exported[1] | tensors).items() if t is not None}
  safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors",
                              metadata=None if facts is None else exported[2] | facts)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    export.import_run(tmp_path / "m.safetensors", tmp_path / "in")
  assert not (tmp_path / "in" / "checkpoints").exists()


def test_tokenizers_that_differ(tmp_path):
  make_run(tmp_path / "run")
  export.write(tmp_path / "run", tmp_path / "out" / "m.safetensors")
  assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
  (tmp_path / "out" / "tokenizer.model").write_bytes(b"others")
  with pytest.raises(ValueError,
                     match="tokenizer does not match the checkpoint: .* use the tokenizer "
                           "kept beside"):
    export.import_run(tmp_path / "out" / "m.safetensors", tmp_path / "in")
  with pytest.raises(ValueError,
                     match="out/tokenizer.model is another model's tokenizer: choose another "
                           "folder"):
    export.write(tmp_path / "run", tmp_path / "out" / "new.safetensors")
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["m.safetensors",
                                                                  "tokenizer.model"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  make_run(tmp_path / "run", tokenizer_text=None)
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "m.safetensors").write_bytes(b"old")
  def full(tensors, path, metadata):
    path.write_bytes(b"half")
    raise safetensors.SafetensorError("no space left on device")
  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with pytest.raises(OSError,
                     match="m.safetensors cannot be written .no space left on device.: free some "
                           "space or choose"):
    export.write(tmp_path / "run", tmp_path / "out" / "m.safetensors")
  assert [(p.name, p.read_bytes())
          for p in (tmp_path / "out").iterdir()] == [("m.safetensors", b"old")]


def program(*arguments):
  values = flags.FlagValues()
  export.define_flags(values)
  values(["export", *map(str, arguments)])
  export.main(["export"], values)


def test_the_program(tmp_path, capsys, monkeypatch):
  make_run(tmp_path / "run", tokenizer_text=None)
  program(f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'm.safetensors'}")
  program(f"--input={tmp_path / 'm.safetensors'}", f"--workdir={tmp_path / 'in'}")
  said = capsys.readouterr().err
  assert "in: step 7, without optimizer state; go on with python -m hope_jax.generate" in said
  with pytest.raises(SystemExit,
                     match="FileNotFoundError: no file .*none: write one with python -m "
                           "hope_jax.export"):
    program(f"--input={tmp_path / 'none'}", f"--workdir={tmp_path / 'in'}")
  with pytest.raises(Exception,
                     match="give --checkpoint and --output to export, or --input and --workdir to "
                           "import"):
    program(f"--input={tmp_path / 'm.safetensors'}", f"--output={tmp_path / 'n.safetensors'}")
  monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
  with pytest.raises(SystemExit,
                     match=r"ImportError: .* need safetensors: pip install 'hope_jax\[export\]'"):
    program(f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'n.safetensors'}")
