"""What training steps need on absent devices: compiled for a CPU's stand-ins, never run.

    python evals/compiled.py --tables=remat       # a minute or two; all: half an hour on 2 cores
    python evals/compiled.py --tables=meshes,remat,depths,lengths --output=docs/data/compiled.json

Tables: meshes (pilot, mid, target on 1, 2, 8 and 64 devices), remat (policies), depths (time to
compile), lengths (one long sequence on one device). Each program is compiled in a process of its
own, with nothing cached. A CPU computes bf16 in float32, so temporaries should be less on a GPU;
there are no fused attention kernels. The output is written after every program; tables that are not
asked for stay in it as they are.
"""

import importlib
import json
import math
import os
from pathlib import Path
import subprocess
import sys

from absl import app, flags
import jax
from tqdm import tqdm

from hope_jax.model import checks
from hope_jax.reports.tables import markdown
from hope_jax.runtime import program
from hope_jax.scoring import results
from hope_jax.training import collectives, costs

FLAGS = flags.FLAGS
ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
# streams that a device reads at once, in the table of meshes
AT_ONCE = {"pilot": 8, "mid": 2, "target": 1}
MESHES = [(1, 1, 1), (2, 1, 1), (1, 8, 1), (8, 8, 1)]
TRANSFORMER = {"model.pattern": ("attention",), "model.titan": "none", "channel.kind": "swiglu"}
# levels that only the outer optimizer writes: whole sequences
WHOLE = {"channel.in_context": False}
SELFMOD = {"model.pattern": ("selfmod",), "model.titan": "none"}
STORED = {"model.remat": "none", "selfmod.remat_chunks": 0}
LONG = {  # one sequence on one device
    "transformer, full attention": TRANSFORMER,
    "transformer, window 2048": TRANSFORMER | {"attention.window": 2048},
    "selfmod linear, whole": SELFMOD | WHOLE | {"selfmod.memory": "linear"},
    "selfmod linear, whole, no remat": SELFMOD | WHOLE | STORED | {"selfmod.memory": "linear"},
    "selfmod mlp, whole": SELFMOD | WHOLE | {"selfmod.memory": "mlp"},
    "selfmod mlp, whole, no remat": SELFMOD | WHOLE | STORED | {"selfmod.memory": "mlp"},
    "selfmod mlp, by chunks": SELFMOD | {"selfmod.memory": "mlp"},
    "hope_attention, by chunks": {"model.titan": "none"},
    "hope_attention, by chunks, window 2048": {"model.titan": "none", "attention.window": 2048},
    "hope_hybrid, by chunks, window 2048": {"attention.window": 2048},
}
LENGTHS = (2048, 8192, 32_768, 131_072)
SIZES = ("pilot", "mid", "target")


def case(config: str, label: str, mesh=(1, 1, 1), **fields) -> dict:
  return {"config": config, "label": label, "mesh": mesh, "fields": fields}


