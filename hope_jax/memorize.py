"""Learns texts at test time, and says what was learned.

    python -m hope_jax.memorize --checkpoint=runs/smoke --text=notes.txt --state=out/
    python -m hope_jax.generate --checkpoint=runs/smoke --state=out/ --prompt="..."

--text may be a folder: its texts are read one after the other, in order. Every text makes a version
of the state, and the next one goes on from it:

    python -m hope_jax.memorize --state=out/ --list
    python -m hope_jax.memorize --state=out/ --drop=notes.txt      # it, and what came after it
"""

import contextlib
import math
from pathlib import Path

from absl import app, flags
import jax
from tqdm import tqdm

from hope_jax.data import files
from hope_jax.data.pieces import StreamDecoder
from hope_jax.model import lm
from hope_jax.reading import conversation, reader, study
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say
from hope_jax.scoring import memorization, results


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Folder of a run.", flag_values=values)
  program.define_path("text", "File to read, or folder of them.", flag_values=values)
  program.define_path("state", "Folder for what was learned, version by version; generate "
                      "--state=... goes on from it, and so does the next text.",
                      flag_values=values)
  program.define_path("output", "All numbers of one text, chunk by chunk, as JSON; report.py draws "
                      "them.", flag_values=values)
  flags.DEFINE_integer("steps", 1, "Times a text is read.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("list", False, "Say which versions the state has.", flag_values=values)
  flags.DEFINE_string("drop", None, "Go back to before this version.", flag_values=values)
  memorization.define_flags(values)


def show(state: str) -> None:
  """The versions, one a line."""
  for each in conversation.kept(state):
    print(f"{each['name']:32} {each.get('tokens', 0):10,} tokens  "
          f"{each.get('bits_per_byte', math.nan):.4f} bits per byte  {each.get('date', '')}")


def start(config, params, state: str | None):
  """The streams to go on from: the newest version's, without context, or fresh ones."""
  if state is None or not conversation.steps(state):
    return lm.init_fast(config, 1)
  like = jax.eval_shape(lambda: lm.init_fast(config, 1))
  fast, _ = conversation.load(state, like, conversation.owner(config, params))
  say(f"{state}: goes on from {conversation.kept(state)[-1]['name']}")
  return lm.forget_context(config, fast)


@contextlib.contextmanager
def saving(f, config, params):
  """save(fast, name, tokens, bits): a version of the state, if there is a folder for it, in which
  no other process saves meanwhile.
  """
  if f.state is None:
    yield lambda *_: None
    return
  own = conversation.owner(config, params) | {"pending": None}
  with conversation.writing(f.state) as write:
    def save(fast, name, tokens, bits):
      write(fast, own | {"tokens": tokens, "bits_per_byte": bits, "date": results.stamp()["date"]},
            name)
    yield save


def by_token(tokenizer, ids: list[int], reports: dict) -> dict:
  """The text in pieces, and the nats of each but the first before, while and after it was read."""
  decoder = StreamDecoder(tokenizer)
  return {"text": [decoder.push(token) for token in ids],
          "nats": {name: report.nats_BxT[report.labels_BxT].astype(float).round(4).tolist()
                   for name, report in reports.items()}}


def learn_one(f, config, params, tokenizer, save) -> None:
  """One text, read before, while and after it is learned."""
  text = files.text(f.text)
  ids = [*tokenizer.begin, *tokenizer.encode(text)]
  if len(ids) < 2 + len(tokenizer.begin):
    raise ValueError(f"{f.text} holds {len(ids) - len(tokenizer.begin)} tokens: there is nothing "
                     "to learn from fewer than 2")
  fast, reports = study.study(config, params, ids, f.steps,
                              fast=start(config, params, f.state))
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
  save(fast, Path(f.text).name, len(ids), losses["read"] * to_bits)
  if f.output is not None:
    results.write(f.output, results.stamp("-m", "hope_jax.memorize"),
                  results.of_model(config, params, tokenizer.digest),
                  {"text": f.text, "tokens": len(ids), "steps": f.steps, "nats_per_token": losses,
                   "bits_per_byte": {name: nats * to_bits for name, nats in losses.items()}},
                  study.describe(config, reports), {"by_token": by_token(tokenizer, ids, reports)})


def learn_folder(f, config, params, tokenizer, save) -> None:
  """Text after text, each from what those before it have taught, without their context."""
  found, fast = files.below(Path(f.text)), start(config, params, f.state)
  with tqdm(total=sum(path.stat().st_size for path in found), unit="B", unit_scale=True) as bar:
    for path in found:
      bar.update(path.stat().st_size)
      try:
        text = files.text(path)
      except ValueError as error:
        say(f"{error}: left out")
        continue
      if "\0" in text:
        say(f"{path}: no text, left out")
        continue
      ids = [*tokenizer.begin, *tokenizer.encode(text)]
      if len(ids) < 2 + len(tokenizer.begin):
        say(f"{path}: fewer than 2 tokens, left out")
        continue
      fast, readings = study.replay(config, params, fast, [ids], f.steps)
      study.check(config, readings)
      bits = float(readings[0].nats_BxT.sum()) / math.log(2) / len(files.encode(text))
      name = str(path.relative_to(f.text))
      bar.write(f"{name:32} {len(ids):10,} tokens  {bits:.4f} bits per byte")
      save(fast, name, len(ids), bits)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: name the file with --text=...")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    if f.list or f.drop is not None:
      if f.state is None:
        raise ValueError("no --state: name the folder whose versions are meant")
      if f.drop is not None:
        say(f"{f.state}: without {', '.join(conversation.drop(f.state, f.drop))}")
      if f.drop is None or conversation.steps(f.state):
        show(f.state)
      return
    if f.checkpoint is None or f.text is None:
      raise ValueError("give the run with --checkpoint and the file or folder with --text")
    config, params, tokenizer = memorization.load(f)
    folder = Path(f.text).is_dir()
    if f.output is not None:
      if folder:
        raise ValueError("--output is of one text: name a file with --text")
      results.ready(f.output)
    with saving(f, config, params) as save:
      (learn_folder if folder else learn_one)(f, config, params, tokenizer, save)
    if f.state is not None:
      say(f"saved in {f.state}: go on with python -m hope_jax.generate --checkpoint={f.checkpoint} "
          f"--state={f.state}")


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
