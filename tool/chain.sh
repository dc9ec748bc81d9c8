# Sourced by the run_*.sh scripts: how they read their arguments and start their stages.

value() {  # value FLAG [VALUE...]: the flag's value
    [ $# -gt 1 ] && echo "$2" || { echo "$(basename "$0"): error: $1 needs a value" >&2; return 2; }
}

launch() {  # launch PROCESSES SCRIPT ARGUMENT...: one process, or torchrun with one process a GPU
    echo "== $2"
    if [ "$1" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$1" "${@:2}"
    else
        "$PYTHON" "${@:2}"
    fi
}

absolute() {  # a path as given where the command was called
    case $1 in
        /*) echo "$1" ;;
        *) echo "$HERE/$1" ;;
    esac
}