def cases(table: str) -> list[dict]:
  """The programs of a table. ValueError for a table that does not exist."""
  if table == "meshes":
    return [case(name, name, mesh,
                 **{"data.batch": 64,
                    "optim.accumulate": max(1, 64 // math.prod(mesh) // AT_ONCE[name])})
            for name in SIZES for mesh in MESHES]
  if table == "remat":
    models = {"hope_hybrid, by chunks": {}, "selfmod mlp, whole": SELFMOD | WHOLE,
              "transformer": TRANSFORMER}
    return [case("pilot", label, **fields, **{"model.remat": policy})
            for label, fields in models.items() for policy in checks.CHOICES["model.remat"]]
  if table == "depths":
    return [case("pilot", label, **fields, **{"model.layers": layers, "model.remat": "block"})
            for label, fields in {"hope_hybrid": {}, "hope_selfmod": SELFMOD,
                                  "transformer": TRANSFORMER}.items()
            for layers in (12, 32)]
  if table == "lengths":
    def long(name, label, length):
      return case(
            name, label,
          **({"model.remat": "block"} | LONG[label] | {"data.batch": 1, "data.seq": length}))
    return [long("pilot", label, length) for label in LONG for length in LENGTHS] + [
        long(name, label, length) for name in ("mid", "target")
        for label in ("hope_hybrid, by chunks, window 2048", "hope_attention, by chunks")
        for length in LENGTHS[2:]]
  raise ValueError(f"no table {table}: choose from meshes, remat, depths, lengths")


def configuration(entry: dict):
  """The configuration of a program. ValueError for one that cannot run."""
  c = importlib.import_module(f"configs.{entry['config']}").get_config()
  c.mesh.update(dict(zip(("data", "fsdp", "tensor"), entry["mesh"])))
  for field, value in entry["fields"].items():
    section, name = field.split(".")
    c[section][name] = value
  checks.validate(c, math.prod(entry["mesh"]))
  return c


def measure(entry: dict) -> dict:
  """Compiles the training step: bytes, FLOPs and seconds, of one device and one step."""
  c = configuration(entry)
  program = costs.train_program(c)
  compiled, seconds = costs.compile_program(*program)
  sent = collectives.count(compiled.as_text())
  return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(program[1].params)),
          "batch": c.data.batch, "seq": c.data.seq,
          "accumulate": c.optim.accumulate, "memory": costs.memory(compiled),
          "flops": sent.pop("flops"), "sent": sent, "seconds": seconds}


def apart(entry: dict, minutes: float) -> dict:
  """`measure` in a process of its own, with as many devices as the mesh has."""
  command = [sys.executable, __file__, f"--case={json.dumps(entry)}"]
  devices = str(math.prod(entry["mesh"]))
  env = os.environ | {"JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu",
                      "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(ROOT)}
  try:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=60 * minutes)
  except subprocess.TimeoutExpired:
    return entry | {"left_out": f"not compiled in {minutes:g} minutes"}
  if done.returncode:
    return entry | {"left_out": done.stderr.strip().splitlines()[-1]}
  return entry | json.loads(done.stdout.splitlines()[-1])


def gib(size: float) -> str:
  return f"{size / GIB:,.2f}" if size < 10 * GIB else f"{size / GIB:,.1f}"


def row(table: str, r: dict) -> list:
  """A line of a table."""
  name = {"meshes": [r["label"], " x ".join(map(str, r["mesh"]))],
          "remat": [r["label"], r["fields"].get("model.remat")],
          "depths": [r["label"], r["fields"].get("model.layers")],
          "lengths": [f"{r['config']}: {r['label']}",
                      f"{r['fields'].get('data.seq'):,}" if table == "lengths" else ""]}[table]
  if "left_out" in r:
    return [*name, r["left_out"], *[""] * 6]
  m, streams = r["memory"], r["batch"] // r["accumulate"] // math.prod(r["mesh"][:2])
  return [*name, f"{r['parameters'] / 1e6:,.0f}", streams, gib(m["arguments"]), gib(m["peak"]),
          gib(sum(r["sent"].values())),
          f"{r['flops'] / 1e12:,.2f}", f"{sum(r['seconds'].values()):.0f}"]


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list("tables", ["remat"], "Of meshes, remat, depths, lengths.", flag_values=values)
  flags.DEFINE_float("minutes", 8.0, "A program that takes longer to compile is left out.",
                     flag_values=values)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)
  flags.DEFINE_string("case", None, "One program, as JSON; prints its numbers. The other "
                      "flags are for a list of them.", flag_values=values)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--tables=meshes,remat")
  if FLAGS.case:
    print(json.dumps(measure(json.loads(FLAGS.case))))
    return
  jobs = {table: cases(table) for table in FLAGS.tables}
  path = results.ready(FLAGS.output) if FLAGS.output else None
  report = json.loads(path.read_text()) if path and path.exists() else {}
  with tqdm(total=sum(map(len, jobs.values())), unit="program") as bar:
    for table, entries in jobs.items():
      rows = []
      report[table] = results.stamp("evals/compiled.py") | {"jax": jax.__version__, "rows": rows}
      for entry in entries:
        bar.set_postfix_str(f"{entry['config']}, {entry['label']}, {entry['mesh']}")
        rows.append(apart(entry, FLAGS.minutes))
        if path:
          results.write(path, report)
        bar.update()
  for table in jobs:
    print(markdown([table, {"meshes": "data x fsdp x tensor", "remat": "policy", "depths": "layers",
                            "lengths": "tokens"}[table],
                    "parameters, M", "streams at once", "arguments, GiB", "peak, GiB", "sent, GiB",
                    "TFLOP", "compile s"],
                   [row(table, r) for r in report[table]["rows"]]))


if __name__ == "__main__":
  program.start(main, define_flags)
