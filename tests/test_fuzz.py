"""10,000 draws of what a person may write: each runs, or is refused in one line that names it."""

import bz2
import gzip
import json
import lzma
import math
import random
import sys

from absl import flags
from ml_collections import ConfigDict
import pytest

from evals import longdoc, questions
from hope_jax import config, export, generate, memorize, report
from hope_jax.checkpoints import sidecar
from hope_jax.data import corpus, files, synthetic, tokenized
from hope_jax.model import checks
from hope_jax.reports import memorized
from hope_jax.runtime import program
from hope_jax.scoring import memorization
from hope_jax.training import loop
from tests.test_train import small

pytestmark = pytest.mark.slow
REFUSALS = (ValueError, OSError, FloatingPointError, RuntimeError)  # what programs end with a line
FLOATS = (math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-300, 1e-9, 0.5, 1.0, 1.5, 3.0, 1e9,
          1e300)
INTS = (-2**63, -1, 0, 1, 2, 3, 4, 5, 8, 16, 33, 1000, 2**31, 2**32, 10**18)
TEXTS = ("", "x", " ", "none", "a\nb", "\0", "../x", "é" * 300, "text", "1", "float16", "(1,)")
TUPLES = ((), ("",), ("x",), (1,), (-1,), (None,), (1.5,), ((),), ([],), ({},), ("none",),
          ("selfmod",), ("gru",), ("attention", "gru"), ("cms_fast", "titan"), (0, 1), (0, 0),
          (True,))
WORDS = ("", "x", "0", "1", "-1", "3.5", "nan", "inf", "-inf", "1e400", "None", "True", "()",
         "(1,)", "('gru',)", "([],)", "('attention','gru')", "[", "\0", "é", "a,b", ",", "1,2",
         "9" * 20, "~", "~nobody_of_this_name", "muon", "bfloat16", "'", "--", "{}",
         "__import__('os')", " 1", "0x10")


def level(rng):
  def one(*some):
    return rng.choice(some)
  return config.Level(one("fast", "slow", "", "a/b", "titan", 3), one(*INTS, 1.5, None),
                      one("sgd", "muon", "adam", None), one(0.1, *FLOATS), one(0.9, *FLOATS),
                      one(*INTS), one(1.0, *FLOATS))


def source(rng):
  fields = dict(name="s", kind="text", path="x", field="text", domains="", weight=1.0)
  name = rng.choice(list(fields))
  fields[name] = rng.choice([*TEXTS, *FLOATS, None, 3])
  if rng.random() < 0.1:
    del fields[name]
  return ConfigDict(fields)


def edge(rng, field, value):
  """A value at an edge of what a field may be, or beyond."""
  if field == "channel.levels" and rng.random() < 0.7:
    return tuple(level(rng) for _ in range(rng.randrange(3)))
  if field == "data.sources" and rng.random() < 0.7:
    return tuple(source(rng) for _ in range(rng.randrange(1, 3)))
  choices = [*checks.CHOICES.get(field, ()), *(
      (not value,) if isinstance(value, bool) else INTS if isinstance(value, int)
      else FLOATS if isinstance(value, float) else TEXTS if isinstance(value, str) else TUPLES)]
  return rng.choice(choices)


def tiny(kind):
  c = config.base()
  c.model.update(dict(config.PRESETS[kind], dim=8, layers=2, heads=2, vocab=33))
  c.titans.segment = 8
  c.selfmod.chunk_generators = c.selfmod.chunk_memory = c.teach.chunk = c.titans.chunk = 4
  c.channel.levels = (config.Level("fast", 4), config.Level("slow", 8))
  c.channel.kind = "swiglu" if kind in ("transformer", "gru") else "cms"
  c.channel.in_context = kind.startswith("hope_a") or kind == "hope_hybrid"
  c.data.update(dict(task="recall", recall_pairs=2, recall_keys=4, recall_taught=True, seq=16,
                     align=4, batch=2))
  c.train.update(dict(steps=2, log_every=1, eval_every=2, eval_batches=1, save_every=1))
  return c


TINY = [tiny(kind) for kind in config.PRESETS]
FIELDS = ["seed", *(f"{section}.{name}" for section in TINY[0] if section != "seed"
                    for name in TINY[0][section])]


