"""What the documents say can be done: links lead somewhere, commands have the flags they name.

    python -m pytest tests/test_docs.py
"""

import importlib
from pathlib import Path
import re
import shlex

from absl import flags
import pytest

from hope_jax.runtime import program

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
COMMAND = re.compile(r"python -m (hope_jax[\w.]*)([^\n`]*)")
LATER = ("runs/smollm",)  # configurations of runs that are made by an earlier command
GLOBAL = {  # programs that name their flags when they are run
    "hope_jax.launch": {"config", "workdir", "init_from", "allow_changes", "dry_run"},
    "hope_jax.data": {"config", "verify", "report", "coverage", "baseline"}}


def commands() -> list:
  found = {}
  for page in GUIDES:
    for module, rest in COMMAND.findall(page.read_text()):
      words = shlex.split(rest.split(" #")[0], comments=True)
      if words and "..." not in rest:
        found[f"{module} {' '.join(words)}"] = pytest.param(module, words)
  return [*found.values()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
    assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("module, words", commands())
def test_a_command_has_the_flags_it_names(module, words):
  """They are parsed as the program would; it is not run."""
  names = [word[2:].split("=")[0] for word in words if word.startswith("--")]
  if module in GLOBAL:
    assert {name.split(".")[0] for name in names} <= GLOBAL[module]
  else:
    found = importlib.import_module(module)
    if not hasattr(found, "define_flags"):  # integrity: words alone
      assert not names
      return
    values = flags.FlagValues()
    found.define_flags(values)
    assert all(name.split(".")[0] in values or name.removeprefix("no") in values for name in names)
  for text in re.findall(r"(configs/[\w/]+\.py[^\s,]*)", " ".join(words)):
    if not any(run in text for run in LATER) and "configs/data/" not in text:
      program.configuration(text)


def test_what_the_guide_lists_is_there():
  """Programs of evals/ and configurations, none left out."""
  said = "\n".join(page.read_text() for page in PAGES[1:] if page.name != "log.md")
  for folder, form in (("evals", "{}.py"), ("configs", "configs/{}.py")):
    for path in (ROOT / folder).glob("*.py"):
      assert form.format(path.stem) in said, path
