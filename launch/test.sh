#!/usr/bin/env bash
# All tests, in an environment of their own. Fast ones alone: bash launch/test.sh -m 'not slow'
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
python -m pytest "$@"
