#!/usr/bin/env bash
# The whole chain on MS COCO 2014: training, localization maps, pseudo labels by the dense CRF (or IRN), a segmentation network and its mIoU on val.
# What is complete is skipped, what was stopped goes on.
#
#   bash run_coco.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N] [--refine crf|irn] [--from STAGE] [--until STAGE]
#       [--with STAGE "FLAGS"]...
#
# --until eval_seg stops at the pseudo labels, --from train_seg starts there (see README for all stages).
# --with gives a stage further flags: --with make_cam "--scales 1.0 0.5 --amp bf16"
set -euo pipefail
HERE=$PWD
cd "$(dirname "$0")"
source tool/chain.sh

DATASET=coco
DATASET_ROOT=./COCO2014
RUN_DIR=runs/coco
GPUS=1
REFINE=crf
SEG_EPOCHS=12  # 61,560 steps
read_arguments "$@"

needed=(train2014 train.txt tags.csv masks)
if wanted infer_seg || wanted eval_seg_pred; then needed+=(val2014 val.txt); fi
for below in "${needed[@]}"; do
    [ -e "$DATASET_ROOT/$below" ] || complain "no $below in $DATASET_ROOT; put COCO's zips or folders there and run python data/prepare_coco.py --root DIR"
done
announce "$(wc -l <"$DATASET_ROOT/train.txt")" 100 15
source tool/environment.sh requirements.txt
run_stages 1 val
