"""A checkpoint as a model of EleutherAI's harness, `lm_eval`, under the name hope_jax (extra
harness; torch is not needed).

    from hope_jax.scoring import harness                    # registers the name
    lm_eval.simple_evaluate("hope_jax", {"checkpoint": "runs/smollm"}, tasks=["piqa"])

model_args: checkpoint; batch_size; the options of memorization without their dashes, such as
memorize=True,memorize_steps=2: each context is then memorized before its continuations are scored,
or before an answer is written. evals/harness.py is the program.
"""

from collections.abc import Sequence

from absl import flags
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from hope_jax.model import plan
from hope_jax.reading import study
from hope_jax.reading.stream import Stream
from hope_jax.scoring import memorization
from hope_jax.scoring.answers import Asked, KINDS
from hope_jax.scoring.zeroshot import Question

TOKENS = 256  # written at most, where a task does not say


@register_model("hope_jax")
class HopeJax(LM):
  """Requests are answered from a fresh state, or from what their own context taught."""

  def __init__(self, checkpoint: str, batch_size: int | str | None = None, **options):
    """ValueError for an option that is none of memorization, and as memorization.begin."""
    super().__init__()
    options = {name: value for name, value in options.items()
               if name not in ("device", "max_batch_size")}  # the harness gives them to every model
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", checkpoint, "", flag_values=values)
    memorization.define_options(values)
    if unknown := [name for name in options if name not in values]:
      raise ValueError(f"model_args: {unknown[0]} is none of "
                       f"{', '.join(name for name in values if name.startswith('mem'))}")
    values(["", *(f"--{name}={value}" for name, value in options.items())])
    if values.memorize_use_correct_answer:
      raise ValueError("memorize_use_correct_answer: the harness does not say which is correct")
    self.config, self.params, self.tokenizer, self.how = memorization.begin(values)
    batch = int(batch_size) if str(batch_size or "").isdecimal() else None
    self.did = []  # by the memories, in each context
    self._asked = Asked(self.config, self.params, self.tokenizer, self.how, batch)

  def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(natural logarithm, greedy) of each (context, continuation)."""
    places = {}
    for number, (context, text) in enumerate(request.args for request in requests):
      places.setdefault(context, []).append((number, text))
    questions = [_question(context, [text for _, text in own]) for context, own in places.items()]
    numbers = [[number for number, _ in own] for own in places.values()]
    out, kind = [None] * len(requests), KINDS[self.how.on]
    with tqdm(total=len(requests), desc="score", disable=disable_tqdm) as bar:
      for batch in self._asked.batches(questions):
        some = [questions[i] for i in batch]
        scores, did = self._asked.score(kind, some, self._asked.encoded(some))
        self.did += [own for own in did if own]
        for i, own in zip(batch, scores):
          for number, score in zip(numbers[i], own):
            out[number] = (score.log_likelihood, score.greedy)
          bar.update(len(own))
    return out

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """Of whole texts, each streamed with its state; written while it is read if memorizing.

    ValueError for texts that are to be read more than once, or one from the other's state.
    """
    if self.how.on and (self.how.steps != 1 or not self.how.reset):
      raise ValueError("tasks of whole texts are read once, each from a fresh state: leave out "
                       "memorize_steps and memorize_no_reset")
    out = []
    for text, in tqdm([request.args for request in requests], disable=disable_tqdm):
      ids = [*(self.tokenizer.begin or [self.tokenizer.eos]), *self.tokenizer.encode(text)]
      fast = memorization.start(self.config, self.params, self.how, 1)
      report = study.memorize(self.config, self.params, fast, [ids], write=self.how.on)[1]
      if self.how.on:
        self.did.append(report.totals(plan.of(self.config).enabled))
      out.append(-float(report.nats_BxT[report.labels_BxT].sum(dtype="float64")))
    return out

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """What the model writes after each context, before any of its ends ("until")."""
    return [self._write(context, **how) for context, how in tqdm(
        [request.args for request in requests], disable=disable_tqdm)]

  def _write(self, context: str, until: Sequence[str] | str = (), max_gen_toks: int = TOKENS,
             do_sample: bool = False, temperature: float = 0.0, top_p: float = 1.0, **_) -> str:
    ends = [until] if isinstance(until, str) else list(until)
    stream = Stream(self.config, self.params, temperature=temperature if do_sample else 0.0,
                    top_p=top_p)
    if self.how.on:
      fast, did = self._asked.learn([_question(context, [""])], self.config)
      self.did += [own for own in did if own]
      stream.start(fast)
    ids, text = [*self.tokenizer.begin, *self.tokenizer.encode(context)], ""
    written = []
    for token in stream.generate(ids or [self.tokenizer.eos], max_gen_toks, self.tokenizer.stops):
      written.append(token)
      text = self.tokenizer.decode(written, "replace")
      if found := [text.index(end) for end in ends if end and end in text]:
        return text[:min(found)]
    return text


def _question(context: str, continuations: list[str]) -> Question:
  """What is memorized is the context; which continuation is right is not known here."""
  return Question((context,), tuple(continuations), 0, tuple(map(len, continuations)), context,
                  context)
