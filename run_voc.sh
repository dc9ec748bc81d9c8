#!/usr/bin/env bash
# The whole chain on PASCAL VOC 2012: training, localization maps, IRN, pseudo labels. What is complete is skipped, what was stopped goes on.
#
#   bash run_voc.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N]
set -euo pipefail
HERE=$PWD
cd "$(dirname "$0")"
source tool/chain.sh

DATASET_ROOT=./VOC2012
RUN_DIR=runs/voc
GPUS=1
while [ $# -gt 0 ]; do
    case "$1" in
        --dataset_root) DATASET_ROOT=$(value "$@"); shift 2 ;;
        --run_dir) RUN_DIR=$(value "$@"); shift 2 ;;
        --gpus) GPUS=$(value "$@"); shift 2 ;;
        -h|--help) sed -n '2,4s/^# \{0,1\}//p' run_voc.sh; exit 0 ;;
        *) echo "run_voc.sh: error: unknown argument $1; it takes --dataset_root DIR, --run_dir DIR and --gpus N" >&2; exit 2 ;;
    esac
done
[[ $GPUS =~ ^(1|2|4|8|16)$ ]] || { echo "run_voc.sh: error: --gpus $GPUS: the batch of 16 is shared by 1, 2, 4, 8 or 16 GPUs" >&2; exit 2; }
DATASET_ROOT=$(absolute "$DATASET_ROOT")
RUN_DIR=$(absolute "$RUN_DIR")

missing=0
for below in JPEGImages Annotations SegmentationClass ImageSets/Segmentation/train.txt ImageSets/Segmentation/train_aug.txt; do
    [ -e "$DATASET_ROOT/$below" ] || [ -e "$DATASET_ROOT/VOC2012/$below" ] || [ -e "$DATASET_ROOT/VOCdevkit/VOC2012/$below" ] || {
        echo "run_voc.sh: error: no $below in $DATASET_ROOT (nor in VOC2012 or VOCdevkit/VOC2012 below it)" >&2
        missing=1
    }
done
if [ $missing = 1 ]; then
    cat >&2 <<'HELP'
How to get it: VOCtrainval_11-May-2012.tar from the PASCAL VOC site (host.robots.ox.ac.uk/pascal/VOC/voc2012), unpacked; and, with SBD's train.txt
and val.txt, its list of 10,582 pictures:
  cd VOCdevkit/VOC2012/ImageSets/Segmentation
  sort -u SBD/train.txt SBD/val.txt train.txt | comm -23 - <(sort val.txt) > train_aug.txt
Then give --dataset_root .../VOCdevkit/VOC2012.
HELP
    exit 2
fi

source tool/environment.sh requirements.txt
DATA=(--dataset voc --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR")
launch "$GPUS" train_resnet50_SIPE.py "${DATA[@]}"
launch "$GPUS" make_cam.py "${DATA[@]}"
launch 1 eval_cam.py "${DATA[@]}"
launch 1 make_ir_labels.py "${DATA[@]}"
launch "$GPUS" train_irn.py "${DATA[@]}"
launch "$GPUS" make_seg_labels.py "${DATA[@]}" --refine irn
launch 1 eval_seg.py "${DATA[@]}"
