"""Is a pass key found in a context of exactly L tokens, baseline and memorized?

    python evals/passkey.py --checkpoint=runs/smoke --output=passkey.json
    python evals/passkey.py --checkpoint=runs/online --output=passkey.json --memorize

Five digits among a few sentences that repeat; 64 prompts of each length, spread over the depths.
All else is as in evals/niah.py.
"""

import functools

from absl import flags

from hope_jax.reports import heatmap
from hope_jax.runtime import program
from hope_jax.scoring import recalled


def define_flags(values: flags.FlagValues) -> None:
  recalled.define_flags(values, samples=16, depths=("0", "0.33", "0.67", "1"))


def main(argv, f: flags.FlagValues = flags.FLAGS):
  make = functools.partial(recalled.of_needles, kinds=["passkey"])
  heatmap.report(recalled.run(argv, f, "evals/passkey.py", make), f.output)


if __name__ == "__main__":
  program.start(main, define_flags)
