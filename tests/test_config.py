"""Every bad configuration is refused early, with a message that names the fix."""

from pathlib import Path
import subprocess
import sys

import jax
import pytest

from configs import mid, online, pilot, recall, recall_long, smoke, target
from hope_jax import config
from hope_jax.model import checks
from hope_jax.training import costs


def changed(**fields):
  c = config.base()
  for name, value in fields.items():
    section, field = name.split("__")
    c[section][field] = value
  return c


@pytest.mark.parametrize("module", [smoke, recall, recall_long, online, pilot, mid, target])
def test_shipped_configs_are_valid(module):
  checks.validate(module.get_config())


@pytest.mark.parametrize("module, parameters, tokens", [(mid, 760e6, 30e9), (target, 1.3e9, 100e9)])
def test_named_sizes(module, parameters, tokens):
  c = module.get_config()
  count = sum(leaf.size for leaf in jax.tree.leaves(costs.param_shapes(c)))
  assert count == pytest.approx(parameters,
                                rel=0.03) and f"{count / 1e6:,.0f} M parameters" in module.__doc__
  assert c.train.steps * c.data.batch * c.data.seq == pytest.approx(tokens, rel=1e-3)


def test_json_round_trip():
  c = pilot.get_config()
  assert config.to_json(config.from_json(config.to_json(c))) == config.to_json(c)


@pytest.mark.parametrize("fields, message", [
    (dict(model__pattern=("rnn",)), "rnn is no token mixer; choose from attention, selfmod, gru"),
    (dict(model__pattern=()), "model.pattern=.*: it is empty"),
    (dict(model__titan="on"), "model.titan='on': choose one of none"),
    (dict(model__dim=30), "not divisible by model.heads"),
    (dict(model__layers=0), "model.layers=0: set it to 1 or more"),
    (dict(model__dropout=1.0), "model.dropout"),
    (dict(model__pattern=("attention",), model__dim=12, model__heads=4), "head width 3 is odd"),
    (dict(selfmod__chunk_generators=48), "begin together: .* set data.align to 192"),
    (dict(model__pattern=("attention",), attention__kv_heads=3),
     "model.heads=4 is not divisible by attention.kv_heads=3: set"),
    (dict(model__pattern=("attention",), attention__rope_low=4.0), "set .* low below high"),
    (dict(optim__train="levels", channel__kind="swiglu"),
     "optim.train=levels, but the model has none: set optim.train=all"),
    (dict(channel__levels=(config.Level("fast", 1, writes="up"),)), "writes=up of fast: choose"),
    (dict(attention__bias="q"), "attention.bias='q': choose one of none, qkv, all"),
    (dict(attention__width=-2), "attention.width=-2: set it to 0 or more"),
    (dict(model__norm_epsilon=0.0), "model.norm_epsilon=0.0: set it above 0"),
    (dict(selfmod__chunk_memory=128), "set data.align to 128"),
    (dict(data__seq=500), "set data.seq to 512"),
    (dict(data__batch=6, optim__accumulate=4), "set data.batch to 8"),
    (dict(channel__levels=(config.Level("fast", 0), config.Level("fast", 1))), "names repeat"),
    (dict(channel__levels=(config.Level("slow", -1),)), "negative"),
    (dict(channel__levels=(config.Level("slow", 700),)), "set it to 1024"),
    (dict(selfmod__through_writes="half"), "full, none or chunks:n"),
    (dict(selfmod__alpha=False), "set selfmod.bound=0"),
    (dict(selfmod__factor="input"), "set selfmod.bound=0"),
    (dict(selfmod__momentum=1.0), "selfmod.momentum"),
])
def test_what_cannot_run_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    checks.validate(changed(**fields))


@pytest.mark.parametrize("fields, message", [
    (dict(channel__levels=(config.Level("fast", 0),)),
     "period 0 of fast never writes in context: set it to 1"),
    (dict(channel__levels=(config.Level("fast", 1, rule="adam"),)),
     "rule adam of fast: choose one of sgd, momentum"),
    (dict(channel__levels=(config.Level("fast", 1, lr=-0.1),)),
     "fast: lr=-0.1, .* set lr and warmup to 0 or more"),
    (dict(channel__levels=(config.Level("fast", 1, scale=0.0),)),
     "scale=0.0: set .* scale above 0"),
    (dict(channel__levels=(config.Level("titan", 1),)),
     "titan and token mixers are names of other memories"),
    (dict(channel__levels=(config.Level("mid", 48),)),
     "period 48 of mid is neither.*set teach.chunk=48"),
    (dict(teach__scale=0.0), "nothing would be written"),
    (dict(teach__clip=-1.0), "teach.clip=-1.0: set it to 0 or more"),
    (dict(teach__chunk=96), "set data.align to 96"),
    (dict(teach__chunk=32), "no multiple of the 64 of selfmod"),
    (dict(teach__signal="global"), "set teach.target=block"),
    (dict(teach__paths=("cms_fats",)), "cms_fats is not written by this model: choose from "
                                       "selfmod, cms_fast"),
    (dict(teach__layers=(4,)), "4 is none of the layers 0 to 3"),
])
def test_writes_that_cannot_happen_are_refused(fields, message):
  c = changed(**dict(channel__in_context=True,
                     channel__levels=(config.Level("fast", 1), config.Level("slow", 128))) | fields)
  with pytest.raises(ValueError, match=message):
    checks.validate(c)


def test_batch_must_divide_by_devices():
  with pytest.raises(ValueError,
                     match="data.batch=8 is not divisible by 3 devices.*set data.batch to 9"):
    checks.validate(config.base(), devices=3)


def test_unknown_field_and_wrong_type():
  c = config.base()
  with pytest.raises(AttributeError, match="dimm"):
    c.model.dimm = 3
  with pytest.raises(TypeError, match="dim"):
    c.model.dim = "wide"


@pytest.mark.parametrize("flag, message", [
    ("--config.model.dimm=3", 'Did you mean "dim"'),
    ("--config.model.dim=wide", "invalid literal for int"),
    ("--config.model.pattern=('samba',)", "samba is no token mixer"),
    ("--config.data.batch=0", "set it to 1 or more"), ("", "no --workdir")])
def test_the_program_ends_with_one_line(flag, message):
  root = Path(__file__).resolve().parents[1]
  command = [sys.executable, "-m", "hope_jax.launch", "--config=configs/smoke.py",
             *([flag] if flag else [])]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  assert done.returncode == 1 and message in done.stderr.splitlines()[
      -1] and "Traceback" not in done.stderr
