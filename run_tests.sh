#!/usr/bin/env bash
# Set up what is missing, then check the style and run the tests. Arguments go to pytest: bash run_tests.sh -k seeds
set -euo pipefail
cd "$(dirname "$0")"
source tool/environment.sh requirements.txt requirements-dev.txt
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
