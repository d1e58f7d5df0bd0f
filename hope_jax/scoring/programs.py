"""Evaluations as functions: a program of evals/ is called in this process, as from a command line.

    programs.call("niah", ["--checkpoint=runs/smoke", "--output=niah.json"])

PROGRAMS is the table of those that score one checkpoint, for suites and for training.
"""

import contextlib
import importlib
import io
import sys
from typing import NamedTuple

from absl import flags


class Program(NamedTuple):
  """What a suite gives it, beside --checkpoint and --output, and where its main score is."""
  about: str
  quick: tuple[str, ...]  # ends within a minute on two cores for the smoke checkpoint
  full: tuple[str, ...] = ()
  headline: str = ""  # keys into its file, joined by dots
  memorize: bool = True  # has --memorize
  writes: bool = False  # for models alone that write while they read
  data: bool = False  # needs --data_dir


SHORT = ("--lengths=256,512", "--samples=2", "--depths=0,1")
PROGRAMS = {
    "niah": Program(
        "Needles in contexts of exactly so many tokens: RULER's kinds.",
        (*SHORT, "--kinds=single_1,single_2,literal_free"), headline="lengths.-1.choice"),
    "passkey": Program("A pass key among sentences that repeat.", SHORT,
                       headline="lengths.-1.choice"),
    "babi": Program("bAbI's questions 1 to 5, facts scattered in books.",
                    ("--lengths=512", "--samples=4"), headline="lengths.-1.choice", data=True),
    "zeroshot": Program(
        "PIQA to LAMBADA: log-likelihoods of choices, as EleutherAI's harness counts them.",
        ("--tasks=piqa,boolq", "--max_samples=8"), headline="average", data=True),
    "perplexity": Program("Whole documents by domain: perplexity and bits per byte.",
                          ("--documents=embedded", "--max_samples=2"), headline="bits_per_byte"),
    "class_incremental": Program(
        "Classes that arrive in groups, read once.",
        ("--set=banking77", "--orders=1", "--shots=2", "--tests=1"), data=True),
    "longdoc": Program(
        "What memory gains in long documents, by position.",
        ("--documents=embedded", "--max_samples=4", "--tokens=512", "--min_tokens=512",
         "--batch=4"), headline="bits_per_byte", memorize=False, writes=True),
}


def headline(path: str, result: dict) -> dict[str, dict]:
  """{way: score with its interval} that stand at a path such as lengths.-1.found of a result.

  {} for no path. KeyError or IndexError where nothing stands there.
  """
  if not path:
    return {}
  value = result
  for key in path.split("."):
    value = value[int(key)] if isinstance(value, list) else value[key]
  return {"score": value} if "value" in value else value


def call(name: str, argv: list[str]) -> str:
  """What it prints. RuntimeError for whatever ends it, in one line; a signal passes."""
  module, values = importlib.import_module(f"hope_jax.evals.{name}"), flags.FlagValues()
  printed, before = io.StringIO(), sys.argv
  sys.argv = [name, *argv]  # of which a result's file tells
  try:
    module.define_flags(values)
    with contextlib.redirect_stdout(printed):
      module.main(values(sys.argv), values)
  except SystemExit as error:
    if error.code:
      raise RuntimeError(str(error.code)) from None
  except Exception as error:  # nothing of an evaluation may end what called it
    raise RuntimeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
  finally:
    sys.argv = before
  return printed.getvalue()
