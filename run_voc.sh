#!/usr/bin/env bash
# The whole chain on PASCAL VOC 2012: training, localization maps, IRN, pseudo labels, a segmentation network and its mIoU on val. What is complete
# is skipped, what was stopped goes on.
#
#   bash run_voc.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N] [--refine irn|crf] [--from STAGE] [--until STAGE]
#       [--with STAGE "FLAGS"]...
#
# --until eval_seg stops at the pseudo labels, --from train_seg starts there (see README for all stages).
# --with gives a stage further flags: --with make_cam "--scales 1.0 0.5 --amp bf16"
set -euo pipefail
HERE=$PWD
cd "$(dirname "$0")"
source tool/chain.sh

DATASET=voc
DATASET_ROOT=./VOC2012
RUN_DIR=runs/voc
GPUS=1
REFINE=irn
SEG_EPOCHS=30  # 19,830 steps
read_arguments "$@"

missing=0
needed=(JPEGImages Annotations SegmentationClass ImageSets/Segmentation/train.txt ImageSets/Segmentation/train_aug.txt)
if wanted infer_seg || wanted eval_seg_pred; then needed+=(ImageSets/Segmentation/val.txt); fi
for below in "${needed[@]}"; do
    [ -e "$DATASET_ROOT/$below" ] || [ -e "$DATASET_ROOT/VOC2012/$below" ] || [ -e "$DATASET_ROOT/VOCdevkit/VOC2012/$below" ] || {
        echo "run_voc.sh: error: no $below in $DATASET_ROOT (nor in VOC2012 or VOCdevkit/VOC2012 below it)" >&2
        missing=1
    }
done
if [ $missing = 1 ]; then
    cat >&2 <<'HELP'
python data/prepare_voc.py --root DIR --download gets all of it (VOCtrainval_11-May-2012.tar and SBD) and makes train_aug.txt; without --download it
takes archives that are already in DIR. Then give --dataset_root DIR.
HELP
    exit 2
fi
source tool/environment.sh requirements.txt
run_stages 1 val
