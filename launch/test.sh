#!/usr/bin/env bash
# The tests, in an environment of their own. Fast ones alone: -m 'not slow and not nightly';
# every case of every law: -m ''
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
python -m pytest "$@"
