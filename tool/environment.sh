# Sourced by the run_*.sh scripts: sets PYTHON to an interpreter that holds the requirements files given as arguments. It is the
# active environment's if that one holds them, else .venv's, which is made and filled where needed.

holds() {  # holds PYTHON FILE...: does this interpreter have all that the files ask for?
    command -v "$1" >/dev/null 2>&1 && "$1" - "${@:2}" >/dev/null 2>&1 <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

for file in sys.argv[1:]:
    for line in Path(file).read_text().splitlines():
        if line.strip() and not line.startswith(("#", "-")):
            requirement = Requirement(line)
            assert requirement.specifier.contains(version(requirement.name), prereleases=True)
PY
}

if holds python3 "$@"; then
    PYTHON=python3
else
    PYTHON=.venv/bin/python
    if ! holds "$PYTHON" "$@"; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed as python3" >&2; exit 2; }
        echo "installing the requirements into .venv (once, some minutes)"
        [ -x "$PYTHON" ] || python3 -m venv .venv || { echo "error: python3 -m venv failed; install Python's venv module (Debian: python3-venv)" >&2; exit 2; }
        "$PYTHON" -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    fi
fi
