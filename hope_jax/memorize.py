"""Learns a text at test time, and says what was learned.

    python -m hope_jax.memorize --checkpoint=runs/smoke --text=notes.txt --state=out/
    python -m hope_jax.generate --checkpoint=runs/smoke --state=out/ --prompt="..."
"""

import math

from absl import app, flags

from hope_jax.data import files
from hope_jax.reading import conversation, reader, study
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import memorization, results


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Folder of a run.", flag_values=values, required=True)
  program.define_path("text", "File to read.", flag_values=values, required=True)
  program.define_path("state", "Folder for what was learned; generate --state=... goes on "
                                     "from it.", flag_values=values)
  program.define_path("output", "All numbers, chunk by chunk, as JSON; report.py draws them.",
                      flag_values=values)
  flags.DEFINE_integer("steps", 1, "Times the text is read.", lower_bound=1, flag_values=values)
  memorization.define_flags(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: name the file with --text=...")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    config, params, tokenizer = memorization.load(f)
    if f.state is not None:
      conversation.ready(f.state)
    if f.output is not None:
      results.ready(f.output)
    text = files.text(f.text)
    ids = [*tokenizer.begin, *tokenizer.encode(text)]
    if len(ids) < 3:
      raise ValueError(f"{f.text} holds {len(ids) - 1} tokens: there is nothing to learn from "
                       "fewer than 2")
    fast, reports = study.study(config, params, ids, f.steps)
    report = reports["read"]
    losses = {name: float(each.loss_B[0]) for name, each in reports.items()}
    to_bits = (len(ids) - 1) / math.log(2) / len(files.encode(text))
    say(f"{len(ids):,} tokens read {f.steps} time(s){reader.describe(reader.shares(config))}")
    for name, nats in losses.items():
      print(f"{name:8} {nats:.4f} nats per token, {nats * to_bits:.4f} bits per byte")
    for path, total in report.totals().items():
      print(f"{path:12} {total['updates']:9,.1f} updates a layer, {total['gate_hits']:7,.1f} "
            f"chunks let through of {len(next(iter(report.stats.values()))['updates'])}, "
            f"{total['pending']:,.0f} tokens pending, surprise {total['surprise']:.3g}, ||dW|| "
            f"{total['moved']:.3g}")
    if f.state is not None:
      conversation.save(f.state, fast, conversation.owner(config, params) | {"pending": None})
      say(f"saved in {f.state}: go on with python -m hope_jax.generate --checkpoint={f.checkpoint} "
          f"--state={f.state}")
    if f.output is not None:
      results.write(f.output, results.stamp("-m", "hope_jax.memorize"),
                    results.of_model(config, params, tokenizer.digest),
                    {"text": f.text, "tokens": len(ids), "steps": f.steps, "nats_per_token": losses,
                     "bits_per_byte": {name: nats * to_bits for name, nats in losses.items()}},
                    study.describe(config, reports))


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
