#!/usr/bin/env bash
# The whole chain on your own pictures: training, localization maps, pseudo labels by the dense CRF (or IRN), a segmentation network and its masks of
# these pictures; and, where you have masks, evaluations. What is complete is skipped, what was stopped goes on.
#
#   bash run_folder.sh --dataset_root DIR [--run_dir DIR] [--gpus N] [--refine crf|irn] [--from STAGE] [--until STAGE]
#       [--with STAGE "FLAGS"]...
#
# --until make_seg_labels stops at the pseudo labels, --from train_seg starts there (see README for all stages).
# --with gives a stage further flags: --with train_resnet50_SIPE "--max_epochs 50 --crop_size 256"
set -euo pipefail
HERE=$PWD
cd "$(dirname "$0")"
source tool/chain.sh

DATASET=folder
DATASET_ROOT=
RUN_DIR=runs/folder
GPUS=1
REFINE=crf
SEG_EPOCHS=30
read_arguments "$@"

for below in classes.txt tags.csv; do
    [ -e "$DATASET_ROOT/$below" ] || complain "no $below in $DATASET_ROOT; write classes.txt (one class a line) and tags.csv (name,class;class), then run python data/check_dataset.py DIR"
done
source tool/environment.sh requirements.txt
HAS_MASKS='import sys; from data.registry import MASKED, open_dataset; open_dataset("folder", sys.argv[1]).entries(MASKED)'
if "$PYTHON" -c "$HAS_MASKS" "$DATASET_ROOT" 2>/dev/null; then run_stages 1 masked; else run_stages 0 tagged; fi
