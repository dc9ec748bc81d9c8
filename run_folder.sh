#!/usr/bin/env bash
# Your own images, from image tags to a segmentation network and its masks of them, evaluated if you have masks. Finished stages are
# skipped; the same command resumes.
#
#   bash run_folder.sh --dataset_root DIR [--run_dir DIR] [--gpus N] [--recipe sipe|plus] [--refine crf|irn]
#        [--from STAGE] [--until STAGE] [--with STAGE FLAGS]...
#
# --until make_seg_labels stops after the pseudo labels, --from train_seg starts there (docs/stages.md lists the stages).
# --with adds flags to a stage: --with train_resnet50_SIPE "--max_epochs 50 --crop_size 256"
set -euo pipefail
source "$(dirname "$0")/tool/common.sh"
DATASET_ROOT= RUN_DIR=runs/folder GPUS=1 REFINE=crf
read_chain_flags "$@"
require "write classes.txt (one class a line) and tags.csv (name,class;class), then run python check_dataset.py DIR" classes.txt tags.csv
set_up requirements.txt
HAS_MASKS='import sys; from data.registry import MASKED, open_dataset; open_dataset("folder", sys.argv[1]).samples(MASKED)'
if "$PYTHON" -c "$HAS_MASKS" "$DATASET_ROOT" 2>/dev/null; then EVALUATE=1; else EVALUATE=0; fi

DATA=(--dataset folder --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR")
launch "$GPUS" train_resnet50_SIPE "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
launch "$GPUS" make_cam "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
if [ $EVALUATE = 1 ]; then launch 1 eval_cam "${DATA[@]}"; fi
if [ "$REFINE" = irn ]; then launch 1 make_ir_labels "${DATA[@]}"; fi
if [ "$REFINE" = irn ]; then launch "$GPUS" train_irn "${DATA[@]}"; fi
launch "$REFINE_GPUS" make_seg_labels "${DATA[@]}" --refine "$REFINE"
if [ $EVALUATE = 1 ]; then launch 1 eval_seg "${DATA[@]}"; fi
launch "$GPUS" train_seg "${DATA[@]}" --max_epochs 30
launch "$GPUS" infer_seg "${DATA[@]}" --list tagged
if [ $EVALUATE = 1 ]; then launch 1 eval_seg_pred "${DATA[@]}" --list masked --label_dir "$RUN_DIR/seg_pred"; fi
launch 1 report "${DATA[@]}"
