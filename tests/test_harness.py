"""The harness' own tasks on local files: its requests, scored here, are our zero-shot scores."""

import json
from pathlib import Path
import sys

from absl import flags
import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")  # hope_jax[harness]
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate

from hope_jax.scoring import answers, harness, memorization, zeroshot
from tests import tiny_run
from tests.test_zeroshot import GOLDEN, put

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import harness as program

# ours: (file of the harness, what local files need beside their place)
FORMS = {
    "piqa": ("piqa/piqa.yaml", ""), "hellaswag": ("hellaswag/hellaswag.yaml", ""),
    "winogrande": ("winogrande/default.yaml", ""), "arc_easy": ("arc/arc_easy.yaml", ""),
    "boolq": ("super_glue/boolq/default.yaml", 'doc_to_target: "{{answer|int}}"\n'),
    "social_iqa": ("siqa/siqa.yaml", ""), "commonsense_qa": ("commonsense_qa/default.yaml", ""),
    "openbookqa": ("openbookqa/openbookqa.yaml", ""),
    "lambada": ("lambada/lambada_openai.yaml", "")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run, data/ in the forms of the hub, and tasks/: the harness' tasks on those files."""
  folder = tmp_path_factory.mktemp("harness")
  tiny_run.save(folder / "run", tiny_run.configured("hope_hybrid"))
  (folder / "tasks").mkdir()
  for task, (form, more) in FORMS.items():
    lines = [fields for name, fields, *_ in GOLDEN if name == task]
    lines = [fields for fields in lines if set(fields) == set(lines[-1])]
    path = put(folder / "data", task, *map(json.dumps, lines))
    (folder / "tasks" / f"{task}.yaml").write_text(
        f"include: {Path(lm_eval.tasks.__file__).parent / form}\ntask: local_{task}\n"
        "tag: null\ntraining_split: null\nvalidation_split: validation\ntest_split: null\n"
        "dataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n    validation: {path}\n{more}")
  return folder


@pytest.fixture(scope="module")
def model(folder):
  return harness.HopeJax(str(folder / "run"), batch_size=4)


def test_our_scores_are_those_of_the_harness(folder, model, monkeypatch):
  monkeypatch.setenv("HF_HOME", str(folder / "cache"))
  tasks = lm_eval.tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
  found = simple_evaluate(model, tasks=[f"local_{task}" for task in FORMS], task_manager=tasks,
                          bootstrap_iters=0, log_samples=True)
  asked = answers.Asked(model.config, model.params, model.tokenizer, memorization.Options(False))
  for task in FORMS:
    rows = [row["baseline"] for row in asked.answer(zeroshot.read(task, str(folder / "data")))]
    theirs = sorted(found["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    assert len(rows) == len(theirs) >= 1
    for row, sample in zip(rows, theirs):
      scores = [float(answer[0]) for answer, in sample["resps"]] if isinstance(
          sample["resps"][0][0], (list, tuple)) else [float(answer[0])
                                                      for answer in sample["resps"]]
      np.testing.assert_allclose(row["log_likelihoods"], scores, rtol=1e-4)
      assert [float(row[metric]) for metric in ("acc", "acc_norm") if metric in sample] == [
          sample[metric] for metric in ("acc", "acc_norm") if metric in sample]
      assert "acc" in sample


def instances(kind, *arguments):
  return [Instance(kind, {}, own, i) for i, own in enumerate(arguments)]


def test_whole_texts_are_streamed(model):
  text = tiny_run.tiny_text(4)
  got, = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
  (together, _), = model.loglikelihood(instances("loglikelihood", ("", text)))
  assert got == pytest.approx(together, rel=1e-4)


def test_what_is_written_ends_where_it_should(model):
  whole, = model.generate_until(instances("generate_until", ("read", {"max_gen_toks": 12})))
  end = whole[len(whole) // 2]
  cut, = model.generate_until(instances("generate_until", (
      "read", {"max_gen_toks": 12, "until": [end]})))
  assert cut == whole[:whole.index(end)]


@pytest.mark.slow
def test_the_program_has_both_ways(folder, monkeypatch):
  monkeypatch.setenv("HF_HOME", str(folder / "cache"))
  values = flags.FlagValues()
  program.define_flags(values)
  def call(*argv):
    program.main(values(["", f"--checkpoint={folder / 'run'}", f"--output={folder / 'out.json'}",
                         f"--include_path={folder / 'tasks'}", "--batch=4", *argv]), values)
    return json.loads((folder / "out.json").read_text())
  result = call("--tasks=local_boolq", "--memorize", "--memorize_paths=titan")
  scores = result["tasks"]["local_boolq"]["scores"]["acc"]
  assert set(scores) == {"baseline", "memorized", "difference"} and list(result["memories"]) == [
      "titan"]
  assert result["memories"]["titan"]["updates"] > 0
  with pytest.raises(SystemExit, match="--tasks=local_bool: neither the harness nor"):
    call("--tasks=local_bool")


@pytest.mark.slow
def test_contexts_are_memorized(folder, model):
  learned = harness.HopeJax(str(folder / "run"), batch_size=4, memorize=True)
  asked = instances("loglikelihood", (tiny_run.tiny_text(3), " read"))
  (before, _), (after, _) = (own.loglikelihood(asked)[0] for own in (model, learned))
  assert abs(before - after) > 1e-4
  with pytest.raises(ValueError, match="model_args: memorise is none of memorize, memorize_"):
    harness.HopeJax(str(folder / "run"), memorise=True)
