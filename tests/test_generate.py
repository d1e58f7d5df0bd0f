"""Laws of generation: writing is reading; cuts, padding, pauses change nothing; constant memory."""

import functools
import gc
import io
import itertools
import json
import shutil

from absl import flags
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import config, generate, memorize
from hope_jax.checkpoints import checkpoint, sidecar, stored
from hope_jax.data import tokenizer
from hope_jax.model import checks, lm
from hope_jax.model.state import TrainState, fast_bytes
from hope_jax.reading import opening
from hope_jax.reading.stream import Stream, nucleus

VOCAB, CONTEXT = 29, 40
PROMPT = np.random.default_rng(5).integers(0, VOCAB, 29).tolist()
KINDS = ("window", "hope_attention", "hope_selfmod")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def tiny(name, vocab=VOCAB):
  c = config.base()
  c.model.update(dict(config.PRESETS["transformer" if name == "window" else name], dim=16, layers=2,
                      heads=2, vocab=vocab))
  c.channel.kind = "swiglu" if name == "window" else "cms"
  c.attention.update(dict(window=20 if name == "window" else 0, context=CONTEXT))
  c.selfmod.update(dict(memory="linear", chunk_memory=8, chunk_generators=4, eta_init=0.5))
  c.data.align = 8
  checks.validate(c)
  return c


def parameters(c, seed=1):
  """Drawn, not compiled; blocks outweigh the embedding, so that greedy text varies."""
  rng = np.random.default_rng(seed)
  def draw(path, shape):
    mean, spread = "scale" in str(path[-1]), 0.02 if "embed" in str(path) else 0.5
    return jnp.asarray(rng.normal(mean, spread, shape.shape), jnp.float32)
  return jax.tree_util.tree_map_with_path(draw,
                                          jax.eval_shape(
                                              lambda: lm.init_params(c, jax.random.key(0))))


@functools.cache
def setup(name):
  return tiny(name), parameters(tiny(name))


def stream(name="window", **kwargs):
  return Stream(*setup(name), **kwargs)


def write(s, ids, tokens=8, **kwargs):
  return list(s.generate(ids, tokens, **kwargs))


def assert_same_state(a, b):
  chex.assert_trees_all_close(a.fast, b.fast, atol=2e-5, rtol=1e-4)
  assert a.pending == b.pending and a.count == b.count


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text_is_the_argmax_of_the_whole_forward_pass(name):
  c, params = setup(name)
  prompts = [PROMPT[i:i + n] for i, n in enumerate((2, 3, 9, 16, 12, 11))]
  # beyond the window
  texts = np.array([ids + write(stream(name), ids, CONTEXT - len(ids)) for ids in prompts])
  logits = jax.jit(lambda t: lm.build(c).apply({"params": params}, t)[0])(texts)
  for ids, text, likeliest in zip(prompts, texts, jnp.argmax(logits, -1)):
    np.testing.assert_array_equal(text[len(ids):], likeliest[len(ids) - 1:-1])
  assert len(np.unique(texts[:, 16:])) > 6


@pytest.mark.parametrize("name", ["hope_attention", "hope_selfmod"])
def test_padding_and_cuts_of_the_prompt_change_nothing(name, monkeypatch):
  streams, texts = [stream(name) for _ in range(3)], []
  # one call with 3 of padding; 16 and 13 of 16; one by one
  for s, longest in zip(streams, (32, 16, 1)):
    monkeypatch.setattr("hope_jax.reading.stream.LONGEST", longest)
    texts.append(write(s, PROMPT))
    assert_same_state(s, streams[0])
  assert texts[0] == texts[1] == texts[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "hope_selfmod"])
def test_memory_does_not_grow(name):
  s, seen = stream(name), []
  empty = s.fast
  for i, _ in enumerate(s.generate(PROMPT[:9], 300)):
    if i in (30, 299):
      gc.collect()
      live = jax.live_arrays()
      seen.append((len(live), sum(a.nbytes for a in live), fast_bytes(s.fast),
                   s._step._cache_size()))
      del live
  assert seen[0] == seen[1]
  assert all(a.is_deleted() for a in jax.tree.leaves(empty))  # donated: there are never two states


def test_a_seed_is_a_text():
  texts = [write(stream(temperature=1.0, seed=seed), PROMPT[:9], 20) for seed in (1, 1, 2)]
  assert texts[0] == texts[1] != texts[2]
  c, params = setup("window")
  even = Stream(c, jax.tree.map(jnp.zeros_like, params), temperature=1.0)
  assert len(set(write(even, PROMPT[:9], 40))) > 15  # every token is a draw of its own


def test_little_top_p_is_greedy():
  greedy = write(stream(), PROMPT[:9], 12)
  assert write(stream(temperature=1.0, top_p=1e-6, seed=3), PROMPT[:9], 12) == greedy
  assert write(stream(temperature=1.0, seed=3), PROMPT[:9], 12) != greedy


