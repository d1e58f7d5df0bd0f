"""Laws of many processes: they train as one, stop at one step, none outlives another's death."""

import contextlib
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from hope_jax import config
from hope_jax.checkpoints import sidecar
from hope_jax.runtime import hosts
from hope_jax.training import loop
from test_endurance import short
from test_train import losses

ROOT = Path(__file__).resolve().parents[1]
started = []  # each in a process group of its own
ENDLESS = [f"--config.train.{name}=100000" for name in ("steps", "eval_every", "save_every")]


def environment(**more):
  kept = {name: value for name, value in os.environ.items()
          if name not in (*hosts.NAMES, "JAX_NUM_CPU_DEVICES")}
  return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                 "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | more


@pytest.fixture(autouse=True)
def nothing_is_left():
  yield
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  started.clear()


@pytest.fixture
def run(tmp_path):
  """(configuration, the flags of a run of it)."""
  c = short()
  c.model.dropout = 0.0
  (tmp_path / "config.json").write_text(config.to_json(c))
  file = tmp_path / "config.py"
  file.write_text("from hope_jax import config\nget_config = lambda: "
                  f"config.load({str(tmp_path / 'config.json')!r})\n")
  return c, [f"--config={file}", f"--workdir={tmp_path / 'run'}"]


def start(command, variables):
  started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True, env=variables,
                                  start_new_session=True))
  return started[-1]


def local(*arguments):
  """launch/local.sh with two processes; its standard error is a pipe."""
  return start(["bash", "launch/local.sh", "2", *arguments], environment())


def two(*command):
  """Two processes that know of each other, and of nothing that watches over them."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  return [start([sys.executable, *command],
                environment(**dict(zip(hosts.NAMES, (address, "2", str(i)))))) for i in range(2)]


def until_step(process):
  """What it said until the first step was done."""
  said = ""
  for line in process.stderr:
    said += line
    if line.startswith("step"):
      return said
  raise AssertionError(said)


def children(process):
  """The processes of local.sh, by number."""
  found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)],
                         capture_output=True, text=True).stdout
  return sorted(int(line.split()[0]) for line in found.splitlines() if "hope_jax.launch" in line)


@pytest.mark.slow
def test_local_trains_as_one_process_and_the_first_writes(run, tmp_path):
  c, flags = run
  loop.train(c, tmp_path / "before")
  loop.train(c, tmp_path / "one", tmp_path / "before")
  both = local(*flags, f"--init_from={tmp_path / 'before'}")
  said = both.stderr.read()
  assert both.wait() == 0, said
  want, got = losses(tmp_path / "one"), losses(tmp_path / "run")
  np.testing.assert_allclose([got[i] for i in range(1, 13)], [want[i] for i in range(1, 13)],
                             rtol=0, atol=1e-5)
  assert said.count("step 12/12") == said.count(
      "step 12 validation") == 1 and "2 cpu device(s)" in said
  assert (tmp_path / "run" / "metrics.jsonl").read_text().count("train/loss") == 12
  assert len(list((tmp_path / "run" / "tb").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_signal_to_one_process_stops_all_at_the_same_step(run, tmp_path, told):
  _, flags = run
  both = two("-m", "hope_jax.launch", *flags, *ENDLESS)
  until_step(both[0])
  both[told].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=60)[1] for process in both]
  assert [process.returncode for process in both] == [143, 143], said
  step, = sidecar.steps(tmp_path / "run" / "checkpoints")
  assert f"stopped by SIGTERM: step {step} is saved" in said[0] and "stopped" not in said[1]
  assert max(losses(tmp_path / "run")) == step
  again = local(*flags, f"--config.train.steps={step + 2}", "--allow_changes")
  said = again.stderr.read()
  assert again.wait() == 0 and f"resuming at step {step} " in said, said
  assert set(losses(tmp_path / "run")) == set(range(1, step + 3))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_process_that_is_killed_ends_the_other(run, killed):
  both = local(*run[1], *ENDLESS)
  until_step(both)
  pids = children(both)
  os.kill(pids[killed], signal.SIGKILL)
  began = time.monotonic()
  said = both.stderr.read()
  assert both.wait() == 137 and time.monotonic() - began < 20
  assert (f"process {killed} of 2 died (status 137, signal KILL): ending the others; the same "
          "command resumes") in said
  assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_error_that_a_restart_does_not_mend_is_said_in_whole_lines(run):
  both = local(*run[1], "--config.mesh.fsdp=3")
  lines = both.stderr.read().splitlines()
  assert both.wait() == 1
  ours = [line for line in lines if re.search(r"process \d of 2", line)]  # jax says things, too
  assert all(re.fullmatch(r"process \d of 2(?!.*process \d of 2).*", line) for line in ours), lines
  assert not any("resumes" in line for line in lines)
  assert any("of 2 ended with status 1, it says why above" in line for line in ours)


FAILING = """
import os
from hope_jax import launch
from hope_jax.training import loop
draw = loop._Run.draw
def failing(self, i, before):
  if i == 7 and os.environ["JAX_PROCESS_ID"] == "1":
    raise {error}
  return draw(self, i, before)
loop._Run.draw = failing
launch.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("error, known",
                         [("OSError(5, 'Input/output error')", True), ("KeyError('a bug')", False)])
def test_an_error_in_one_process_ends_both_and_nobody_waits(run, tmp_path, error, known):
  both = two("-c", FAILING.format(error=error), *run[1])
  said = [process.communicate(timeout=100)[1] for process in both]
  assert all(process.returncode for process in both)
  assert "process 1 of 2: " + ("OSError: [Errno 5]" if known else "KeyError: 'a bug'") in said[1]
  assert ("Traceback" in said[1]) != known
  assert "process 0 of 2: JaxRuntimeError" in said[
      0] and "if another process died, its last line says why" in said[0]
  assert sidecar.steps(tmp_path / "run" / "checkpoints") == [5]


def test_what_the_environment_does_not_say_is_named(monkeypatch):
  for name in hosts.NAMES:
    monkeypatch.delenv(name, raising=False)
  hosts.connect()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
  hosts.connect()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  with pytest.raises(ValueError,
                     match="JAX_NUM_PROCESSES=2, .* without JAX_COORDINATOR_ADDRESS: set all "
                           "three, or start"):
    hosts.connect()
  monkeypatch.delenv("JAX_NUM_PROCESSES")  # else every process would train alone, all in one folder
  with pytest.raises(ValueError,
                     match="JAX_PROCESS_ID=0 without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROC"):
    hosts.connect()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  for name, value, message in (("PROCESS_ID", "2", "JAX_PROCESS_ID=2 of JAX_NUM_PROCESSES=2: they "
                                                   "are numbered from 0 to 1"),
                               ("NUM_PROCESSES", "two", "JAX_NUM_PROCESSES=two is no number")):
    monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(ValueError, match=message):
      hosts.connect()
