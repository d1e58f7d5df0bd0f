"""What a model makes of validation windows: loss, bits per byte, accuracy, beside a bigram."""

import itertools
import math
from collections.abc import Callable

import jax
import numpy as np

from hope_jax.data import loader
from hope_jax.model import mixers, plan
from hope_jax.reading import reader
from hope_jax.runtime.startup import say
from hope_jax.scoring.bigram import Bigram

BIGRAM = ("bigram_bpb", "bigram_tokens")  # what a result says of the baseline
BIGRAM_TOKENS = 20_000_000  # that the baseline counts: under a minute, however long the run


def evaluate(config, number: int, step: Callable, place: Callable, token_bytes=None,
             model: Bigram | None = None, stopped: Callable = lambda: False) -> dict | None:
  """The scores over train.eval_batches batches; None if `stopped` before they are all read.

  "strength" says how strongly the teach signal wrote each level, 1 being its full strength.

  Args:
    number: of the training's step.
    step: placed batch -> per-row sums and statistics (step.make_eval_step, given the parameters).
    token_bytes: (V,) bytes of text in each token, where there is a tokenizer.
    model: of the training tokens; is scored beside.
  """
  total, domains, moved = dict.fromkeys(("nats", "labels", "correct", "bytes", "bigram"),
                                        0.0), {}, []
  strength = reader.shares(config, number)
  for names, batch in loader.eval_batches(config, config.train.eval_batches):
    if stopped():
      return None
    out = jax.device_get(step(place(batch)))
    moved.append({name: float(np.nanmean(v))  # over the layers that have it
                  for name, v in out["memory"].items()
                  if name.startswith("moved") and writes(config, name)
                  and strength.get(name.partition("/")[2], 1)})
    for row, name in enumerate(names):
      if not name:
        continue
      labels = batch["labels"][row]
      values = {key: float(out[key][row]) for key in ("nats", "labels", "correct")}
      values["bytes"] = count_bytes(token_bytes, labels)
      values["bigram"] = model.nats(batch["tokens"][row], labels).sum() if model else 0.0
      for sums in (total, domains.setdefault(name, dict.fromkeys(total, 0.0))):
        for key in total:
          sums[key] += values[key]
  if not total["labels"]:
    raise ValueError("the validation windows hold no token to predict: their documents have one "
                     "token each; give longer ones, or raise data.val_fraction")
  check_updates(moved)
  result = {"loss": total["nats"] / total["labels"], "accuracy": total["correct"] / total["labels"],
            "labels": int(total["labels"])} | ({"strength": strength} if strength else {})
  if token_bytes is not None:
    def bits(sums, key="nats"):
      return sums[key] / math.log(2) / sums["bytes"]
    result |= {"bpb": bits(total), "domain": {name: bits(sums) for name, sums in domains.items()}}
    if model:
      result |= dict(zip(BIGRAM, (float(bits(total, "bigram")), model.tokens)))
  return result


def tell(step: int, result: dict) -> None:
  """One line of it."""
  text = f"step {step} validation: loss {result['loss']:.4f}, accuracy {result['accuracy']:.4f}"
  if "bpb" in result:
    text += f", {result['bpb']:.4f} bits per byte"
  if "bigram_bpb" in result:
    text += (f" (interpolated bigram on {result['bigram_tokens']:,} of the training tokens: "
             f"{result['bigram_bpb']:.4f})")
  say(text + reader.describe(result.get("strength", {})))


def count_bytes(token_bytes, labels) -> int:
  """Bytes of text that the labels stand for; 0 without a tokenizer."""
  return 0 if token_bytes is None else int(token_bytes[labels[labels >= 0]].sum())


def bigram(config, count: int, stopped: Callable = lambda: False) -> Bigram:
  """The bigram model of the first `count` steps' batches, of BIGRAM_TOKENS at most, or of those
  before `stopped`.
  """
  model, batches = Bigram(config.model.vocab), iter(loader.train_batches(config))
  count = min(count, -(-BIGRAM_TOKENS // (config.data.batch * config.data.seq)))
  for batch in itertools.takewhile(lambda _: not stopped(), itertools.islice(batches, count)):
    model.add(batch["tokens"], batch["labels"])
  return model


def check_updates(moved: list[dict]) -> None:
  """RuntimeError if a memory moved in no batch of an evaluation; `moved`: {name: distance} each."""
  for name in moved[0]:
    if not any(m[name] > 0 for m in moved):
      raise RuntimeError(f"memory {name.split('/')[-1]} made no update in the whole evaluation: "
                         "look at teach.threshold, teach.scale and the level's period and lr "
                         "(selfmod: eta_init, alpha_init, bound), or leave the memory out "
                         "(teach.paths)")


def writes(config, name: str) -> bool:
  """Whether the memory of a statistic ("moved/titan", "moved/k") may be written."""
  path, own = name.partition("/")[2], plan.of(config)
  return (path in own.enabled if path in own.paths
          else any(mixer in own.enabled for mixer in mixers.of(config)))
