"""Is a needle found in a context of exactly L tokens, 2k to 512k, baseline and memorized?

    python evals/niah.py --checkpoint=runs/smoke --output=niah.json
    python evals/niah.py --checkpoint=runs/online --output=niah.json --memorize --lengths=2048,32768
    python evals/niah.py --checkpoint=runs/smoke --output=niah.json --kinds=single_1,literal_free

scoring/needles.py has the kinds and their settings, scoring/retrieval.py what is scored: the answer
that the model writes (exact match) and the choice among distractors. Contexts are read in pieces:
memory does not grow with them, but for attention to everything, which keeps --attention_context.

Beside the baseline (and, with --memorize, what was memorized) stands a control: the context without
what is asked for. The effective length is the longest at which, as at all shorter ones, --threshold
of the answers are found. The picture, length by depth, lies next to the file (hope_jax[plots]). An
interrupted run goes on from the contexts already scored (OUTPUT.partial).
"""

import functools

from absl import flags

from hope_jax.reports import heatmap
from hope_jax.runtime import program
from hope_jax.scoring import needles, recalled

KINDS = [kind for kind in needles.BUILDERS if kind != "passkey"]


def define_flags(values: flags.FlagValues) -> None:
  recalled.define_flags(values, samples=4)
  flags.DEFINE_list("kinds", KINDS, f"Of {', '.join(needles.BUILDERS)}.", flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  make = functools.partial(recalled.of_needles, kinds=f.kinds)
  heatmap.report(recalled.run(argv, f, "evals/niah.py", make), f.output)


if __name__ == "__main__":
  program.start(main, define_flags)
