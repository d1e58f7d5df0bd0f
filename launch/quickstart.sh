#!/usr/bin/env bash
# From nothing but Python 3.11 to a trained model that writes: environment, corpus, tokenizer, training, a sample.
#   bash launch/quickstart.sh [workdir]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=${1:-runs/smoke}
source launch/environment.sh

python -m hope_jax.launch --config=configs/smoke.py --workdir="$workdir"
echo
echo "A continuation of 'def read(self):'"
python -m hope_jax.generate --checkpoint="$workdir" --prompt="def read(self):" --tokens=120 --temperature=0.7
cat <<EOF

Everything is in $workdir:
  metrics.jsonl   every interval and evaluation      tb/             the same for TensorBoard
  checkpoints/    the last steps                     config.json     what was run
  tokenizer.model                                    runs/data/      the tokenised corpus
Start the same command again to go on; more text: python -m hope_jax.generate --checkpoint=$workdir --interactive
EOF
