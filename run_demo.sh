#!/usr/bin/env bash
# The main job on pictures that the project draws itself: set-up, training, localization maps, refined labels, in minutes on a CPU.
#
#   bash run_demo.sh [--run_dir DIR] [--seed N]
set -euo pipefail
HERE=$PWD
cd "$(dirname "$0")"
source tool/chain.sh

RUN_DIR=
SEED=15
while [ $# -gt 0 ]; do
    case "$1" in
        --run_dir) RUN_DIR=$(value "$@"); shift 2 ;;
        --seed) SEED=$(value "$@"); shift 2 ;;
        -h|--help) show_help ;;
        *) complain "unknown argument $1; it takes --run_dir DIR and --seed N" ;;
    esac
done
[[ $SEED =~ ^[0-9]+$ ]] || complain "--seed $SEED: give a whole number"
source tool/environment.sh requirements.txt
if [ -n "$RUN_DIR" ]; then RUN_DIR=$(absolute "$RUN_DIR"); else RUN_DIR=$PWD/runs/demo_seed$SEED; fi

mkdir -p runs
"$PYTHON" -m data.draw_demo runs/demo_data --pictures 180 --size 256
[ -s runs/resnet50_imagenet.pth ] || "$PYTHON" -m tool.imagenet_weights runs/resnet50_imagenet.pth

DATA=(--dataset folder --dataset_root runs/demo_data --run_dir "$RUN_DIR")
launch 1 train_resnet50_SIPE "${DATA[@]}" --weights runs/resnet50_imagenet.pth --seed "$SEED" \
    --max_epochs 3 --crop_size 192 --resize_long 160 256 --log_every 5
launch 1 make_cam "${DATA[@]}" --scales 1.0 0.5
launch 1 eval_cam "${DATA[@]}"
launch 1 make_seg_labels "${DATA[@]}" --refine crf
launch 1 eval_seg "${DATA[@]}"
echo "the pictures: $PWD/runs/demo_data/images"
echo "CAM and IS-CAM beside the truth: $RUN_DIR/eval_cam_sheet.png; the refined labels: $RUN_DIR/eval_seg_label_sheet.png"
echo "the training: $PYTHON -m tensorboard.main --logdir $RUN_DIR"
