#!/usr/bin/env bash
# Style and tests. Arguments go to pytest: bash run_tests.sh -k seeds; bash run_tests.sh -m slow runs the slow tests.
set -euo pipefail
source "$(dirname "$0")/tool/common.sh"
set_up requirements.txt requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # for two processes on two cores
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
