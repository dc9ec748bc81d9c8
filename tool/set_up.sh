# Sourced by common.sh: the Python environment that a script runs in, and how it is made.
# The caller may name the interpreter (PYTHON) and the folder of the environment (VENV).
REQUESTED_PYTHON=${PYTHON:-}
INTERPRETER=${REQUESTED_PYTHON:-python3}
if [[ $INTERPRETER == */* ]]; then INTERPRETER=$(absolute "$INTERPRETER"); fi
VENV=${VENV:-.venv}
VENV_PYTHON=$VENV/bin/python
PIP_LOG=$VENV/pip.log
CRF_FILE=requirements-crf.txt
PROGRESS_SECONDS=${PROGRESS_SECONDS:-20}
NAME_ANOTHER="name another: PYTHON=python3.12 bash $(basename "$0")"

set_up() {  # set_up FILE...: sets PYTHON to one with these requirements and, if possible, the CRF
    if [ -n "$REQUESTED_PYTHON" ]; then check_interpreter; fi
    if find_environment has_crf "$@"; then return; fi
    if ! find_environment true "$@"; then
        install_requirements "$@"
        PYTHON=$VENV_PYTHON
    fi
    if ! install_crf; then
        warn "there is no dense CRF for --refine crf, --refine irn and --crf: $PROBLEM"
        return
    fi
    PYTHON=$VENV_PYTHON
    if ! has_requirements "$PYTHON" "$@"; then install_requirements "$@"; fi
}

check_interpreter() {  # end the script if INTERPRETER cannot be used
    local version
    version=$(version_of "$INTERPRETER") ||
        fail "$INTERPRETER does not run; install Python 3.10 or newer, or $NAME_ANOTHER"
    is_supported "$INTERPRETER" ||
        fail "$INTERPRETER is Python $version, but 3.10 or newer is needed; $NAME_ANOTHER"
}

version_of() {  # version_of PYTHON: print 3.12, for example; fails if PYTHON does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_supported() {  # is_supported PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))'
}

find_environment() {  # find_environment CHECK FILE...: sets PYTHON to one that passes CHECK
    local check=$1 candidates=("$INTERPRETER")
    shift
    if is_venv_as_requested; then candidates+=("$VENV_PYTHON"); fi
    for PYTHON in "${candidates[@]}"; do
        if has_requirements "$PYTHON" "$@" && "$check" "$PYTHON"; then return 0; fi
    done
    return 1
}

is_venv_as_requested() {  # has VENV the version of the Python that the caller named, if any?
    if [ -z "$REQUESTED_PYTHON" ]; then return; fi
    [ "$(version_of "$VENV_PYTHON")" = "$(version_of "$INTERPRETER")" ]
}

has_requirements() {  # has_requirements PYTHON FILE...: their lines are name>=1.2 or name==1.2.*
    command -v "$1" >/dev/null && "$1" - "${@:2}" >/dev/null 2>&1 <<'PY'
import re
import sys
from importlib.metadata import version


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def require(condition):  # assert would do nothing under PYTHONOPTIMIZE
    if not condition:
        sys.exit(1)


require(sys.version_info >= (3, 10))
for file in sys.argv[1:]:
    for name, operator, wanted in re.findall(r"^([\w-]+)([>=]=)([\d.]+)", open(file).read(), re.M):
        have = numbers(version(name))
        want = numbers(wanted)
        if operator == ">=":
            require(have >= want)
        else:
            require(have[: len(want)] == want)
PY
}

has_crf() {  # has_crf PYTHON
    "$1" -c 'import pydensecrf.densecrf' 2>/dev/null
}

make_venv() {  # make VENV if there is none; sets PROBLEM if that fails
    local version
    if "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        if is_supported "$VENV_PYTHON" && is_venv_as_requested; then return; fi
        check_interpreter
        version=$(version_of "$INTERPRETER")
        PROBLEM="$VENV has Python $(version_of "$VENV_PYTHON"), not $version; "
        PROBLEM+="delete $VENV, or name another folder: VENV=.venv-$version"
        return 1
    fi
    check_interpreter
    if "$INTERPRETER" -m venv "$VENV" && version_of "$VENV_PYTHON" >/dev/null; then return; fi
    PROBLEM="$INTERPRETER -m venv $VENV failed; install venv (Debian: python3-venv), delete $VENV"
    return 1
}

install_requirements() {  # install_requirements FILE...: into VENV; ends the script if that fails
    local arguments=() file
    for file in "$@"; do arguments+=(-r "$file"); done
    make_venv || fail "$PROBLEM"
    echo "installing the requirements into $VENV (once, a few minutes)"
    run_pip "${arguments[@]}" || explain_failure
}

explain_failure() {  # end the script with what pip's log says
    local version nothing="No matching distribution|ResolutionImpossible"
    version=$(version_of "$VENV_PYTHON")
    if grep -q "after connection broken" "$PIP_LOG" && grep -q -E "$nothing" "$PIP_LOG"; then
        fail "pip cannot reach the package index; $PIP_LOG has all that it says"
    fi
    if grep -q "No matching distribution found for torch" "$PIP_LOG"; then
        fail "PyTorch has no wheel for Python $version here; delete $VENV and $NAME_ANOTHER"
    fi
    tail -n 8 "$PIP_LOG" | cut -c 1-200 | sed 's/^/    /' >&2
    fail "pip could not install the requirements; $PIP_LOG has all that it says"
}

install_crf() {  # into VENV; sets PROBLEM if that fails
    local builder=$VENV_PYTHON
    version_of "$builder" >/dev/null || builder=$INTERPRETER
    if ! has_headers "$builder"; then
        PROBLEM="Python.h is missing; install it (Debian: python$(version_of "$builder")-dev)"
        PROBLEM+=" and run this again"
        return 1
    fi
    make_venv || return
    echo "compiling the dense CRF into $VENV (once, one or two minutes)"
    find_compiler || return
    if ! run_pip -c "$CRF_FILE" cython setuptools || ! compile_crf; then
        PROBLEM="pydensecrf2 cannot be built ($(first_error)); $PIP_LOG has all that pip says"
        return 1
    fi
    if has_crf "$VENV_PYTHON"; then return; fi
    PROBLEM="pydensecrf2 was built, but cannot be imported; see $VENV_PYTHON -m pydensecrf.densecrf"
    return 1
}

has_headers() {  # has_headers PYTHON
    local path='import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
    "$1" -c "$path" 2>/dev/null
}

find_compiler() {  # sets ZIG to the compiler of PyPI's ziglang if there is no other
    local path='import os, ziglang; print(os.path.dirname(ziglang.__file__) + "/zig")'
    ZIG=
    if [ -n "${CXX:-}" ] || command -v c++ >/dev/null; then return; fi
    echo "there is no C++ compiler, so PyPI's ziglang compiles"
    if run_pip ziglang; then
        ZIG=$("$VENV_PYTHON" -c "$path")
        return
    fi
    PROBLEM="there is no C++ compiler; install one (Debian: g++) and run this again"
    return 1
}

compile_crf() {  # without the cache: what another environment compiled need not fit this one
    local arguments=(--no-cache-dir --no-build-isolation -r "$CRF_FILE")
    if [ -n "$ZIG" ]; then
        CC="$ZIG cc" CXX="$ZIG c++" run_pip "${arguments[@]}"
    else
        run_pip "${arguments[@]}"
    fi
}

first_error() {  # print the first line of pip's log that names an error; pip's own heading does not
    grep -E '(^|[^[:alpha:]])(error|ERROR):' "$PIP_LOG" | grep -v 'error: subprocess-exited' |
        head -n 1 | sed 's/^ *//' | cut -c 1-160
}

run_pip() {  # run_pip ARGUMENT...: install into VENV, and print a line every 20 seconds
    local progress status=0
    : >"$PIP_LOG"
    show_progress &
    progress=$!
    "$VENV_PYTHON" -m pip install --disable-pip-version-check --progress-bar off "$@" \
        >"$PIP_LOG" 2>&1 || status=$?
    kill "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    return "$status"
}

show_progress() {  # print the time, the size of VENV, and what pip does, while the script runs
    local start=$SECONDS seconds size
    while sleep "$PROGRESS_SECONDS" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        seconds=$((SECONDS - start))
        size=$(du -sh "$VENV" 2>/dev/null | cut -f 1) || true
        printf '  %d:%02d  %s  %s\n' $((seconds / 60)) $((seconds % 60)) "$size" "$(last_step)"
    done
}

last_step() {  # print what pip's log says last, without the list of packages after a colon
    grep -E '^ *(Collecting|Downloading|Building|Installing) ' "$PIP_LOG" | tail -n 1 |
        sed -e 's/^ *//' -e 's/:.*//' | cut -c 1-70 || true
}
