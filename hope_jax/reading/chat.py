"""A conversation in the words that a model was trained on: its own chat template (jinja2).

    chat = Chat(tokenizer)
    ids = chat.turn("What is a memory?")      # to be read; then the model writes
    chat.answered("A level that ...")

The template escapes nothing and adds nothing. What a person writes is text: the name of a control
token in it is no such token.
"""

from hope_jax.data.byte_pairs import BytePairs

HIDDEN = 0xF0000  # private characters from here on stand for names that are text


class Chat:
  """What was said so far; what a turn adds to it, as ids."""

  def __init__(self, tokenizer: BytePairs):
    """ValueError for a model without a template, a template that is damaged, or without jinja2."""
    if tokenizer.chat is None:
      raise ValueError("the model has no chat template: talk to it without --chat, or import one "
                       "that was trained to answer (its name often ends in Instruct)")
    self._tokenizer, self._template = tokenizer, _compiled(tokenizer.chat)
    self.reset()

  def reset(self) -> None:
    """Nothing has been said."""
    self._messages, self._read = [], ""

  def turn(self, text: str) -> list[int]:
    """Ids to be read, up to where the model answers."""
    before = self._render(False) if self._messages else ""
    self._messages.append({"role": "user", "content": self._hidden(text)})
    whole = self._render(True)
    # some templates change what was said before: then only what is new is read
    start = self._read if whole.startswith(self._read) else before
    if not whole.startswith(start):
      raise ValueError("the chat template changes what it said before: say /reset, or talk without "
                       "--chat")
    self._read = whole
    return self._tokenizer.encode_chat(whole[len(start):], self._shown)

  def answered(self, text: str) -> None:
    """What the model has answered, without the token that ends it."""
    self._messages.append({"role": "assistant", "content": self._hidden(text)})
    self._read += self._hidden(text)

  def _hidden(self, text: str) -> str:
    for i, name in enumerate(self._tokenizer.control_names):
      text = text.replace(name, chr(HIDDEN + i))
    return text

  def _shown(self, text: str) -> str:
    return "".join(self._tokenizer.control_names[ord(c) - HIDDEN]
                   if 0 <= ord(c) - HIDDEN < len(self._tokenizer.control_names) else c
                   for c in text)

  def _render(self, asks: bool) -> str:
    import jinja2
    words = self._tokenizer
    try:
      return self._template.render(messages=self._messages, add_generation_prompt=asks,
                                   bos_token=words.name(words.bos), eos_token=words.name(words.eos))
    except (jinja2.TemplateError, TypeError) as error:
      raise ValueError(f"the chat template fails ({error}): talk without --chat") from None


def _compiled(template: str):
  try:
    import jinja2
    from jinja2 import sandbox
  except ImportError:
    raise ValueError("a chat template needs jinja2: pip install 'hope_jax[pretrained]'") from None

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  environment.globals["raise_exception"] = refuse
  try:
    return environment.from_string(template)
  except jinja2.TemplateError as error:
    raise ValueError(f"the chat template is damaged ({error}): import the model again") from None
