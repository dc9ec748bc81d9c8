#!/usr/bin/env bash
# MS COCO 2014, from image tags to a segmentation network and its mIoU on val. Finished stages are skipped; the same command resumes.
#
#   bash run_coco.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N] [--recipe sipe|plus] [--refine crf|irn]
#        [--from STAGE] [--until STAGE] [--with STAGE FLAGS]...
#
# --until eval_seg stops after the pseudo labels, --from train_seg starts there (docs/stages.md lists the stages).
# --with adds flags to a stage: --with make_cam "--scales 1.0 0.5 --amp bf16"
set -euo pipefail
source "$(dirname "$0")/tool/common.sh"
DATASET_ROOT=./COCO2014 RUN_DIR=runs/coco GPUS=1 REFINE=crf
read_chain_flags "$@"
ADVICE="put COCO's zips, or what is in them, into one folder and run python prepare_coco.py --root DIR"
require "$ADVICE" train2014 train.txt tags.csv masks
if is_wanted infer_seg || is_wanted eval_seg_pred; then require "$ADVICE" val2014 val.txt; fi
set_up requirements.txt

DATA=(--dataset coco --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR")
launch "$GPUS" train_resnet50_SIPE "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
launch "$GPUS" make_cam "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
launch 1 eval_cam "${DATA[@]}"
if [ "$REFINE" = irn ]; then launch 1 make_ir_labels "${DATA[@]}"; fi
if [ "$REFINE" = irn ]; then launch "$GPUS" train_irn "${DATA[@]}"; fi
launch "$REFINE_GPUS" make_seg_labels "${DATA[@]}" --refine "$REFINE"
launch 1 eval_seg "${DATA[@]}"
launch "$GPUS" train_seg "${DATA[@]}" --max_epochs 12
launch "$GPUS" infer_seg "${DATA[@]}" --list val
launch 1 eval_seg_pred "${DATA[@]}" --list val --label_dir "$RUN_DIR/seg_pred"
launch 1 report "${DATA[@]}"
