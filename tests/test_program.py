"""What a person may write on a command line."""

import ast
import importlib
import os
from pathlib import Path
import subprocess
import sys

from absl import flags
import pytest

from hope_jax import versions
from hope_jax.runtime import program, startup

ROOT = Path(__file__).resolve().parents[1]


def test_paths_are_those_of_a_person(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert program.path("~/runs/a") == "/home/me/runs/a" and program.path("runs/~a") == "runs/~a"
  values = flags.FlagValues()
  program.define_path("workdir", "Folder.", flag_values=values)
  values(["program", "--workdir=~"])
  assert values.workdir == "/home/me"
  for wrong, why in (("", "it is empty"), ("~nobody_of_this_name/x", "there is no home folder")):
    with pytest.raises(flags.IllegalFlagValueError, match=why):
      values(["program", f"--workdir={wrong}"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "evals").glob("*.py")
                                        if path.stem != "harness"))  # lm_eval's own flags
def test_evaluations_are_imported_side_by_side_and_name_their_flags(name):
  values = flags.FlagValues()
  module = importlib.import_module(f"evals.{name}")
  module.define_flags(values)
  assert len(values)
  run = [node for node in ast.parse(Path(module.__file__).read_text()).body
         if not isinstance(node, (ast.FunctionDef, ast.If))]
  assert not [call for node in run for call in ast.walk(node) if isinstance(call, ast.Call)
              and "define" in ast.unparse(call.func).lower()]
  assert all(values[flag].help for flag in values)


@pytest.mark.parametrize("field, now", [("kind", "config.PRESETS"), ("mixer", "channel"),
                                        ("muon_lr", "muon.lr"), ("dim", "")])
def test_a_field_of_an_earlier_version_is_told_by_its_new_name(field, now):
  hint = versions.hint(f'Key "{field}" does not exist')
  assert now in hint if now else not hint


@pytest.mark.parametrize("environment, told", [
    ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: no such device is here"),
    ({"JAX_PLATFORMS": "cpu", "HOME": ""}, "no checkpoint in")])
def test_a_missing_device_or_home_is_one_line(tmp_path, environment, told):
  done = subprocess.run(
      [sys.executable, "-m", "hope_jax.generate", "--checkpoint=none"], cwd=tmp_path,
      capture_output=True, text=True, env=os.environ | environment | {"PYTHONPATH": str(ROOT)})
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert told in done.stderr.splitlines()[-1]


def test_without_a_home_nothing_is_kept(monkeypatch):
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  kept = []
  monkeypatch.setattr(startup.jax.config, "update", lambda name, value: kept.append((name, value)))
  startup.prepare()
  assert ("jax_compilation_cache_dir", None) in kept


@pytest.mark.parametrize("text, told", [
    (None, "there is no such file; hope_jax brings .*configs/mid.py, configs/online.py"),
    ("x = 1", "AttributeError: module .* has no attribute 'get_config'"),
    ("def get_config(:", r"SyntaxError: invalid syntax \(own.py, line 1\)"),
    ("def get_config():\n  return 3", "get_config.. returned int: return base"),
    ("import nothing_of_this_name", "line 1: ModuleNotFoundError: No module named"),
    ("from hope_jax import config\ndef get_config():\n  c = config.base()\n  c.model.dimm = 3",
     'line 4: AttributeError: .*Did you mean "dim"')])
def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path, text, told):
  if text:
    (tmp_path / "own.py").write_text(text)
  with pytest.raises(ValueError, match=told) as error:
    program.configuration(str(tmp_path / "own.py"))
  assert "\n" not in str(error.value)


def test_a_configuration_is_here_or_in_the_package_and_may_be_given_a_text(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert program.configuration("configs/recall.py").data.task == "recall"
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "recall.py").write_text(
      "from hope_jax import config\ndef get_config(text):\n  c = config.base()\n"
      "  c.data.task = text\n  return c")
  assert program.configuration("configs/recall.py:text").data.task == "text"
