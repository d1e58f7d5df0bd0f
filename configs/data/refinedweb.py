"""The recipe of the reference notes: web text as base, with books, code and an encyclopedia beside.

    pip install 'hope_jax[data]'
    python -m hope_jax.data --config=configs/data/refinedweb.py:texts --config.workers=16

texts/ has a folder of JSON lines or parquet for each source that is there: web (RefinedWeb or
FineWeb, field text), books, encyclopedia, code, dialogue, news; other folders go through all
filters, as web does. texts/evaluations/ has the evaluation sets, any files of JSON (lines) or text:
whatever has 13 words in a row of one of them goes.
"""

from pathlib import Path

from hope_jax.data.pipeline import recipe

# a whole novel has more than the 100,000 words of Gopher's longest document, and says much twice;
# talk and code have neither sentences of C4's kind nor Gopher's stop words
FILTERS = {"books": ("language",), "encyclopedia": ("language", "quality"),
           "dialogue": ("language",), "code": ()}
WEIGHTS = {"web": 0.6, "books": 0.1, "code": 0.1, "encyclopedia": 0.1}  # of the others: 0.05


def get_config(folder="texts"):
  c = recipe.base()
  c.dir = "runs/data/refinedweb"
  root = Path(folder).expanduser()
  names = sorted(path.name for path in root.iterdir()
                 if path.name != "evaluations" and not path.name.startswith("."))
  if not names:
    raise ValueError(f"{folder} is empty: give it a folder or file of text for each source")
  c.sources = tuple(
      recipe.source(_name(name), "mixed", str(root / name), domain=_name(name),
                    weight=WEIGHTS.get(_name(name), 0.05),
                    filters=FILTERS.get(_name(name), recipe.FILTERS)) for name in names)
  if (root / "evaluations").exists():
    c.decontaminate.files = (str(root / "evaluations"),)
  return c


def _name(file):
  return file.split(".")[0]
