"""Raw text with every fault that a recipe finds, and a program that makes data of it, often killed.

    python -m tests.raw_data FOLDER     # once, killed and four: made in three ways

A process of its own: its children are copies of it, which nothing else may run in.
"""

import gzip
import json
import os
from pathlib import Path
import random
import signal
import sys

from hope_jax.data.pipeline import build, recipe

KILLS = 20
WORDS = ("the of and to in that have with be a for not on it as you do at this but his by from "
         "they we say her she or an will my one all would there their what so up out if about "
         "who get which go me when make can like time no just him know take people into year "
         "your good some could them see other than then now look only come its over think also "
         "back after use two how our work first well way even new want because any these give "
         "day most us river stone garden window letter morning winter road music doctor village "
         "market summer bread mountain friend teacher paper machine forest island engine harbour "
         "blanket kitchen candle weather journey language science history question answer "
         "measure copper silver").split()
GERMAN = ("Der Garten hinter dem Haus war im Winter immer still, und die Kinder gingen abends "
         "nicht mehr hinaus, weil es dort dunkel und kalt geworden ist. Niemand wollte noch "
         "warten, bis der Schnee endlich geschmolzen war, und so blieben sie alle in der warmen "
         "Stube. ") * 2


def english(rng, sentences=12):
  """A document that no filter drops."""
  made = [" ".join(rng.choices(WORDS, k=rng.randint(7, 16))) for _ in range(sentences)]
  lines = [". ".join(s.capitalize() for s in made[i:i + 4]) + "." for i in range(0, sentences, 4)]
  return "\n".join(lines) + "\n"


def edited(rng, text, share):
  """The text, with so large a share of its words replaced."""
  words = text.split(" ")
  for i in rng.sample(range(len(words)), round(share * len(words))):
    words[i] = "".join(rng.choices("abcdefgh", k=6))
  return " ".join(words)


def write(folder):
  """{fault: the document that has it}; writes the texts and an evaluation set into the folder."""
  rng = random.Random(0)
  texts = [english(rng) for _ in range(60)]
  asked = english(rng, 4)
  twice = "the garden of stone and the river that we have seen.\n"
  faults = {"exact_duplicate": texts[3], "near_duplicate": edited(rng, texts[5], 0.01),
            "contaminated": texts[7] + " ".join(asked.split()[2:15]).upper() + ".\n",
            "gopher_short_doc": english(rng, 2), "gopher_enough_stop_words": GERMAN,
            "dup_line_frac": twice * 12, "blank": " \n", "null in field 'text'": None}
  records = [*texts, *faults.values()]
  web = folder / "web"
  (web / "notes").mkdir(parents=True)
  names = {}
  for part in range(4):
    mine = records[part::4]
    data = "".join(json.dumps(dict(text=text)) + "\n" for text in mine).encode()
    (web / f"{part}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    names |= {fault: f"{part}.jsonl.gz:{mine.index(text) + 1}" for fault, text in faults.items()
              if text in mine and fault != "exact_duplicate"}
  (web / "notes" / "picture.png").write_bytes(b"\x89PNG\0\0")
  names |= {"exact_duplicate": "3.jsonl.gz:1", "no text": "notes/picture.png"}
  code = folder / "code"
  code.mkdir()
  for i in range(9):
    lines = [f"\tx[{n}] = {rng.random()}  # é\r\n" for n in range(rng.randint(1, 30))]
    (code / f"{i}.txt").write_bytes("".join(lines).encode() + b"\xff\n")
  (folder / "asked.jsonl").write_text(json.dumps(dict(question=[asked], answer="stone")) + "\n")
  return names


def made_of(folder, name, workers=1):
  c = recipe.base()
  c.dir = str(folder / name)
  c.sources = (recipe.source("web", "mixed", str(folder / "web"), weight=2, licence="CC0"),
               recipe.source("code", "text", str(folder / "code"), filters=()))
  c.decontaminate.files = (str(folder / "asked.jsonl"),)
  c.part_bytes = 1500
  c.shard_tokens = 2000
  c.val_fraction = 0.2
  c.tokenizer.vocab = 420
  c.workers = workers
  return c


def until(folder, name, writes):
  """Makes it in a copy of this process, which is killed after so many writes; whether it ended."""
  child = os.fork()
  if not child:
    left = [writes]

    def count(event, args):
      left[0] -= event == "os.rename" or event == "open" and args[1] not in (None, "r", "rb")
      if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    build.make(made_of(folder, name))
    os._exit(0)
  return os.waitpid(child, 0)[1] == 0


def die(place, rank, meter):
  """A task for which there is not memory enough."""
  os.kill(os.getpid(), signal.SIGKILL)


def main(folder):
  build.make(made_of(folder, "once"))
  rng, kills = random.Random(1), 0
  while not (until(folder, "killed", rng.randint(1, 90) if kills < KILLS else 10**9)):
    kills += 1
  (folder / "kills").write_text(str(kills))
  build.make(made_of(folder, "four", workers=4))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
