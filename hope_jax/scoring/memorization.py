"""The options of memorization, the same in every program that reads with memories on.

    define_flags(values); config, params, tokenizer = load(f)          # for memory off against on
    define_options(values); config, params, tokenizer, how = begin(f)  # --memorize and the like

With --memorize, a program scores twice: from streams that know nothing (the baseline), and from
`start`, perhaps a saved state, after `learn` has memorized texts; their difference is paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import config as configs
from hope_jax.model import attention, checks, lm, mixers, plan, state
from hope_jax.model.state import FastState
from hope_jax.reading import conversation, opening, study
from hope_jax.runtime import program

STREAMS, BYTES = 32, 2**30
CONTROLS = {  # fields of config.control, as configs/controls.py sets them for training
    "reset": {"reset": True}, "reversed": {"sign": -1}, "keys": {"keys_as_queries": True},
    "shuffled": {"shuffled_teach": True}}


class Options(NamedTuple):
  """What --memorize and the options beside it say."""
  on: bool
  steps: int = 1  # times a text is read
  reset: bool = True  # every sample starts afresh; otherwise from what those before it taught
  leak: bool = False  # the correct answer is memorized, too
  state: str | None = None  # folder of a saved state to start from
  control: str | None = None

  def facts(self) -> dict:
    """What a file of results says of it."""
    return {"leaks_the_answer": self.on and self.leak,
            "memorize": self._asdict() if self.on else None}


def define_flags(values: flags.FlagValues) -> None:
  """What `load` and `override` read."""
  _define_writes(values, "", "threshold")


def define_options(values: flags.FlagValues) -> None:
  """What `begin` reads: --memorize, and --memorize_... of how."""
  yes, whole = flags.DEFINE_bool, flags.DEFINE_integer
  yes("memorize", False, "Beside the baseline, score with what was memorized, and the paired "
                         "difference.", flag_values=values)
  whole("memorize_steps", 1, "Times a text is read; 0: only what --memorize_state knows.",
        lower_bound=0, flag_values=values)
  yes("memorize_no_reset", False, "A sample starts from what those before it have taught.",
      flag_values=values)
  yes("memorize_use_correct_answer", False, "Memorize the correct answer, too: an upper bound that "
                                            "LEAKS THE ANSWER.", flag_values=values)
  program.define_path("memorize_state", "Folder of a state that memorize.py has saved, to start "
                      "from.", flag_values=values)
  flags.DEFINE_enum("memorize_control", None, sorted(CONTROLS), "What a gain is held against: "
                    "memories that start afresh at every chunk, writes of the other sign, keys as "
                    "queries, another token's teach signal.", flag_values=values)
  _define_writes(values, "memorize_", "memorize_surprise_threshold")


def _define_writes(values: flags.FlagValues, prefix: str, threshold: str) -> None:
  flags.DEFINE_list(f"{prefix}paths", None, "Memories to write: titan, cms_<level>, selfmod. "
                                            "Default: as trained.", flag_values=values)
  flags.DEFINE_list(f"{prefix}layers", None, "Layers to write in. Default: as trained.",
                    flag_values=values)
  flags.DEFINE_float(threshold, None, "Surprise from which a chunk is written. Default: as "
                                      "trained.", flag_values=values)
  flags.DEFINE_float(f"{prefix}scale", None, "Of the teach signal, whatever its schedule. Default: "
                     "as trained at the checkpoint's step.", flag_values=values)
  flags.DEFINE_string(f"{prefix}at_evaluation", None, "Strength of the writes. full: after "
                      "warm-ups, before decay; step:n: as at this step. Default: as at the "
                      "checkpoint's.", flag_values=values)


def override(config, f: flags.FlagValues) -> None:
  """Sets the fields of config.teach for which a flag of `define_flags` was given."""
  _override(config, f, "", f.threshold)


def _override(config, f: flags.FlagValues, prefix: str, threshold: float | None) -> None:
  paths, layers, scale, at_evaluation = (f[prefix + name].value for name in
                                         ("paths", "layers", "scale", "at_evaluation"))
  if unknown := [layer for layer in layers or () if not layer.isdecimal()]:
    raise ValueError(f"--{prefix}layers={unknown[0]}: layers are numbers from 0 to "
                     f"{config.model.layers - 1}")
  given = {"paths": paths and tuple(paths), "layers": layers and tuple(map(int, layers)),
           "threshold": threshold, "scale": scale,
           "at_evaluation": at_evaluation or ("full" if scale is not None else None)}
  with config.unlocked():
    config.teach.update({name: value for name, value in given.items() if value is not None})


def load(f: flags.FlagValues):
  """(config, params, tokenizer) of --checkpoint, with what `define_flags` says of writing.

  Raises ValueError for a model that writes nothing while it reads.
  """
  config, params, tokenizer = opening.load(f.checkpoint)
  _check_writes(config, f.checkpoint)
  override(config, f)
  checks.validate(config)
  study.check_strength(config)
  return config, params, tokenizer


def begin(f: flags.FlagValues):
  """(config, params, tokenizer, Options) of --checkpoint, with what `define_options` says.

  Raises ValueError for options without --memorize, for a model that writes nothing while it reads,
  and where nothing would be memorized.
  """
  config, params, tokenizer = opening.load(f.checkpoint)
  if not f.memorize:
    if idle := [name for name in f
                if name.startswith("memorize_") and not f[name].using_default_value]:
      raise ValueError(f"--{idle[0]} says how something is memorized: add --memorize")
    return config, params, tokenizer, Options(False)
  how = Options(True, f.memorize_steps, not f.memorize_no_reset, f.memorize_use_correct_answer,
                f.memorize_state, f.memorize_control)
  _check_writes(config, f.checkpoint)
  _override(config, f, "memorize_", f.memorize_surprise_threshold)
  if how.control:
    with config.unlocked():
      config.control.update(CONTROLS[how.control])
  checks.validate(config)
  study.check_strength(config)
  if not plan.of(config).enabled:
    raise ValueError("nothing is memorized: correct --memorize_paths (known: "
                     f"{', '.join(plan.of(config).paths)}) and --memorize_layers")
  if not how.steps and not how.state:
    raise ValueError("--memorize_steps=0 memorizes nothing: name what is known already with "
                     "--memorize_state, or read a text at least once")
  return config, params, tokenizer, how


def _check_writes(config, checkpoint: str) -> None:
  if not plan.of(config).paths:
    raise ValueError(f"{checkpoint} is {configs.describe(config)}, which writes nothing while it "
                     "reads: train one with channel.in_context=True, selfmod in model.pattern, or "
                     "a model.titan")


def fitted(config, fast: FastState) -> FastState:
  """The streams with what they learned, without context, and with this configuration's room for
  it (attention.with_room).
  """
  tokens = lm.forget_context(config, fast).layers.tokens
  if "attention" in tokens:
    tokens["attention"] = attention.empty_like(tokens["attention"], attention.context(config))
  return fast.replace(layers=fast.layers.replace(tokens=tokens))


def fitting(config) -> int:
  """Streams to read at a time: STREAMS, or fewer where their memories would take more than BYTES.
  """
  small = attention.with_room(config, 1)
  each = state.fast_bytes(jax.eval_shape(lambda: lm.init_fast(small, 1)))
  return max(1, min(STREAMS, BYTES // each))


def start(config, params, how: Options, streams: int, saved=None) -> FastState:
  """What so many samples memorize from: fresh, or each a copy of the state that was saved.

  saved: the configuration it was saved with, where `config` is one with less room for context.
  Raises FileNotFoundError or ValueError as `conversation.load`, RuntimeError for a state of levels
  of which none was ever written.
  """
  if not how.state:
    return lm.init_fast(config, streams)
  like = jax.eval_shape(lambda: lm.init_fast(saved or config, 1))
  fast, _ = conversation.load(how.state, like, conversation.owner(config, params))
  levels = (fast.layers.levels or {}).values()
  if levels and not any(np.any(own.updates_B) for own in levels):
    raise RuntimeError(f"{how.state}: no memory was written in it; memorize a text first")
  return state.select(fitted(config, fast), jnp.zeros(streams, jnp.int32))


def learn(config, params, fast: FastState, texts: Sequence[Sequence[int]],
          how: Options) -> tuple[FastState, list[dict]]:
  """Reads one text (token ids) a stream, how.steps times, through the writes.

  `fast` is donated. Returns the streams with what they learned and without the context that
  attention kept, and of each what its memories did (`study.Report.totals`; results.memories takes
  all of them and fails for one that did nothing). RuntimeError if self-modifying memories did not
  move.
  """
  if not how.steps:
    return lm.forget_context(config, fast), [{} for _ in texts]
  before_B = np.asarray(fast.count_B)
  fast, readings = study.replay(config, params, fast, texts, how.steps)
  enabled, last = plan.of(config).enabled, readings[-1].stats
  for mixer in [name for name in mixers.of(config) if name in enabled]:
    study.check_moved(last[mixer])
  return lm.forget_context(config, fast), [
      study.mean_totals([
          report.stream(config, b, reach(config, before_B[b] + i * len(text), len(text))
                        ).totals(enabled) for i, report in enumerate(readings)])
      for b, text in enumerate(texts)]


def reach(config, before: int, tokens: int) -> int:
  """Columns of a `study.Report` that a text takes: a stream that has read goes on in a chunk.

  After 10 tokens in chunks of 8, a text of 7 takes 9 columns: 2 that are another's, then its own.
  """
  return int(before) % study.size(config) + tokens
