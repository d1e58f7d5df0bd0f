"""Tokens a second of an imported model, reading and decoding, beside transformers if it is there.

    python -m hope_jax.export --checkpoint=runs/smollm --output=smollm/
    python evals/imported.py --checkpoint=runs/smollm --folder=smollm/ --text=README.md

Both take the same ids with the same weights in float32 on the same cores, in turns; the table has
the median of --rounds. Reading is one call of --tokens tokens with all their logits; decoding goes
on from there, greedily.
"""

import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hope_jax.data import files
from hope_jax.model import lm
from hope_jax.reading import opening
from hope_jax.reading.stream import Stream
from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import results


def ours(config, params, ids: list[int], written: int):
  """() -> (seconds to read, seconds to write so many, the ids written)."""
  call = jax.jit(lambda params, tokens: lm.build(config).apply({"params": params}, tokens)[0])
  tokens = jnp.asarray([ids])

  def once():
    began = time.perf_counter()
    call(params, tokens).block_until_ready()
    read, stream = time.perf_counter() - began, Stream(config, params)
    out = stream.generate(ids, written + 1)
    first = next(out)
    began = time.perf_counter()
    rest = list(out)
    return read, time.perf_counter() - began, [first, *rest]
  return once


def theirs(folder: str, ids: list[int], written: int):
  """The same of transformers. ImportError without it."""
  import torch
  import transformers
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  tokens = torch.tensor([ids])

  @torch.inference_mode()
  def once():
    began = time.perf_counter()
    model(tokens, use_cache=False)
    read = time.perf_counter() - began
    out = model(tokens, use_cache=True, logits_to_keep=1)
    token, past = out.logits[:, -1:].argmax(-1), out.past_key_values
    found, began = [token.item()], time.perf_counter()
    for _ in range(written):
      out = model(token, past_key_values=past, use_cache=True)
      token = out.logits[:, -1:].argmax(-1)
      found.append(token.item())
    return read, time.perf_counter() - began, found
  return once


def define_flags(values: flags.FlagValues) -> None:
  program.define_path("checkpoint", "Folder of a run.", flag_values=values, required=True)
  program.define_path("folder", "The same model for transformers.", flag_values=values)
  program.define_path("text", "Text to read.", flag_values=values, required=True)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)
  flags.DEFINE_integer("tokens", 512, "Read at once.", lower_bound=2, flag_values=values)
  flags.DEFINE_integer("written", 32, "Decoded.", lower_bound=2, flag_values=values)
  flags.DEFINE_integer("rounds", 3, "After one that is not timed.", lower_bound=1,
                       flag_values=values)


def main(_, f: flags.FlagValues = flags.FLAGS):
  with program.one_line(ValueError, OSError, ImportError):
    startup.prepare()
    config, params, tokenizer = opening.load(f.checkpoint)
    ids = tokenizer.encode(files.text(f.text))[:f.tokens]
    if len(ids) < f.tokens:
      raise ValueError(f"{f.text} has {len(ids)} tokens: give more text, or --tokens={len(ids)}")
    runs = {"hope_jax": ours(config, params, ids, f.written)}
    if f.folder is not None:
      runs["transformers"] = theirs(f.folder, ids, f.written)
    times = {name: [] for name in runs}
    for _ in tqdm(range(f.rounds + 1), unit="round"):
      for name, once in runs.items():
        times[name].append(once())
    written = [rounds[0][2] for rounds in times.values()]
    rates = {name: {"read": [f.tokens / read for read, _, _ in rounds[1:]],
                    "decode": [f.written / seconds for _, seconds, _ in rounds[1:]]}
             for name, rounds in times.items()}
    if f.output is not None:
      results.write(f.output, results.stamp("evals/imported.py"), results.machine(np),
                    {"tokens": f.tokens, "written": f.written, "tokens_per_s": rates})
  print(tables.markdown(["tokens/s", "reading", "decoding"], [
      [name, *(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
               for values in rate.values())] for name, rate in rates.items()]))
  if len(written) > 1:
    print(f"the same {f.written + 1} tokens are written: {written[0] == written[1]}")


if __name__ == "__main__":
  program.start(main, define_flags)
