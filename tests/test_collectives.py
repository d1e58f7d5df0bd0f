"""What is read from a compiled program equals hand arithmetic, and the rings of a real one."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from hope_jax.training import collectives

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[4,5]) -> f32[4,7] {
  %p = f32[4,5]{1,0} parameter(0)
  %w = f32[5,7]{1,0} constant({...})
  ROOT %dot.1 = f32[4,7]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[4,5])) -> (s32[], f32[4,5]) {
  %arg = (s32[], f32[4,5]{1,0}) parameter(0)
  %part = f32[4,5]{1,0} get-tuple-element(%arg), index=1
  %f = f32[4,7]{1,0} fusion(%part), kind=kOutput, calls=%inner
  %gather = bf16[16,5]{1,0} all-gather(%half), channel_id=1, GROUPS, dimensions={0}
  %half = bf16[4,5]{1,0} convert(%part)
  %m = (f32[4,7]{1,0}, /*index=1*/s32[3]{0}) all-reduce(%f, /*index=1*/%t), GROUPS, to_apply=%add
  %t = s32[3]{0} constant({1, 2, 3})
  ROOT %out = (s32[], f32[4,5]{1,0}) tuple(%part)
}

%rare (p.1: f32[4,5]) -> f32[1,5] {
  %p.1 = f32[4,5]{1,0} parameter(0)
  ROOT %scatter = f32[1,5]{1,0} reduce-scatter(%p.1), GROUPS, dimensions={0}, to_apply=%add
}

%never (p.2: f32[4,5]) -> f32[1,5] {
  ROOT %p.2 = f32[4,5]{1,0} parameter(0)
}

%condition (c: (s32[], f32[4,5])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[4,5]) -> f32[4,5] {
  %a = f32[4,5]{1,0} parameter(0)
  %start = (s32[], f32[4,5]{1,0}) tuple(%a)
  %loop = (s32[], f32[4,5]{1,0}) while(%start), condition=%condition, body=%body, TRIPS
  %branch = f32[1,5]{1,0} conditional(%which, %a, %a), branch_computations={%rare, %never}
  %begin = (f32[4,5]{1,0}, f32[4,5]{1,0}, u32[], u32[]) collective-permute-start(%a)
  %end = f32[4,5]{1,0} collective-permute-done(%begin)
  ROOT %spread = f32[4,5]{1,0} all-to-all(%end), channel_id=5, replica_groups={}, dimensions={0}
}
"""
TRIPS = 'backend_config={"known_trip_count":{"n":"6"}}'


@pytest.mark.parametrize("groups", [
    "replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=[2,4]<=[8]",
    "replica_groups=[2,4]<=[4,2]T(1,0)",
    "replica_groups=mesh['a'=2,'b'=4] {'b'}",
    "replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=([2,4]T(1,0)) {'a','c'}",
    "replica_groups=mesh['a'=8] {'a':(2)4}"])
def test_hand_arithmetic(groups):
  got = collectives.count(PROGRAM.replace("GROUPS", groups).replace("TRIPS", TRIPS))
  assert got == {"all-gather": 6 * 3 * 4 * 5 * 2, "all-reduce": 6 * 2 * 3 / 4 * (4 * 7 * 4 + 3 * 4),
                 "reduce-scatter": 3 / 4 * 80,
                 "all-to-all": 7 / 8 * 80, "collective-permute": 80, "flops": 6 * 2 * 4 * 5 * 7}


def test_a_loop_of_unknown_length_is_an_error():
  with pytest.raises(ValueError, match="does not say how often it runs"):
    collectives.count(PROGRAM.replace("GROUPS", "replica_groups=[2,4]<=[8]").replace(", TRIPS", ""))


@pytest.mark.slow
def test_dry_run_for_devices_that_are_not_there():
  """64 devices on this host. Pure data: one all-reduce of all gradients."""
  def dry_run(*mesh):
    command = [sys.executable, "-m", "hope_jax.launch", "--config=configs/smoke.py", "--dry_run",
               "--config.model.pattern=('attention',)",
               "--config.channel.kind=swiglu", "--config.model.vocab=512", "--config.data.batch=64",
               "--config.optim.name=adamw", *mesh]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"})
    assert done.returncode == 0, done.stderr
    return {line[:28].strip(): line[28:].split() for line in done.stdout.splitlines()}
  data, cut = (dry_run("--config.mesh.data=64"),
               dry_run("--config.mesh.data=4", "--config.mesh.fsdp=8", "--config.mesh.tensor=2"))
  def mib(row):
    return float(row[0]) * {"KiB": 2 ** -10, "MiB": 1}[row[1]]
  count = int(data["total"][0].replace(",", ""))
  assert mib(data["sent by all-reduce"]) == pytest.approx(2 * 63 / 64 * count * 4 / 2**20, rel=0.01)
  assert "sent by all-gather" not in data and mib(cut["sent by all-gather"]) > 0
  assert mib(cut["arguments"]) < mib(data["arguments"]) / 12