def test_nucleus_draws_from_the_likeliest_in_proportion():
  p = jnp.array([0.1, 0.4, 0.02, 0.3, 0.18])
  def draw(t, top):
    return jax.vmap(lambda k: nucleus(jnp.log(p) + 50, k, t, top))(
        jax.random.split(jax.random.key(0), 20_000))
  for t, top, kept in ((1.0, 1.0, [0, 1, 2, 3, 4]), (1.0, 0.75, [1, 3, 4]), (1.0, 0.69, [1, 3]),
                       (0.5, 0.8, [1, 3]), (1e-6, 1.0, [1])):
    want = np.zeros(5)
    want[kept] = np.asarray(p / p.max(), np.float64)[kept] ** (1 / t)
    seen = np.bincount(draw(t, top), minlength=5) / 20_000
    np.testing.assert_allclose(seen, want / want.sum(), atol=0.015)
    assert not seen[want == 0].any()


def test_a_text_longer_than_attention_keeps_is_read_as_by_a_window(capsys):
  c, params = setup("hope_attention")
  other = c.copy_and_resolve_references()
  other.attention.window = CONTEXT
  texts = [write(Stream(each, params), PROMPT * 3, 12) for each in (c, other)]
  assert texts[0] == texts[1] != write(Stream(c, params), (PROMPT * 3)[-CONTEXT:], 12)
  assert capsys.readouterr().err.count("longer than the 40 tokens that attention keeps") == 1


def test_a_cache_that_grows_is_the_whole_one(monkeypatch):
  s, (c, params) = stream("hope_attention"), setup("hope_attention")
  want = write(s, PROMPT[:7], 20), s.fast
  monkeypatch.setattr("hope_jax.reading.stream.ROOM", 2)
  short = Stream(c, params)
  assert short._fast.layers.tokens["attention"].position_BxW.shape[-1] == 2
  assert write(short, PROMPT[:7], 20) == want[0]
  assert short._fast.layers.tokens["attention"].position_BxW.shape[-1] == 32
  chex.assert_trees_all_close(short.fast, want[1], atol=2e-5, rtol=1e-4)
  assert write(short, PROMPT, 9) == write(s, PROMPT, 9)  # beyond the context


def test_some_tokens_are_never_chosen_and_one_ends_the_text():
  text = write(stream(), PROMPT[:9], 20)
  stop = text[7]
  s = stream()
  assert write(s, PROMPT[:9], 20, stop={stop, VOCAB}) == text[:text.index(stop)]
  # it has read what it wrote, and not the stop
  assert s.pending is None and s.count == 9 + text.index(stop)
  assert stop not in write(stream(never=[stop]), PROMPT[:9], 20)


@pytest.mark.parametrize("name", ["window", "hope_selfmod"])
def test_a_conversation_goes_on_as_if_it_had_not_stopped(name, tmp_path):
  def make():
    return stream(name, temperature=1.0, seed=4)
  talk, one = make(), write(make(), PROMPT[:9], 16)
  first = list(itertools.islice(talk.generate(PROMPT[:9], 100), 6))  # left at a token
  talk.save(tmp_path / "talk")
  loaded = make()
  loaded.load(tmp_path / "talk")
  assert first + write(loaded, [], 10) == one
  assert write(talk, [], 10) == one[6:]
  talk.save(tmp_path / "talk")  # replaces
  second = write(talk, PROMPT[20:24], 8)
  loaded.load(tmp_path / "talk")
  assert write(loaded, PROMPT[20:24], 8) == second
  chex.assert_trees_all_equal(loaded.fast, talk.fast)
  talk.reset()
  assert write(talk, PROMPT[:9], 16) == one


def test_a_state_is_copied_where_a_stream_starts_from_it():
  a, b = stream(), stream()
  write(a, PROMPT[:9])
  b.start(a.fast, a.pending)
  assert write(b, [], 5) == write(a, [], 5)
  assert_same_state(a, b)


