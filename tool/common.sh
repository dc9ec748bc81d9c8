# Sourced by the run_*.sh scripts: their arguments, and how a stage is started. set_up.sh finds Python.
HERE=$PWD
cd "$(dirname "$0")"
STAGES="train_resnet50_SIPE make_cam eval_cam make_ir_labels train_irn make_seg_labels eval_seg train_seg infer_seg eval_seg_pred report"
FROM=train_resnet50_SIPE UNTIL=report RECIPE=
for stage in $STAGES; do printf -v "FLAGS_$stage" %s ""; done

fail() {  # fail MESSAGE: end the script with one line
    echo "$(basename "$0"): error: $1" >&2
    exit 2
}

warn() {  # warn MESSAGE: one line
    echo "$(basename "$0"): warning: $1" >&2
}

absolute() {  # absolute PATH: relative paths start where the script was called
    case $1 in /*) echo "$1" ;; *) echo "$HERE/$1" ;; esac
}

check_stage() {  # check_stage FLAG STAGE
    [[ $2 != *" "* && " $STAGES " == *" $2 "* ]] || fail "$1 $2: no such stage; the stages are $STAGES"
}

is_wanted() {  # is_wanted STAGE: is it between --from and --until?
    [[ " ${STAGES%%"$FROM"*}" != *" $1 "* && "${STAGES#*"$UNTIL"} " != *" $1 "* ]]
}

read_flags() {  # read_flags "name|name" "$@": --name VALUE sets NAME, --with STAGE FLAGS adds to FLAGS_STAGE
    local names=$1 name; shift
    while [ $# -gt 0 ]; do
        if [[ $1 =~ ^(-h|--help)$ ]]; then sed -n -e '/^set/q' -e '2,$s/^# \{0,1\}//p' "$(basename "$0")"; exit 0; fi
        [[ $1 =~ ^--($names)$ ]] || fail "unknown argument $1; see --help"
        [ $# -gt 1 ] || fail "$1 needs a value"
        name=$(tr a-z A-Z <<<"${1#--}")
        if [ "$1" = --with ]; then
            [ $# -gt 2 ] || fail "--with takes a stage and its flags in quotes"
            check_stage "$@"
            name=FLAGS_$2
            set -- "$1" "${!name} $3" "${@:4}"
        fi
        printf -v "$name" %s "$2"
        shift 2
    done
}

read_chain_flags() {  # read_chain_flags "$@": the flags that all chains share, checked
    read_flags "dataset_root|run_dir|gpus|recipe|refine|from|until|with" "$@"
    check_stage --from "$FROM"; check_stage --until "$UNTIL"
    is_wanted "$FROM" || fail "--from $FROM comes after --until $UNTIL; the order is $STAGES"
    [[ $GPUS =~ ^(1|2|4|8|16)$ ]] || fail "--gpus $GPUS: 1, 2, 4, 8 or 16 GPUs share the batch of 16"
    [[ $REFINE =~ ^(irn|crf)$ ]] || fail "--refine $REFINE: irn or crf refines the labels"
    [[ $RECIPE =~ ^(sipe|plus|)$ ]] || fail "--recipe $RECIPE: use sipe or plus"
    [ -n "$DATASET_ROOT" ] || fail "give --dataset_root DIR"
    DATASET_ROOT=$(absolute "$DATASET_ROOT") RUN_DIR=$(absolute "$RUN_DIR")
    if [ "$REFINE" = irn ]; then REFINE_GPUS=$GPUS; else REFINE_GPUS=1; fi  # the CRF takes CPU cores only
}

require() {  # require ADVICE FILE...: end the script if a file is missing below DATASET_ROOT
    local file
    for file in "${@:2}"; do [ -e "$DATASET_ROOT/$file" ] || fail "no $file in $DATASET_ROOT; $1"; done
}

check_gpus() {  # once: end the script if PyTorch can use fewer GPUs than --gpus asks for
    local flags
    if [ "${GPUS:-1}" = 1 ] || [ -n "${GPUS_ARE_CHECKED:-}" ]; then return; fi
    GPUS_ARE_CHECKED=yes
    flags=$(for stage in $STAGES; do name=FLAGS_$stage; echo " ${!name} "; done)
    if [[ $flags == *" --device cpu "* ]]; then return; fi
    "$PYTHON" -m tool.gpus "$GPUS" || exit 2
}

launch() {  # launch PROCESSES STAGE FLAG...: run a stage if it is wanted, by torchrun if it takes several processes (one for each GPU)
    local command=("${2%_pred}.py" "${@:3}") more=FLAGS_$2
    is_wanted "$2" || return 0
    check_gpus
    read -ra more <<<"${!more}"
    echo "== $2"
    if [ "$1" -gt 1 ]; then command=(-m torch.distributed.run --standalone --nproc_per_node "$1" "${command[@]}"); fi
    "$PYTHON" "${command[@]}" ${more[@]+"${more[@]}"}
}

source tool/set_up.sh
