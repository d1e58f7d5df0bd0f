"""EleutherAI's harness, which knows a model by the name of hope_jax; all its own options.

    python evals/harness.py run --model hope_jax --model_args checkpoint=runs/smollm --tasks piqa
    python evals/harness.py run --model hope_jax --include_path tasks/ --tasks of_my_own \\
        --model_args checkpoint=runs/online,memorize=True

Needs hope_jax[harness]. `hope_jax/scoring/harness.py` says what model_args may hold.
"""

import sys


def main():
  try:
    from lm_eval.__main__ import cli_evaluate
    from hope_jax.scoring import harness  # noqa: F401  registers the name
  except ImportError as error:
    sys.exit(f"ImportError: {error}; pip install 'hope_jax[harness]'")
  cli_evaluate()


if __name__ == "__main__":
  main()