def test_refusals(tmp_path):
  s = stream()
  for kwargs, message in (
      (dict(temperature=-0.1), "temperature is -0.1: set it to 0 .* or more"),
      (dict(temperature=float("nan")), "temperature is nan"),
      (dict(temperature=float("inf")), "temperature is inf"),
      (dict(seed=-1), "seed is -1: set it to 0 or more"), (dict(seed=2**40), "and below 2.32"),
      (dict(top_p=0.0), "top_p is 0.0: set it above 0 and to at most 1"),
      (dict(top_p=1.01), "top_p is 1.01"),
      (dict(never=[VOCAB]), f"token {VOCAB} is not in the vocabulary")):
    with pytest.raises(ValueError, match=message):
      stream(**kwargs)
  for ids, tokens, message in (
      ([1], 0, "tokens is 0: ask for 1 or more"),
      ([], 5, "the prompt is empty: give .* at least one token"),
      ([3, VOCAB], 5, f"token {VOCAB} is not in the vocabulary of {VOCAB}: encode with the run's "
                      "tokenizer"),
      ([-1], 5, "token -1 is not")):
    with pytest.raises(ValueError, match=message):
      s.generate(ids, tokens)  # at once, not at the first token
  with pytest.raises(TypeError):
    s.generate([1.5], 5)
  assert s.count == 0
  stream("hope_selfmod").generate([1] * 5000, 5)
  with pytest.raises(FileNotFoundError,
                     match=f"no conversation in {tmp_path}/none: save one there with /save"):
    s.load(tmp_path / "none")
  s.save(tmp_path / "talk")
  c = tiny("window")
  with pytest.raises(ValueError,
                     match=f"the fast state in {tmp_path}/talk belongs to another model"):
    Stream(c, parameters(c, seed=2)).load(tmp_path / "talk")
  c.attention.window = 16  # the same parameters, another cache
  with pytest.raises(ValueError, match="checkpoint of another fast state"):
    Stream(c, setup("window")[1]).load(tmp_path / "talk")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's folder, as the trainer leaves it."""
  workdir = tmp_path_factory.mktemp("run")
  words = ["def f(x):\n  return [naïve, 日本]\n"] * 5 + [f"{word} = {word[::-1]}\n"
                                                       for word in dir(np)]
  tokenizer.train(words, workdir / "tokenizer.model", 320)
  c, tok = tiny("hope_selfmod", 320), tokenizer.Tokenizer(workdir / "tokenizer.model")
  (workdir / "config.json").write_text(config.to_json(c))
  with checkpoint.Checkpoints(workdir / "checkpoints", keep=1) as saved:
    saved.save(7, TrainState(jnp.int32(7), parameters(c), (), jax.random.key(0)), {},
               {"config": config.to_json(c), "tokenizer": tok.digest})
  return workdir


@pytest.fixture
def here(run, capsys):
  """A program in this process: (what it prints, what else it says), or its exit message."""
  def call(program, *argv, checkpoint=run):
    values = flags.FlagValues()
    program.define_flags(values)
    rest = values([program.__name__, f"--checkpoint={checkpoint}", *argv])
    try:
      program.main(rest, values)
    except SystemExit as exit:
      return exit.code
    return tuple(capsys.readouterr())
  return call


@pytest.fixture
def cli(here, monkeypatch):
  """generate in this process, with these lines on stdin."""
  def call(*argv, lines=(), **options):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return here(generate, *argv, **options)
  return call


def test_a_run_is_loaded_with_its_tokenizer(run, tmp_path):
  c, params, tok = opening.load(run)
  own = tiny("hope_selfmod", 320)
  own.teach.at_evaluation = "step:7"  # the checkpoint's
  assert c == own and tok.size == 320
  chex.assert_trees_all_equal(params, parameters(c))
  with pytest.raises(FileNotFoundError,
                     match=f"no checkpoint in {tmp_path}/checkpoints .*train one with"):
    opening.load(tmp_path)
  other = shutil.copytree(run, tmp_path / "other")
  tokenizer.train(["abc abd abe\n"] * 99, other / "tokenizer.model", 269)
  with pytest.raises(ValueError, match="the tokenizer does not match the checkpoint"):
    opening.load(other)
  (other / "tokenizer.model").unlink()
  with pytest.raises(ValueError, match="no tokenizer at"):
    opening.load(other)
  meta = json.loads(json.dumps(stored.read_meta(run / "checkpoints"))) | {"tokenizer": "none"}
  with checkpoint.Checkpoints(other / "checkpoints", keep=1) as saved:
    saved.save(8, TrainState(jnp.int32(8), params, (), jax.random.key(0)), {}, meta)
  with pytest.raises(ValueError,
                     match="was not trained on text and has no tokenizer: choose a run with "
                           "data.task"):
    opening.load(other)


def test_a_run_its_checkpoints_and_a_step_are_the_same(run, monkeypatch):
  _, params, _ = opening.load(run)
  monkeypatch.chdir(run / "checkpoints")
  for where in (run / "checkpoints", run / "checkpoints" / "7", "7", "."):
    chex.assert_trees_all_equal(opening.load(where)[1], params)
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 8"):
    opening.load(run / "checkpoints" / "8")


def test_a_line_that_is_no_text_is_answered(cli, monkeypatch):
  out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  monkeypatch.setattr("sys.stdout", out)
  lines = ["value\udcff", "\x00", "日"]
  _, said = cli("--interactive", "--tokens=6", "--endless", "--temperature=0", lines=lines)
  assert said.count("tokens read") == 3 and "Error" not in said


