"""Trains a model: the main program.

    python -m hope_jax.launch --config=configs/smoke.py --workdir=runs/smoke --config.seed=1

Run again, it resumes; with fields changed that make it another run, under --allow_changes alone
(changes.py). --init_from=<another run's workdir> starts at that run's parameters: those of
the same model, or with the levels of this configuration stacked on them (stack.py). --dry_run
prints what the model costs, and trains nothing. One of many processes where the environment says so
(hosts.py).
"""

import signal
import sys

from absl import app, flags

from hope_jax.model import checks
from hope_jax.runtime import hosts, program, startup
from hope_jax.training import costs, loop

CONFIG = program.define_config("Configuration file; --config.any.field=value changes one field.")
WORKDIR = program.define_path("workdir", "Folder of the run.")
INIT_FROM = program.define_path("init_from", "Folder of a run: its parameters are where a "
                                "new run starts; the same model's, or a transformer's or "
                                "hope_attention's with the levels of this configuration.")
ALLOW_CHANGES = flags.DEFINE_bool("allow_changes", False, "Go on from a checkpoint although fields "
                                                          "were changed that make it another run.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print parameters, fast state, FLOPs and memory; "
                                              "build and train nothing.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: fields are set as "
                         "--config.section.field=value")
  try:
    checks.validate(CONFIG.value)
    if not DRY_RUN.value:
      hosts.connect()
    startup.prepare(CONFIG.value.data.batch // CONFIG.value.optim.accumulate, **CONFIG.value.mesh)
    if DRY_RUN.value:
      print(costs.dry_run(CONFIG.value))
    elif WORKDIR.value is None:
      raise ValueError("no --workdir: name the folder of the run, e.g. --workdir=runs/smoke")
    else:
      loop.train(CONFIG.value, WORKDIR.value, INIT_FROM.value, ALLOW_CHANGES.value)
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    hosts.fail(error)
  except KeyboardInterrupt:  # before the first step, or a second one: signals.py
    sys.exit(128 + signal.SIGINT)


def run():
  """Entry point of the console script."""
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=program.parse_flags)


if __name__ == "__main__":
  run()
