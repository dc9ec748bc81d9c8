#!/usr/bin/env bash
# The whole chain on PASCAL VOC 2012: training, localization maps, evaluation. What is complete is skipped, what was stopped goes on.
#
#   bash run_voc.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N]
set -euo pipefail
cd "$(dirname "$0")"

DATASET_ROOT=./VOC2012
RUN_DIR=runs/voc
GPUS=1
while [ $# -gt 0 ]; do
    case "$1" in
        --dataset_root) DATASET_ROOT=${2:?"$1 needs a folder"}; shift 2 ;;
        --run_dir) RUN_DIR=${2:?"run_voc.sh: error: $1 needs a folder"}; shift 2 ;;
        --gpus) GPUS=${2:?"$1 needs a number"}; shift 2 ;;
        -h|--help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "run_voc.sh: error: unknown argument $1; it takes --dataset_root DIR, --run_dir DIR and --gpus N" >&2; exit 2 ;;
    esac
done
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || { echo "run_voc.sh: error: --gpus $GPUS: give a number from 1 up" >&2; exit 2; }
source tool/environment.sh requirements.txt
source tool/chain.sh

missing=0
for below in JPEGImages Annotations SegmentationClass ImageSets/Segmentation/train.txt ImageSets/Segmentation/train_aug.txt; do
    [ -e "$DATASET_ROOT/$below" ] || [ -e "$DATASET_ROOT/VOC2012/$below" ] || [ -e "$DATASET_ROOT/VOCdevkit/VOC2012/$below" ] || {
        echo "run_voc.sh: error: no $below in $DATASET_ROOT (nor in VOC2012 or VOCdevkit/VOC2012 below it)" >&2
        missing=1
    }
done
if [ $missing = 1 ]; then
    cat >&2 <<'HELP'
Get VOC 2012: VOCtrainval_11-May-2012.tar from the PASCAL VOC site (host.robots.ox.ac.uk/pascal/VOC/voc2012), unpacked, and the list
train_aug.txt of 10,582 pictures (SBD train and val and VOC train, less VOC val) in its ImageSets/Segmentation. Then give --dataset_root.
HELP
    exit 2
fi

DATA=(--dataset voc --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR")
launch "$GPUS" train_resnet50_SIPE.py "${DATA[@]}"
launch "$GPUS" make_cam.py "${DATA[@]}"
unless_newer "$RUN_DIR/eval_cam.json" "$RUN_DIR/cam/settings.json" launch 1 eval_cam.py "${DATA[@]}"
