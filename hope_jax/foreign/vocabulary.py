"""A model's tokenizer.json with our entry (data/byte_pairs.py), from its folder or its GGUF.

A GGUF has the pieces and merges but only a name for how text is split before; SPLITS holds those of
the families that are known.
"""

import json
from pathlib import Path

from hope_jax.data.byte_pairs import OURS

LETTERS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+"
           r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _level(regex: bool) -> dict:
  return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def _split(pattern: str) -> list[dict]:
  return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
           "invert": False}, _level(False)]


SPLITS = {  # tokenizer.ggml.pre: pretokenizers
    "default": [_level(True)], "gpt-2": [_level(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _level(True)],
    "llama-bpe": _split(LETTERS % "{1,3}"), "qwen2": _split(LETTERS % "")}
CONTROL, USER, UNKNOWN = 3, 4, 2  # tokenizer.ggml.token_type


def of_folder(path: Path) -> dict | None:
  """None without a tokenizer.json. ValueError if it is damaged, or names no end of a document."""
  if not (path / "tokenizer.json").is_file():
    return None
  try:
    stored = json.loads((path / "tokenizer.json").read_text())
    facts, generation, config = (json.loads(file.read_text()) if file.exists() else {} for file in (
        path / f"{name}.json" for name in ("tokenizer_config", "generation_config", "config")))
  except ValueError as error:
    raise ValueError(f"{path} has a JSON file that is not whole ({error}): fetch it again") \
        from None
  ids = {entry["content"]: entry["id"] for entry in stored.get("added_tokens", ())}
  ids |= stored.get("model", {}).get("vocab", {}) if isinstance(
      stored.get("model", {}).get("vocab"), dict) else {}

  def token(name):
    text = facts.get(f"{name}_token")
    return ids.get(text["content"] if isinstance(text, dict) else text)

  ends = [end for value in (generation.get("eos_token_id"), config.get("eos_token_id"))
          for end in (value if isinstance(value, list) else [value]) if end is not None]
  eos, bos = token("eos"), token("bos")
  eos = ends[0] if eos is None and ends else eos
  bos = bos if _begins(stored, facts, bos) else None
  chat = facts.get("chat_template")
  if isinstance(chat, list):  # several, by name
    chat = next((each["template"] for each in chat if each["name"] == "default"), None)
  if (path / "chat_template.jinja").exists():
    chat = (path / "chat_template.jinja").read_text()
  return _with(stored, bos, eos, ends, chat, path)


def _begins(stored: dict, facts: dict, bos: int | None) -> bool:
  """Whether the model's own programs put this token before a text."""
  if "add_bos_token" in facts:
    return bool(facts["add_bos_token"])
  return f'"id": {bos},' in json.dumps(stored.get("post_processor")) or any(
      str(bos) in map(str, part.get("ids", ())) for processor in _processors(stored)
      for part in processor.get("special_tokens", {}).values() if isinstance(part, dict))


def _processors(stored: dict) -> list[dict]:
  given = stored.get("post_processor") or {}
  return given.get("processors", [given])


def _with(stored: dict, bos, eos, ends, chat, where) -> dict:
  if eos is None:
    raise ValueError(f"{where} names no token that ends a document (eos_token): add it to "
                     "tokenizer_config.json")
  return stored | {OURS: {"bos": bos, "eos": eos, "stops": sorted({eos, *ends}), "chat": chat}}


def of_gguf(facts: dict) -> dict | None:
  """The tokenizer that a GGUF's metadata describe; ValueError for one of another kind."""
  kind, tokens = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.tokens")
  if not tokens:
    return None
  types = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if kind == "gpt2":
    pre = facts.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
      raise ValueError(f"the GGUF's tokenizer splits text as {pre!r}; known are "
                       f"{', '.join(SPLITS)}: import the model from its folder of safetensors")
    model = {"ignore_merges": pre == "llama-bpe", "byte_fallback": False,
             "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]]}
    before, decoder = {"type": "Sequence", "pretokenizers": SPLITS[pre]}, _level(True)
  elif kind == "llama":
    model = {"byte_fallback": True, "unk_token": tokens[types.index(UNKNOWN)],
             "merges": _merges(vocabulary, facts["tokenizer.ggml.scores"])}
    before, decoder = None, None
  else:
    raise ValueError(f"the GGUF's tokenizer is of kind {kind!r}; known are gpt2 and llama: import "
                     "the model from its folder of safetensors")
  added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": types[i] != USER}
           for i, token in enumerate(tokens) if types[i] in (CONTROL, USER, UNKNOWN)]
  stored = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": before, "post_processor": None,
            "decoder": decoder,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": kind == "llama", "vocab": vocabulary} | model}
  bos, eos = (facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
  begins = facts.get("tokenizer.ggml.add_bos_token", kind == "llama")
  ends = [facts[f"tokenizer.ggml.{name}_token_id"] for name in ("eot", "eom")
          if f"tokenizer.ggml.{name}_token_id" in facts]
  return _with(stored, bos if begins else None, eos, ends,
               facts.get("tokenizer.chat_template"), "the GGUF")


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[list[str]]:
  """Pairs in the order in which SentencePiece joins them: by the score of what they become."""
  found = []
  for piece, i in vocabulary.items():
    pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
    pairs = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    found += [(-scores[i], i, *sorted_pair) for sorted_pair in sorted(
        pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))]
  return [[left, right] for _, _, left, right in sorted(found, key=lambda entry: entry[:2])]
