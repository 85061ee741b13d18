#!/usr/bin/env bash
# Real videos, real ImageNet teacher: MobileNetV2 (single frames) teaches rgb_r3d10 (clips) on three
# classes of UCF101, without labels. 36 training clips: it shows that the way works, not what it can do.
#
#   scripts/reproduce_ucf101_mini.sh VIDEOS LISTS WEIGHTS OUT
#
# VIDEOS  folder of .avi files            LISTS  folder of classInd.txt, trainlist01.txt, testlist01.txt
# WEIGHTS mobilenetv2_100 of timm with 1001 classes (.pth)      OUT  folder for data and runs
set -euo pipefail
if [ $# -ne 4 ]; then sed -n '2,9p' "$0"; exit 2; fi
videos=$1 lists=$2 weights=$3 out=$4
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"

cd "$here"
"$python" -m data_prep ucf101 --videos "$videos" --annotations "$lists" --out "$out/data" --short-side 128 --modalities rgb flow
for seed in 0 1 2; do
  "$python" train.py --resume --out "$out/seed$seed" --seed "$seed" --data "$out/data" \
    --teacher scripts/teachers/timm_mobilenetv2.py:mobilenetv2_100 --teacher-weights "$weights" \
    --student rgb_r3d10 --student-frames 8 --student-stride 4 --student-size 64 \
    --objective compress-1q --bank-size 256 --epochs 30 --batch-size 12 --optimizer adamw --lr 0.002 \
    --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --crop-area-min 0.4
done
