# Sourced by the run_*.sh scripts: sets PYTHON to an interpreter that holds the requirements files given as arguments. It is the
# active environment's if that one holds them, else .venv's, which is made and filled where needed.

holds() {  # holds PYTHON FILE...: is this Python new enough, and has it all that the files ask for (lines like name>=1.2 or name==1.2.*)?
    command -v "$1" >/dev/null 2>&1 && "$1" - "${@:2}" >/dev/null 2>&1 <<'PY'
import re
import sys
from importlib.metadata import version


def numbers(text):
    return [int(number) for number in re.match(r"\d+(\.\d+)*", text)[0].split(".")]


assert sys.version_info >= (3, 10)
for file in sys.argv[1:]:
    for line in open(file).read().split():
        wanted = re.fullmatch(r"([\w-]+)(>=|==)([\d.]+?)(\.\*)?", line)
        if wanted:
            have, want = numbers(version(wanted[1])), numbers(wanted[3])
            assert have >= want if wanted[2] == ">=" else have[: len(want)] == want
PY
}

if holds python3 "$@"; then
    PYTHON=python3
else
    PYTHON=.venv/bin/python
    if ! holds "$PYTHON" "$@"; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed as python3" >&2; exit 2; }
        echo "installing the requirements into .venv (once, some minutes)"
        "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null 2>&1 || python3 -m venv .venv || {
            echo "error: python3 -m venv failed; install Python's venv module (Debian: python3-venv)" >&2
            exit 2
        }
        if ! "$PYTHON" -c 'import pydensecrf' 2>/dev/null; then  # it comes as source
            "$PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' || {
                echo "error: pydensecrf2 is built here and needs Python's headers; install them (Debian: python3-dev)" >&2
                exit 2
            }
            if [ -z "${CXX:-}" ] && ! command -v c++ >/dev/null 2>&1; then  # no C++ compiler: PyPI's ziglang has one
                "$PYTHON" -m pip install --quiet --disable-pip-version-check ziglang
                zig=$("$PYTHON" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')
                export CC="$zig cc" CXX="$zig c++"
            fi
        fi
        "$PYTHON" -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
    fi
fi