def draw(rng):
  """(configuration, {field: value} that was set in it)."""
  c, given = rng.choice(TINY).copy_and_resolve_references(), {}
  for field in rng.sample(FIELDS, rng.choice((1, 2))):
    section, _, name = field.rpartition(".")
    owner = c[section] if section else c
    value = edge(rng, field, owner[name])
    try:
      owner[name] = value
      given[field] = value
    except TypeError as error:
      assert name in str(error)
  return c, given


def lawful(call, about, *names):
  """What a call returns; None if it is refused in one line with one of the names."""
  try:
    return call()
  except REFUSALS as error:
    text = str(error)
    assert "\n" not in text.strip() and any(name in text for name in names), (about, text)
  except BaseException as error:
    raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error


def test_configurations():
  rng, good = random.Random(0), 0

  def check(c):
    checks.validate(c, 1)
    if c.data.task != "text":
      synthetic.dataset(c, "train")
    return True

  for i in range(5000):
    c, given = draw(rng)
    names = [field.rpartition(".")[2] for field in given]
    if lawful(lambda: check(c), f"draw {i}: {given}", *names):
      good += 1
      if "data.sources" not in given:
        assert json.loads(config.to_json(config.from_json(config.to_json(c)))) == json.loads(
            config.to_json(c))
  assert 1000 < good < 4000


def test_configurations_that_are_accepted_train(tmp_path):
  rng, done = random.Random(1), 0
  while done < 3:
    c, given = draw(rng)
    try:
      assert c.channel.kind == "swiglu"  # compiled in seconds
      checks.validate(c, 1)
      assert c.data.task == "recall" and max(c.data.batch * c.data.seq, c.model.dim * c.model.vocab,
                                             c.train.steps * c.train.eval_batches) < 3000
    except (ValueError, AssertionError):
      continue
    done += 1
    lawful(lambda: loop.train(c, tmp_path / str(done)), given, *given, "loss", "gradient",
           *(field.rpartition(".")[2] for field in given))
    steps = tmp_path / str(done) / "checkpoints"
    assert all(not sidecar.check(steps / str(step)) for step in sidecar.steps(steps))
    assert not list(steps.glob("*.partial*"))


COMMANDS = {"generate": generate, "memorize": memorize, "export": export, "report": report,
            "questions": questions, "longdoc": longdoc}


def test_command_lines(monkeypatch, tmp_path):
  """Programs' own flags, and fields of a configuration."""
  rng = random.Random(2)
  base = TINY[0]
  for i in range(1500):
    name = rng.choice(list(COMMANDS))
    values = flags.FlagValues()
    COMMANDS[name].define_flags(values)
    needed = [f"--{flag}=x" for flag in values if flag in ("checkpoint", "text", "questions",
                                                           "memorized", "output", "documents")]
    given = [f"--{flag}={rng.choice(WORDS)}" for flag in rng.sample(list(values), 2)]
    parsed = refused_or(lambda: program.parse_flags([name, *needed, *given], values), i, given)
    if parsed and "paths" in values:
      c = base.copy_and_resolve_references()
      lawful(lambda: memorization.override(c, values) or checks.validate(c), given, "paths",
             "layers", "threshold", "scale")
  for i in range(1000):
    field = rng.choice(FIELDS)
    given = ["--config=configs/recall.py", f"--config.{field}={rng.choice(WORDS)}"]
    values = flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["launch", *given])
    program.define_config("", values)
    if refused_or(lambda: program.parse_flags(sys.argv, values), i, given):
      lawful(lambda: checks.validate(values.config, 1), given, field.rpartition(".")[2])


def refused_or(parse, i, given):
  """True if flags are taken, False if the program would end with a line that names one."""
  try:
    parse()
    return True
  except SystemExit as error:
    assert "\n" not in str(error.code) and any(flag.split("=")[0].strip("-") in str(error.code)
                                               for flag in given), (i, given, error.code)
  except BaseException as error:
    raise AssertionError(f"{i}, {given}: {type(error).__name__}: {error}") from error
  return False


