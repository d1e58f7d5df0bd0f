"""Writes text after a prompt, or line by line in a conversation.

    python -m hope_jax.generate --checkpoint=runs/smoke --prompt="import "
    python -m hope_jax.generate --checkpoint=runs/smoke --interactive --state=DIR
    python -m hope_jax.generate --checkpoint=runs/smollm --interactive --chat

writes the continuation to stdout, or holds a conversation, line by line; --chat: in the words of
the model's own chat template, and with --state knowing what was memorized, without its context.
"""

import sys
import time

from absl import app, flags

from hope_jax.data.pieces import Pieces, StreamDecoder
from hope_jax.model import lm
from hope_jax.model.state import fast_bytes
from hope_jax.reading import opening
from hope_jax.reading.chat import Chat
from hope_jax.reading.stream import Stream
from hope_jax.runtime import program, startup
from hope_jax.runtime.startup import say

COMMANDS = "/save DIR, /load DIR, /reset, /quit"


def answer(stream: Stream, tokenizer: Pieces, text: str, tokens: int,
           chat: Chat | None = None) -> None:
  """Reads the text and prints what comes after it, as it comes."""
  if chat is not None:
    ids = chat.turn(text)
  else:
    ids = tokenizer.encode(text)
    ids = [*tokenizer.begin, *ids] if ids and not stream.count else ids
  decoder, began, written, said = StreamDecoder(tokenizer), time.perf_counter(), 0, []
  for written, token in enumerate(stream.generate(ids, tokens, tokenizer.stops), 1):
    said.append(decoder.push(token))
    print(said[-1], end="", flush=True)
  said.append(decoder.flush())
  print(said[-1], flush=True)
  if chat is not None:
    chat.answered("".join(said))
  say(f"[{len(ids)} tokens read, {written} "
      f"written{' to the end of the document' if written < tokens else ''}, "
      f"{time.perf_counter() - began:.1f} s with compilation; {fast_bytes(stream.fast):,} bytes of "
      "state]")


def obey(stream: Stream, command: str) -> None:
  """Carries out a command of a conversation."""
  match command.split(maxsplit=1):
    case ["/reset"]:
      stream.reset()
    case ["/save", directory]:
      stream.save(program.path(directory))
    case ["/load", directory]:
      stream.load(program.path(directory))
    case _:
      raise ValueError(f"{command!r} is not a command: use one of {COMMANDS}")
  say(f"[{command}: {stream.count} tokens in this conversation]")


def converse(stream: Stream, tokenizer: Pieces, tokens: int, chat: Chat | None = None) -> None:
  """Answers the lines of stdin, until /quit or the end; without a chat read with their newlines."""
  say(f"[{stream.count} tokens in this conversation; type a line, or {COMMANDS}]")
  for line in sys.stdin:
    try:
      if line.strip() == "/quit":
        return
      if line.startswith("/"):
        obey(stream, line.strip())
        if chat is not None and line.startswith(("/reset", "/load")):
          chat.reset()
      elif line.strip() or chat is None:
        answer(stream, tokenizer, line if chat is None else line.rstrip("\n"), tokens, chat)
    except (ValueError, OSError) as error:
      say(f"{type(error).__name__}: {error}")


def define_flags(values: flags.FlagValues) -> None:
  """Not at import: programs that use this module have flags of the same names."""
  program.define_path("checkpoint", "Folder of a run.", flag_values=values, required=True)
  flags.DEFINE_string("prompt", "", "What the text starts with, or goes on with (--state).",
                      flag_values=values)
  flags.DEFINE_integer("tokens", 200, "Write at most this many tokens (a turn).", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_float("temperature", 0.8, "0: always the likeliest token.", flag_values=values)
  flags.DEFINE_float("top_p", 0.95, "Draw from the likeliest tokens with this much probability.",
                     flag_values=values)
  flags.DEFINE_integer("seed", 0, "The same seed gives the same text.", lower_bound=0,
                       upper_bound=2**32 - 1, flag_values=values)
  flags.DEFINE_bool("endless", False, "Never end the document before --tokens.", flag_values=values)
  flags.DEFINE_bool("interactive", False, f"Answer lines from stdin. Commands: {COMMANDS}.",
                    flag_values=values)
  flags.DEFINE_bool("chat", False, "Talk as the model's chat template says.", flag_values=values)
  program.define_path("state", "Go on with the conversation saved here.", flag_values=values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: put the prompt in quotes, "
                         "--prompt=\"...\"")
  for pipe, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
    if hasattr(pipe, "reconfigure"):  # bytes that are no text are read as bytes, and never fatal
      pipe.reconfigure(errors=errors)
  with program.one_line(ValueError, OSError, RuntimeError):
    startup.prepare()
    config, params, tokenizer = opening.load(f.checkpoint)
    never = [*range(tokenizer.size, config.model.vocab), *(tokenizer.stops if f.endless else ())]
    stream = Stream(config, params, temperature=f.temperature, top_p=f.top_p, seed=f.seed,
                    never=never)
    chat = Chat(tokenizer) if f.chat else None
    if f.state is not None:
      stream.load(f.state)
      if chat is not None:
        stream.start(lm.forget_context(config, stream.fast))
    if f.prompt or not f.interactive:
      answer(stream, tokenizer, f.prompt, f.tokens, chat)
    if f.interactive:
      converse(stream, tokenizer, f.tokens, chat)


def run():
  """Entry point of the console script."""
  program.start(main, define_flags)


if __name__ == "__main__":
  run()
