# Sourced by the run_*.sh scripts: how they start their stages.

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
