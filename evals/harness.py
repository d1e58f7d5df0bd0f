"""Tasks of EleutherAI's harness, `lm_eval`, its own or yours: baseline and memorized.

    python evals/harness.py --checkpoint=runs/smollm --tasks=piqa,arc_easy --output=harness.json
    python evals/harness.py --checkpoint=runs/online --include_path=tasks/ --tasks=of_my_own \\
        --memorize --output=harness.json

The harness makes the requests and counts the answers; the model is `hope_jax` of
`hope_jax/scoring/harness.py`, which its own functions find by that name, too, once that file is
imported. Data come from where a task's file says: the hub, or files (dataset_path: json). Needs
hope_jax[harness].
"""

from absl import app, flags

from hope_jax.reports import tables
from hope_jax.runtime import program, startup
from hope_jax.scoring import intervals, memorization, results

KINDS = ("baseline", "memorized")


def options(f: flags.FlagValues) -> dict:
  """The options of memorization that were given, as model_args."""
  def text(value):
    return ",".join(value) if isinstance(value, list) else value
  return {name: text(f[name].value) for name in f
          if name.startswith("memorize") and not f[name].using_default_value}


def evaluate(f: flags.FlagValues) -> dict:
  """All that the file holds but its date and command."""
  try:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from hope_jax.scoring import harness
  except ImportError as error:
    raise ValueError(f"{error}: pip install 'hope_jax[harness]'") from None
  manager, found, models = TaskManager(include_path=f.include_path), {}, {}
  if unknown := [name for name in f.tasks if name not in manager.all_tasks]:
    raise ValueError(f"--tasks={unknown[0]}: neither the harness nor --include_path has it")
  for kind, given in zip(KINDS[:1 + f.memorize], ({}, options(f))):
    models[kind] = harness.HopeJax(f.checkpoint, f.batch, **given)
    found[kind] = simple_evaluate(models[kind], tasks=f.tasks, task_manager=manager,
                                  num_fewshot=f.examples, limit=f.max_samples or None,
                                  bootstrap_iters=0, random_seed=f.seed,
                                  fewshot_random_seed=f.seed)["samples"]
  last = models[KINDS[f.memorize]]
  return results.of_model(last.config, last.params, last.tokenizer.digest) | last.how.facts() | {
      "checkpoint": f.checkpoint, "seed": f.seed, "examples": f.examples,
      "tasks": {name: task(*(own[name] for own in found.values()), seed=f.seed)
                for name in found["baseline"]},
      "memories": results.memories(last.did) if last.did else {}}


def task(baseline: list[dict], memorized: list[dict] | None = None, *, seed: int) -> dict:
  """{metric: scores} of the harness' samples, for metrics that are means of numbers."""
  rows = [sorted(own, key=lambda sample: sample["doc_id"])
          for own in (baseline, memorized) if own is not None]
  metrics = [name for name in baseline[0]["metrics"]
             if isinstance(baseline[0].get(name), (int, float))]
  columns = {name: [[float(sample[name]) for sample in own] for own in rows] for name in metrics}
  return {"samples": len(baseline), "scores": {
      name: intervals.with_and_without(own[0], own[1] if len(own) > 1 else None, seed)
      for name, own in columns.items()}}


def show(result: dict) -> str:
  """A row for each task and metric."""
  ways = list(dict.fromkeys(way for own in result["tasks"].values()
                            for entry in own["scores"].values() for way in entry))
  return "\n".join([
      tables.markdown(["task", "", "samples", *ways],
                      [[name, metric, own["samples"], *(tables.score(entry[way]) for way in ways)]
                       for name, own in result["tasks"].items()
                       for metric, entry in own["scores"].items()]),
      tables.memories(result["memories"], "context")])


def define_flags(values: flags.FlagValues) -> None:
  for name, about in (("checkpoint", "Folder of a run."), ("output", "All numbers, as JSON.")):
    program.define_path(name, about, flag_values=values, required=True)
  flags.DEFINE_list("tasks", None, "Names of the harness.", flag_values=values, required=True)
  program.define_path("include_path", "Folder with tasks of your own, as the harness has them.",
                      flag_values=values)
  flags.DEFINE_integer("examples", None, "Shown before each question. Default: as the task says.",
                       lower_bound=0, flag_values=values)
  flags.DEFINE_integer("max_samples", 0, "Questions of each task, the first ones; 0: all.",
                       lower_bound=0, flag_values=values)
  flags.DEFINE_integer("batch", None, "Prompts at a time. Default: as many as fit.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the examples and of the intervals.", lower_bound=0,
                       flag_values=values)
  memorization.define_options(values)


def main(argv, f: flags.FlagValues = flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas")
  with program.one_line(ValueError, OSError, RuntimeError, FloatingPointError):
    startup.prepare()
    output, result = results.ready(f.output), evaluate(f)
    print(show(result))
    results.write(output, results.stamp("evals/harness.py"), result)


if __name__ == "__main__":
  program.start(main, define_flags)
