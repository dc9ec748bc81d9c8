# Sourced by the run_*.sh scripts: how they start their stages.

launch() {  # launch PROCESSES SCRIPT ARGUMENT...: one process, or torchrun with one process a GPU
    echo "== $2"
    if [ "$1" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$1" "${@:2}"
    else
        "$PYTHON" "${@:2}"
    fi
}

unless_newer() {  # unless_newer OUTPUT INPUT COMMAND...: skip the command where its output is newer than what it reads
    if [ "$1" -nt "$2" ]; then
        echo "== $1 is complete"
    else
        "${@:3}"
    fi
}
