"""Questions with choices, answered by a model, with and without memorization.

    asked = Asked(config, params, tokenizer, how)
    for batch in asked.batches(questions): rows = asked.answer([questions[i] for i in batch])
    summary(rows, ("acc_norm", "acc"), seed=0)

The choice with the highest log-likelihood is the answer (acc), or with the highest per character
(acc_norm). With one choice, a question is answered right where the model would have written it.

Memorized: the question's text, its prompt, is read through the writes; then, with what was learned
and without attention's context, the prompt is read and its choices are scored as before.
"""

from collections.abc import Sequence
import time

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.model import attention, state
from hope_jax.scoring import choices, intervals, memorization, results
from hope_jax.scoring.choices import Prompt
from hope_jax.scoring.zeroshot import Question

KINDS = ("baseline", "memorized")


class Asked:
  """A model that is asked. Where samples do not start afresh, it holds what those before taught."""

  def __init__(self, config, params, tokenizer, how: memorization.Options,
               batch: int | None = None):
    """batch: prompts together; None: as many as memorization has streams."""
    self.config, self.params, self.tokenizer, self.how = config, params, tokenizer, how
    self._learned, self._seen = None, set()
    self._batch = batch or (memorization.fitting(config) if how.on else memorization.STREAMS)

  def batches(self, questions: Sequence[Question]) -> list[list[int]]:
    """Indices of questions to answer together: of like lengths, or in order where it counts."""
    if self.how.on and not self.how.reset:
      return [[i] for i in range(len(questions))]
    each = max(len(question.prompts) for question in questions)
    longest = [Prompt(max((prompt.ids for prompt in own), key=len),
                      [ids for prompt in own for ids in prompt.continuations])
               for own in self.encoded(questions)]
    return choices.batches(longest, max(1, self._batch // each))

  def encoded(self, questions: Sequence[Question]) -> list[list[Prompt]]:
    """The prompts of each question: one with all choices, or one for each choice."""
    asked = [pair for question in questions for pair in _pairs(question)]
    found = iter(choices.encode(self.tokenizer, asked))
    return [[next(found) for _ in question.prompts] for question in questions]

  def answer(self, questions: Sequence[Question], size: int | None = None) -> list[dict]:
    """A row of results for each. size: questions that are compiled for, at least as many."""
    every = [*questions, *[questions[-1]] * ((size or len(questions)) - len(questions))]
    prompts, rows = self.encoded(every), [{"gold": question.gold} for question in questions]
    shape = self.shape(every, prompts)
    compiled, self._seen, seconds = shape not in self._seen, self._seen | {shape}, {}
    for kind in KINDS[:1 + self.how.on]:
      before = time.perf_counter()
      scores, did = self.score(kind, every, prompts)
      seconds[kind] = (time.perf_counter() - before) / len(every)
      for row, question, own, memories in zip(rows, questions, scores, did):
        row |= {kind: judged(question, own)} | ({"memories": memories} if memories else {})
    return [row | {"tokens": sum(map(_tokens, own)), "compiled": compiled, "seconds": seconds}
            for row, own in zip(rows, prompts)]

  def shape(self, questions: Sequence[Question], prompts: list[list[Prompt]]):
    """Equal where nothing new is compiled."""
    flat = [prompt for own in prompts for prompt in own]
    return (len(flat), choices.shape(flat),
            self._with_room(questions, choices.longest(flat)).attention.context)

  def score(self, kind: str, questions: Sequence[Question], prompts: list[list[Prompt]]):
    """(the scores of each question's choices, what the memories of each did, {} for none).

    kind: one of KINDS.
    """
    flat, did, fast = [prompt for own in prompts for prompt in own], [{} for _ in prompts], None
    config = self._with_room(questions, choices.longest(flat))
    if kind == "memorized":
      fast, did = self.learn(questions, config)
      fast = state.select(fast, np.repeat(np.arange(len(prompts)), list(map(len, prompts))))
    following = iter(choices.score(config, self.params, flat, fast=fast))
    return [[each for _ in own for each in next(following)] for own in prompts], did

  def learn(self, questions: Sequence[Question], config=None):
    """(streams that have learned a question's text each, what the memories of each did)."""
    texts = [self._text(question) for question in questions]
    config = config or self._with_room(questions, 1)
    if self._learned is None:
      fast = memorization.start(config, self.params, self.how, len(texts), self.config)
    else:
      fast = memorization.fitted(config, self._learned)
    fast, did = memorization.learn(config, self.params, fast, texts, self.how)
    if not self.how.reset:
      self._learned = jax.tree.map(jnp.copy, fast)
    return fast, did

  def _text(self, question: Question) -> list[int]:
    text = question.answered if self.how.leak else question.text
    return [*self.tokenizer.begin, *self.tokenizer.encode(text)]

  def _with_room(self, questions, tokens: int):
    longest = max((len(self._text(question)) for question in questions), default=1)
    return attention.with_room(self.config, choices.room(max(tokens, longest)))


def _pairs(question: Question):
  """(prompt, its continuations) of a question."""
  if len(question.prompts) == 1:
    return [(question.prompts[0], question.choices)]
  return [(prompt, [choice]) for prompt, choice in zip(question.prompts, question.choices)]


def _tokens(prompt: Prompt) -> int:
  return len(prompt.ids) + sum(map(len, prompt.continuations))


def judged(question: Question, scores: list[choices.Score]) -> dict:
  """The scores of a question's choices, and whether its answer is right by each metric."""
  likelihoods = [each.log_likelihood for each in scores]
  if len(scores) == 1:
    return {"log_likelihoods": likelihoods, "acc": scores[0].greedy}
  by_size = [value / max(size, 1) for value, size in zip(likelihoods, question.sizes)]
  return {"log_likelihoods": likelihoods, "acc": int(np.argmax(likelihoods)) == question.gold,
          "acc_norm": int(np.argmax(by_size)) == question.gold}


def summary(rows: Sequence[dict], metrics: Sequence[str], seed: int) -> dict:
  """All scores of a task with their intervals, its speed, and what the memories did.

  RuntimeError, saying why, for a memory that was written for none of the questions.
  """
  both = [name for name in KINDS if name in rows[0]]
  def column(name, metric):
    return [float(row[name][metric]) for row in rows] if name in both else None
  scores = {metric: intervals.with_and_without(column("baseline", metric),
                                               column("memorized", metric), seed)
            for metric in metrics}
  sizes = [len(row["baseline"]["log_likelihoods"]) for row in rows]
  if max(sizes) == 1:
    nats = {name: [-row[name]["log_likelihoods"][0] for row in rows] for name in both}
    scores["nats"] = intervals.with_and_without(nats["baseline"], nats.get("memorized"), seed)
  used = [row for row in rows if not row["compiled"]] or rows
  speed = {name: {"questions_per_second": len(used) / (total := sum(row["seconds"][name]
                                                                    for row in used)),
                  "tokens_per_second": sum(row["tokens"] for row in used) / total,
                  "seconds_per_question": total / len(used)} for name in both}
  did = [row["memories"] for row in rows if "memories" in row]
  return {"samples": len(rows), "scores": scores, "speed": speed,
          "chance": None if max(sizes) == 1 else float(np.mean([1 / size for size in sizes])),
          "memories": results.memories(did) if did else {}}
