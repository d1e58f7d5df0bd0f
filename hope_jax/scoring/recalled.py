"""What the programs niah, passkey and babi share: their flags, a run from checkpoint to file."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

from absl import app, flags
from tqdm import tqdm

from hope_jax.runtime import program, startup
from hope_jax.scoring import memorization, needles, replies, results, retrieval
from hope_jax.scoring.needles import Case

LENGTHS = ("2048", "4096", "8192")
DEPTHS = ("0", "0.25", "0.5", "0.75", "1")
ROOM = 256  # tokens of a question and its answer, at most


class Plan(NamedTuple):
  """The contexts of an evaluation: `samples` of each kind, length and depth."""
  kinds: Sequence[str]
  depths: Sequence[float | None]
  case: Callable[[str, int, float | None, int], Case]  # of kind, length, depth, index
  chance: float  # of a choice
  facts: dict  # what the file says of them


def define_flags(values: flags.FlagValues, samples: int, depths: Sequence[str] = DEPTHS,
                 haystack: Sequence[str] = ("embedded",)) -> None:
  """All but the kinds, with these defaults."""
  whole, several = (functools.partial(define, flag_values=values)
                    for define in (flags.DEFINE_integer, flags.DEFINE_list))
  for name, about in (("checkpoint", "Folder of a run."),
                      ("output", "All numbers, as JSON; the picture lies next to it.")):
    program.define_path(name, about, flag_values=values, required=True)
  several("lengths", list(LENGTHS), "Tokens of a context, <s> included.")
  several("depths", list(depths), "Where the needle lies: 0 is the start, 1 the end.")
  whole("samples", samples, "Contexts of each kind, length and depth.", lower_bound=1)
  whole("seed", 0, "Of the contexts.", lower_bound=0)
  whole("batch", 8, "Contexts read at a time.", lower_bound=1)
  whole("distractors", 10, "Wrong answers that a choice is among.", lower_bound=1)
  whole("attention_context", None, "Tokens that attention to everything keeps. Default: as "
        "trained.", lower_bound=1)
  several("haystack", list(haystack), "Text around the needle: JSON lines, text files, folders; "
          "embedded: the text that every Python carries.")
  flags.DEFINE_string("field", "text", "Of JSON lines: where the text is.", flag_values=values)
  flags.DEFINE_float("threshold", 0.85, "Share of answers found, from which a length is effective.",
                     lower_bound=0, upper_bound=1, flag_values=values)
  flags.DEFINE_bool("control", True, "Also read the context without what is asked for.",
                    flag_values=values)
  memorization.define_options(values)


def numbers(f: flags.FlagValues) -> tuple[list[int], list[float]]:
  """--lengths and --depths. ValueError for what is none."""
  try:
    lengths, depths = sorted({int(n) for n in f.lengths}), sorted({float(d) for d in f.depths})
  except ValueError as error:
    raise ValueError(f"--lengths and --depths are numbers, with commas between: {error}") from None
  if not lengths or lengths[0] < 1 or not depths or not 0 <= depths[0] <= depths[-1] <= 1:
    raise ValueError("--lengths are tokens, 1 or more, and --depths lie between 0 and 1: name some")
  return lengths, depths


def of_needles(f: flags.FlagValues, tokenizer, kinds: Sequence[str]) -> Plan:
  """Contexts of needles.py."""
  lengths, depths = numbers(f)
  world = needles.make_world(tokenizer, f.haystack, f.field, lengths[-1], f.seed, f.distractors)
  return Plan(kinds, depths, functools.partial(needles.case, world), 1 / (1 + f.distractors),
              {"distractors": f.distractors, "haystack": list(f.haystack),
               "haystack_digest": world.digest})


def evaluate(f: flags.FlagValues,
             make: Callable[[flags.FlagValues, object], Plan]) -> tuple[dict, results.Partial]:
  """(all that the file holds but its date and command, what goes when it is written)."""
  lengths, _ = numbers(f)
  config, params, tokenizer, how = memorization.begin(f)
  if how.on and not how.steps:
    raise ValueError("--memorize_steps=0: the contexts are what is memorized here; read them once")
  trained = config
  if f.attention_context is not None:
    config = config.copy_and_resolve_references().unlock()
    config.attention.context = f.attention_context
  replies.check_room(config, lengths[-1] + ROOM, "attention_context")
  setting = retrieval.Setting(config, params, tokenizer, how, f.control, trained)
  plan = make(f, tokenizer)
  for kind in plan.kinds:
    plan.case(kind, lengths[0], plan.depths[0], 0)  # what does not fit is told at once
  settings = results.of_model(config, params, tokenizer.digest) | how.facts() | {
      "checkpoint": f.checkpoint, "seed": f.seed, "kinds_read": list(plan.kinds),
      "lengths_read": lengths, "depths": list(plan.depths), "samples": f.samples,
      "batch": f.batch, "chance": plan.chance, "ways": list(setting.ways)} | plan.facts
  kept = results.Partial(f.output + ".partial", settings)
  read_all(setting, plan, lengths, f, kept)
  rows = [row for batch in kept.batches for row in batch["rows"]]
  totals = [row["memories"] for row in rows if "memories" in row]
  return settings | retrieval.summary(rows, setting.ways, f.threshold) | {
      "memories": results.memories(totals) if totals else {},
      "speed": retrieval.speed([batch["seconds"] for batch in kept.batches], setting.ways),
      "machine": results.machine(), "rows": rows}, kept


def read_all(setting: retrieval.Setting, plan: Plan, lengths: Sequence[int], f: flags.FlagValues,
             kept: results.Partial) -> None:
  """Scores what is not in `kept` yet; a batch has contexts of one kind and length."""
  size = f.batch if setting.how.reset else 1
  def cells(kind, length):  # numbered through: kinds without a depth have as many contexts
    each = [depth for depth in plan.depths for _ in range(f.samples)]
    return [(kind, length, depth, i) for i, depth in enumerate(each)]
  groups = [cells(kind, length) for length in lengths for kind in plan.kinds]
  batches = [group[i:i + size] for group in groups for i in range(0, len(group), size)]
  fast = None
  with tqdm(total=sum(map(len, batches)), desc="score", unit="context") as bar:
    for number, arguments in enumerate(batches):
      if number >= len(kept.batches) or not setting.how.reset:
        some = [plan.case(*each) for each in arguments]
        # the last of a kind is filled up: one shape compiles once
        some += some[:1] * (size - len(some))
        rows, seconds, fast = retrieval.score(setting, some, fast)
        if number >= len(kept.batches):
          kept.add({"rows": rows[:len(arguments)], "seconds": seconds})
      bar.set_postfix_str(f"{arguments[0][0]}, {arguments[0][1]:,} tokens")
      bar.update(len(arguments))


def run(argv: list[str], f: flags.FlagValues, name: str,
        make: Callable[[flags.FlagValues, object], Plan]) -> dict:
  """The program `name`: from flags to a file; what is in it. make: (f, tokenizer) -> Plan."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--lengths=2048,8192")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output = results.ready(f.output)
    result, partial = evaluate(f, make)
    results.write(output, results.stamp(name), result)
    partial.close()
  return result
