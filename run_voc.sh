#!/usr/bin/env bash
# PASCAL VOC 2012, from image tags to a segmentation network and its mIoU on val. Finished stages are skipped; the same command resumes.
#
#   bash run_voc.sh [--dataset_root DIR] [--run_dir DIR] [--gpus N] [--recipe sipe|plus] [--refine irn|crf]
#        [--from STAGE] [--until STAGE] [--with STAGE FLAGS]...
#
# --until eval_seg stops after the pseudo labels, --from train_seg starts there (docs/stages.md lists the stages).
# --with adds flags to a stage: --with make_cam "--scales 1.0 0.5 --amp bf16"
set -euo pipefail
source "$(dirname "$0")/tool/common.sh"
DATASET_ROOT=./VOC2012 RUN_DIR=runs/voc GPUS=1 REFINE=irn
read_chain_flags "$@"
for below in VOC2012 VOCdevkit/VOC2012; do
    if [ ! -d "$DATASET_ROOT/JPEGImages" ] && [ -d "$DATASET_ROOT/$below/JPEGImages" ]; then DATASET_ROOT=$DATASET_ROOT/$below; fi
done
ADVICE="python prepare_voc.py --root DIR [--download] makes it from the archives of VOC 2012 and SBD"
require "$ADVICE" JPEGImages Annotations SegmentationClass ImageSets/Segmentation/{train,train_aug}.txt
if is_wanted infer_seg || is_wanted eval_seg_pred; then require "$ADVICE" ImageSets/Segmentation/val.txt; fi
set_up requirements.txt

DATA=(--dataset voc --dataset_root "$DATASET_ROOT" --run_dir "$RUN_DIR")
launch "$GPUS" train_resnet50_SIPE "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
launch "$GPUS" make_cam "${DATA[@]}" ${RECIPE:+--recipe "$RECIPE"}
launch 1 eval_cam "${DATA[@]}"
if [ "$REFINE" = irn ]; then launch 1 make_ir_labels "${DATA[@]}"; fi
if [ "$REFINE" = irn ]; then launch "$GPUS" train_irn "${DATA[@]}"; fi
launch "$REFINE_GPUS" make_seg_labels "${DATA[@]}" --refine "$REFINE"
launch 1 eval_seg "${DATA[@]}"
launch "$GPUS" train_seg "${DATA[@]}" --max_epochs 30
launch "$GPUS" infer_seg "${DATA[@]}" --list val
launch 1 eval_seg_pred "${DATA[@]}" --list val --label_dir "$RUN_DIR/seg_pred"
launch 1 report "${DATA[@]}"
