# Sourced by the run_*.sh scripts: how they read their arguments and start their stages.

value() {  # value FLAG [VALUE...]: the flag's value
    [ $# -gt 1 ] && echo "$2" || { echo "$(basename "$0"): error: $1 needs a value" >&2; return 2; }
}

complain() {  # complain MESSAGE: end the chain with one line
    echo "$(basename "$0"): error: $1" >&2
    exit 2
}

show_help() {  # the comment at the top of the script
    sed -n -e '/^set/q' -e '2,$s/^# \{0,1\}//p' "$(basename "$0")"
    exit 0
}

absolute() {  # a path as given where the command was called
    case $1 in
        /*) echo "$1" ;;
        *) echo "$HERE/$1" ;;
    esac
}

STAGES="train_resnet50_SIPE make_cam eval_cam make_ir_labels train_irn make_seg_labels eval_seg train_seg infer_seg eval_seg_pred"
FROM=${STAGES%% *}
UNTIL=${STAGES##* }

check_stage() {  # check_stage FLAG STAGE: end the chain where there is no such stage
    [[ $2 != *" "* && " $STAGES " == *" $2 "* ]] || complain "$1 $2: no such stage; there are $STAGES"
}

wanted() {  # wanted STAGE: does it lie between --from and --until?
    [[ " ${STAGES%%"$FROM"*}" != *" $1 "* && "${STAGES#*"$UNTIL"} " != *" $1 "* ]]
}

read_arguments() {  # read_arguments "$@": change DATASET_ROOT, RUN_DIR, GPUS, REFINE, FROM and UNTIL; note the further flags of stages
    local flags
    unset $(printf 'FLAGS_%s ' $STAGES)
    while [ $# -gt 0 ]; do
        case "$1" in
            --dataset_root) DATASET_ROOT=$(value "$@") ;;
            --run_dir) RUN_DIR=$(value "$@") ;;
            --gpus) GPUS=$(value "$@") ;;
            --refine) REFINE=$(value "$@") ;;
            --from) FROM=$(value "$@"); check_stage --from "$FROM" ;;
            --until) UNTIL=$(value "$@"); check_stage --until "$UNTIL" ;;
            --with)
                [ $# -gt 2 ] || complain "--with takes a stage and its flags in quotes"
                check_stage --with "$2"
                flags=FLAGS_$2
                printf -v "$flags" %s "${!flags-} $3"
                shift
                ;;
            -h|--help) show_help ;;
            *) complain "unknown argument $1; see --help" ;;
        esac
        shift 2
    done
    [[ $GPUS =~ ^(1|2|4|8|16)$ ]] || complain "--gpus $GPUS: the batch of 16 is shared by 1, 2, 4, 8 or 16 GPUs"
    [[ $REFINE =~ ^(irn|crf)$ ]] || complain "--refine $REFINE: labels are refined by irn or crf"
    wanted "$FROM" || complain "--from $FROM: comes after --until $UNTIL; the order is $STAGES"
    [ -n "$DATASET_ROOT" ] || complain "give --dataset_root DIR"
    DATASET_ROOT=$(absolute "$DATASET_ROOT")
    RUN_DIR=$(absolute "$RUN_DIR")
}

launch() {  # launch PROCESSES STAGE ARGUMENT...: a stage, if it is wanted, by one process, or by torchrun with one process a GPU
    local script=${2%_pred}.py flags=FLAGS_$2 more
    wanted "$2" || return 0
    read -ra more <<<"${!flags-}"
    echo "== $2"
    if [ "$1" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$1" "$script" "${@:3}" ${more[@]+"${more[@]}"}
    else
        "$PYTHON" "$script" "${@:3}" ${more[@]+"${more[@]}"}
    fi
}

announce() {  # announce PICTURES KILOBYTES SECONDS: what the published settings cost with the CRF, from what a picture takes on 2 CPU cores
    local gigabytes=$(($1 * $2 / 1000000)) minutes=$(($1 * $3 / 60)) folder=$RUN_DIR
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    echo "$1 pictures. At the published settings (--with changes them): 5 epochs of batches of 16, crops of 512 ($(($1 / 16 * 5)) steps), maps at 4 scales, labels by $REFINE"
    echo "disk: $((gigabytes + 1)) GB in $RUN_DIR ($2 KB a picture, and checkpoints), where $(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1e6)}') GB are free"
    echo "time: $((minutes / 60)) hours $((minutes % 60)) minutes on 2 CPU cores ($3 s a picture, up to the labels of the dense CRF); not measured on a GPU: the bars tell after a minute"
    if wanted train_seg; then
        echo "then a segmentation network: $(($1 / 16 * SEG_EPOCHS)) steps of 16 crops, not in this time and for GPUs; --until eval_seg stops before it"
    fi
}

run_stages() {  # run_stages EVALUATE LIST: all stages, the evaluations only where EVALUATE is 1, as they need masks; LIST: for the last two
    local data=(--dataset "$DATASET" --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR") labelling=1  # the CRF takes CPU cores only
    launch "$GPUS" train_resnet50_SIPE "${data[@]}"
    launch "$GPUS" make_cam "${data[@]}"
    if [ "$1" = 1 ]; then launch 1 eval_cam "${data[@]}"; fi
    if [ "$REFINE" = irn ]; then
        launch 1 make_ir_labels "${data[@]}"
        launch "$GPUS" train_irn "${data[@]}"
        labelling=$GPUS
    fi
    launch "$labelling" make_seg_labels "${data[@]}" --refine "$REFINE"
    if [ "$1" = 1 ]; then launch 1 eval_seg "${data[@]}"; fi
    launch "$GPUS" train_seg "${data[@]}" --max_epochs "$SEG_EPOCHS"
    launch "$GPUS" infer_seg "${data[@]}" --list "$2"
    if [ "$1" = 1 ]; then launch 1 eval_seg_pred "${data[@]}" --list "$2" --label_dir "$RUN_DIR/seg_pred"; fi
}