@pytest.mark.slow
def test_the_program_writes_what_the_stream_writes(run, cli):
  c, params, tok = opening.load(run)
  ids = [tok.bos, *tok.encode("value9 = 日")]
  text, said = cli("--prompt=value9 = 日", "--tokens=20", "--temperature=0", "--endless")
  assert text == tok.decode(write(Stream(c, params, never=[tok.eos]), ids, 20), "replace") + "\n"
  size = fast_bytes(lm.init_fast(c, 1))
  assert f"[{len(ids)} tokens read, 20 written, " in said and f"{size:,} bytes of state" in said
  sampled = [cli("--prompt=value9 =", "--tokens=20", "--endless", f"--seed={seed}")[0]
             for seed in (1, 1, 2)]
  assert sampled[0] == sampled[1] != sampled[2]


def test_a_conversation_over_several_programs(cli, run, tmp_path):
  def chat(*argv, lines):
    return cli("--interactive", "--tokens=6", "--endless", *argv, lines=lines)
  first, _ = chat("--prompt=def f", lines=["value1"])
  both, _ = chat("--prompt=def f", lines=["value1", f"/save {tmp_path}/talk", "value2", "return"])
  assert both.startswith(first)
  assert chat(f"--state={tmp_path}/talk",
              lines=["value2", "return", "/quit", "never read"])[0] == both[len(first):]
  again, said = chat(lines=["value3", "/reset", "def", f"/load {tmp_path}/talk", "value2",
                            "return"])
  assert again.endswith(both[len(first):]) and "[/reset: 0 tokens in this conversation]" in said
  assert cli(f"--state={tmp_path}/talk", "--tokens=6", "--endless")[0]  # goes on without a prompt
  steps = run / "checkpoints"
  _, said = chat(lines=["/sav x", "/load", f"/load {tmp_path}/none", f"/save {steps}",
                        f"/load {steps}"])
  for wanted in ("'/sav x' is not a command: use one of /save DIR", "'/load' is not a command",
                 "no conversation in",
                 "holds a run's checkpoints, not a conversation: choose another directory"):
    assert wanted in said
  assert said.count("holds a run's checkpoints") == 2 and sidecar.steps(steps) == [7]


@pytest.fixture
def learn(here):
  """memorize in this process."""
  return lambda *argv: here(memorize, *argv)


@pytest.mark.slow
def test_a_memorized_text_is_where_generation_goes_on(run, cli, learn, tmp_path):
  c, params, tok = opening.load(run)
  (tmp_path / "notes").write_text("value9 = 日")
  printed, said = learn(f"--text={tmp_path / 'notes'}", f"--state={tmp_path / 'out'}")
  losses = dict(line.split()[:2] for line in printed.splitlines())
  assert list(losses) == ["before", "read",
                          "after"] and float(losses["after"]) != float(losses["before"]) == float(
                              losses["read"])
  assert f"saved in {tmp_path}/out: go on with python -m hope_jax.generate" in said
  text, _ = cli(f"--state={tmp_path}/out", "--prompt= x", "--tokens=9", "--endless",
                "--temperature=0")
  ids = [tok.bos, *tok.encode("value9 = 日"), *tok.encode(" x")]
  assert text == tok.decode(write(Stream(c, params, never=[tok.eos]), ids, 9), "replace") + "\n"


def test_memorize_refuses(learn, run, tmp_path):
  (tmp_path / "empty").write_text("")
  empty = f"--text={tmp_path / 'empty'}"
  assert "empty holds 0 tokens: there is nothing to learn from fewer than 2" in learn(empty)
  assert "No such file" in learn(f"--text={tmp_path / 'none'}")
  said = learn(empty, "--paths=cms_fast")
  assert "teach.paths: cms_fast is not written by this model: choose from selfmod, or none" in said
  assert "teach.layers: 7 is none of the layers 0 to 1" in learn(empty, "--layers=7")
  assert "--layers=first: layers are numbers from 0" in learn(empty, "--layers=first")
  state = f"--state={run / 'checkpoints'}"
  assert "holds a run's checkpoints, not a conversation" in learn(empty, state)


def test_the_program_refuses(cli, tmp_path):
  assert "the prompt is empty: give some text with --prompt" in cli()
  assert "no checkpoint in" in cli("--prompt=x", checkpoint=tmp_path)
  assert "temperature is -1.0" in cli("--prompt=x", "--temperature=-1")
  assert "top_p is 2.0" in cli("--prompt=x", "--top_p=2")
  assert "no conversation in" in cli("--prompt=x", f"--state={tmp_path}/none")
  with pytest.raises(flags.IllegalFlagValueError, match="tokens"):
    cli("--prompt=x", "--tokens=0")