def bytes_of(rng):
  """Text of some encoding, damaged or not."""
  text = "".join(rng.choice(("a", " ", "\n", "\r\n", "é", "\u2581", "\ufeff", "\0", "\U0001f600",
                             "\x85", "word ")) for _ in range(rng.randrange(40)))
  data = text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-8")))
  for _ in range(rng.randrange(3)):
    at = rng.randrange(len(data) + 1)
    data = data[:at] + rng.choice((b"", b"\xff", b"\x80", b"\0", rng.randbytes(3))) + data[at + 1:]
  return data


PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def pack(rng, path, data):
  """Writes a file, packed or not, whole or not; its path."""
  ending = rng.choice(("", "", *PACKERS))
  data = PACKERS[ending](data)
  if ending and rng.random() < 0.5:
    at = rng.randrange(len(data))
    data = rng.choice((data[:at], data[:at] + b"\x55" + data[at + 1:], data + b"\0\1"))
  path = path.with_name(path.name + ending)
  path.write_bytes(data)
  return path


def documents(path, kind):
  return list(corpus.read(ConfigDict(dict(name="s", kind=kind, path=str(path), field="text",
                                          domains="", weight=1.0))))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return tokenized.tokenizer(small(tmp_path_factory.mktemp("data")))


def test_texts(tmp_path, tokenizer):
  rng = random.Random(3)
  for i in range(1000):
    data = bytes_of(rng)
    path = pack(rng, tmp_path / f"{i}.txt", data)
    text = lawful(lambda: files.text(path), (i, data), path.name)
    for document in lawful(lambda: documents(path, "text"), (i, data), path.name) or ():
      assert document.text == text
    if text is not None:
      assert "".join(tokenized._lines(text)) == text
      assert tokenizer.decode_bytes(tokenizer.encode(text)) == files.encode(text)
    path.unlink()


VALUES = (None, True, 0, -1, 1.5, 10**30, "", "x", "\ud800", "a\0b", [], {}, [1], {"a": 1}, "text",
          float("nan"))


def json_of(rng, good: dict):
  """A line of JSON, with something changed in it."""
  entry = dict(good)
  for _ in range(rng.randrange(3)):
    name = rng.choice([*good, "more"])
    entry[name] = rng.choice(VALUES)
    if rng.random() < 0.2:
      del entry[name]
  line = json.dumps(rng.choice((entry, entry, entry, [entry], rng.choice(VALUES))),
                    ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
  if rng.random() < 0.3:
    at = rng.randrange(len(line))
    line = rng.choice((line[:at], line[:at] + b"\xff" + line[at:], b"[" * 99999, b"", b" \r",
                       b"\xef\xbb\xbf" + line, line[:at] + b"\0" + line[at:], line + b" x",
                       b"1" * 9999))
  return line


def test_json_lines(tmp_path, tokenizer):
  rng, read = random.Random(4), 0
  for i in range(1000):
    lines = [json_of(rng, dict(text="one two", prompt="a b", answer="c")) for _ in range(3)]
    path = pack(rng, tmp_path / f"{i}.jsonl", b"\n".join(lines))
    read += len(lawful(lambda: documents(path, "jsonl"), (i, lines), path.name) or ())
    read += len(lawful(lambda: questions.read(path, tokenizer), (i, lines), path.name) or ())
    path.unlink()
  assert read > 100


def test_files_that_programs_read_again(tmp_path):
  rng = random.Random(5)
  picture = dict(predicted=[1, 1], nats={"read": [1.0, 1.0]}, selfmod={}, memories={}, chunk=4,
                 threshold=0.0)
  stored = json.loads(config.to_json(TINY[0]))
  for i in range(500):
    path = tmp_path / f"{i}.json"
    path.write_bytes(json_of(rng, picture))
    data = lawful(lambda: memorized.load(path), (i, path.read_bytes()), path.name)
    if data is not None:
      lawful(lambda: memorized.draw(data) and True, (i, data), "memorize")
    section = rng.choice(list(stored))
    part = stored[section]
    value = rng.choice(VALUES)
    whole = not isinstance(part, dict) or rng.random() < 0.3
    changed = stored | {section: value if whole else part | {rng.choice([*part, "more"]): value}}
    lawful(lambda: config.from_json(json.dumps(changed)), (i, changed[section]), section,
           "configuration")
    path.unlink()
