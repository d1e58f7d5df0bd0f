"""A page that shows what a recipe has made: one HTML file, light and dark, nothing to fetch.

    page.write(recipe, "report.html")

Tables of sources, of rules with examples of what they dropped, and of the overlap between sources;
histograms of lengths; samples of what stayed. All numbers are the manifest's. Needs jinja2.
"""

from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.data.pipeline import manifest, recipe as recipes, store

_SAMPLES, _EXCERPT = 3, 600  # of a source; characters
_STYLE = """
:root { color-scheme: light dark; --bar: light-dark(#3b6ea8, #7fb0e6);
        --line: light-dark(#d5d8dc, #43484f); --faint: light-dark(#f3f4f6, #22262b); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; } h1 { margin-top: 0; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
         vertical-align: top; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .text { text-align: left; }
.bar { background: var(--bar); height: .7rem; min-width: 1px; display: inline-block; }
pre { background: var(--faint); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere;
      max-height: 12rem; overflow-y: auto; margin: .3rem 0; text-align: left; font-size: 13px; }
"""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ folder }}</title><style>{{ style }}</style>
<h1>{{ folder }}</h1>
<p>Recipe {{ facts.digest[:12] }}, tokenizer {{ facts.tokenizer[:12] }},
{{ facts.files | length }} files.</p>
<h2>Sources</h2><div class="wide"><table>
<tr><th>source<th>files<th>documents<th>MB<th>kept<th>MB<th>of MB<th>tokens<th>bytes per token
<th class="text">licence<th class="text">address<th class="text">date
{% for s in sources %}<tr><td>{{ s.name }}<td>{{ s.inputs | length }}<td>{{ s.read.documents }}
<td>{{ s.read.bytes | mb }}<td>{{ s.kept.documents }}<td>{{ s.kept.bytes | mb }}
<td>{{ "%.1f %%" | format(100 * s.kept.bytes / s.read.bytes) }}<td>{{ s.count }}
<td>{{ "%.3f" | format(s.kept.bytes / s.count) }}<td class="text">{{ s.licence }}
<td class="text">{{ s.address }}<td class="text">{{ s.date }}{% endfor %}</table></div>
<h2>Overlap</h2><p>Documents of a row's source that are, nearly, also in a column's; found before
one of each was kept.</p><div class="wide"><table><tr><th>{% for s in sources %}<th>{{ s.name }}
{% endfor %}{% for s in sources %}<tr><td>{{ s.name }}{% for other in sources %}
<td>{{ facts.overlap[s.name][other.name] }}{% endfor %}{% endfor %}</table></div>
{% for s in sources %}<h2>{{ s.name }}</h2>
<h3>Dropped</h3><div class="wide"><table><tr><th>rule<th>documents<th>MB<th class="text">share of
documents<th class="text">begin of one{% for rule, n in s.rules %}<tr><td>{{ rule }}
<td>{{ n.documents }}<td>{{ n.bytes | mb }}<td class="text"><span class="bar"
style="width: {{ "%.1f" | format(160 * n.documents / s.read.documents) }}px"></span>
{{ "%.2f %%" | format(100 * n.documents / s.read.documents) }}
<td class="text">{{ s.examples[rule] }}{% else %}<tr><td>nothing{% endfor %}</table></div>
<h3>Lengths of what stayed</h3><table>{% for bits, n in s.histogram %}
<tr><td>up to {{ bits }} bytes<td>{{ n }}<td class="text"><span class="bar"
style="width: {{ "%.1f" | format(320 * n / s.most) }}px"></span>{% endfor %}</table>
<h3>Samples</h3>{% for row in s.samples %}<p>{{ row.name }}<pre>{{ row.text }}</pre>{% endfor %}
{% endfor %}</html>
"""


def write(recipe: ConfigDict, path: str | Path) -> None:
  """Writes the page; the file is whole or as it was. ValueError without what it shows."""
  try:
    import jinja2
  except ImportError:
    raise ValueError("a page needs jinja2: pip install 'hope_jax[data]'") from None
  folder = recipes.folder(recipe)
  facts = manifest.read(folder)
  shown = jinja2.Environment(autoescape=True)
  shown.filters["mb"] = _mb
  text = shown.from_string(_PAGE).render(
      folder=folder.name, facts=facts, style=jinja2.utils.markupsafe.Markup(_STYLE),
      sources=[_source(folder, name, s) for name, s in facts["sources"].items()])
  with store.whole(Path(path)) as new:
    new.write_text(text, "utf-8")


def _mb(size: int) -> str:
  return f"{size / 1e6:,.2f}"


def _source(folder: Path, name: str, facts: dict) -> dict:
  lengths = {int(bits): n for bits, n in facts["lengths"].items()}
  bits = range(min(lengths), max(lengths) + 1)
  return facts | dict(
      name=name, histogram=[(f"{2**b - 1:,}", lengths.get(b, 0)) for b in bits],
      most=max(lengths.values()), samples=_samples(folder / "documents" / name),
      count=sum(n["tokens"] for splits in facts["tokens"].values() for n in splits.values()),
      rules=sorted(facts["dropped"].items(), key=lambda item: -item[1]["documents"]),
      examples=_examples(folder, name, facts["dropped"]))


def _samples(folder: Path) -> list[dict]:
  """The first documents of parts evenly apart."""
  parts = sorted(folder.iterdir())
  chosen = [parts[i * len(parts) // _SAMPLES] for i in range(_SAMPLES)]
  found = (next(store.read_lines(path), None) for path in dict.fromkeys(chosen))
  return [dict(name=row["name"], text=_shown(row["text"][:_EXCERPT])) for row in found if row]


def _examples(folder: Path, source: str, dropped: dict) -> dict[str, str]:
  """{rule: how a document begins that it dropped}, of this source's parts."""
  own = {path.name.split(".")[0] for path in (folder / "documents" / source).iterdir()}
  waiting, found = {*dropped}, dict.fromkeys(dropped, "")
  for path in sorted((folder / "dropped").iterdir()):
    if not waiting:
      break
    for row in store.read_lines(path) if path.name.split(".")[0] in own else ():
      if row["rule"] in waiting and row.get("begins"):
        waiting.discard(row["rule"])
        found[row["rule"]] = _shown(row.get("shared") or row["begins"])
  return found


def _shown(text: str) -> str:
  """Bytes that are no text as a sign."""
  return text.encode("utf-8", "replace").decode()
