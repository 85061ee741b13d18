#!/usr/bin/env bash
# Real videos, real ImageNet teachers, three classes of UCF101, without labels: MobileNetV2 and SqueezeNet 1.0 (single
# frames) teach rgb_r3d10 and flow_r3d10 (clips), and SqueezeNet teaches AlexNet, ResNet-18 and MobileNetV2 (single
# frames). 54 clips: it shows that the way works, not what it can do.
#
#   scripts/reproduce_ucf101_mini.sh VIDEOS LISTS MOBILENET SQUEEZENET OUT [SPLIT…]
#
# VIDEOS      folder of .avi files         LISTS  folder of classInd.txt and of the lists of all three splits, of which
#                                          only the lines of these videos are left (grep -F -f NAMES trainlist01.txt …)
# MOBILENET   mobilenetv2_100 of timm with 1001 classes (.pth)
# SQUEEZENET  squeezenet1_0 of torchvision (.pth)                    OUT  folder for data and runs
#
# Every student learns once for each split, from its training part alone; the number of the split is the seed as well.
# Finished runs are skipped.
set -euo pipefail
if [ $# -lt 5 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
videos=$1 lists=$2 mobilenet=$3 squeezenet=$4 out=$5
splits=${*:6}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"

# distil NAME TEACHER WEIGHTS STUDENT SPLIT
distil() {
  if [ -f "$out/$1-seed$5/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-seed$5" --seed "$5" --split "$5" --data "$out/data" --teacher "$2" \
    --teacher-weights "$3" --teacher-size 224 --student "$4" --student-frames 8 --student-stride 4 --student-size 64 \
    --objective compress-1q --bank-size 256 --epochs 30 --batch-size 12 --optimizer adamw --lr 0.002 \
    --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --crop-area-min 0.4 --knn-clips 0 --workers 1
}

# single NAME SPLIT OPTIONS…: students of one frame
single() {
  if [ -f "$out/$1-seed$2/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-seed$2" --seed "$2" --split "$2" --data "$out/data" --student-size 96 \
    --epochs 100 --batch-size 12 --optimizer adamw --lr 0.0005 --weight-decay 0.05 --schedule cosine --warmup-epochs 5 \
    --crop-area-min 0.4 --knn-clips 0 --workers 0 "${@:3}"
}

"$python" -m data_prep ucf101 --videos "$videos" --annotations "$lists" --out "$out/data" --short-side 240 --modalities rgb flow
for split in ${splits:-1 2 3}; do
  "$python" -m crossdistill cache --teacher image_squeezenet1_0 --teacher-weights "$squeezenet" --teacher-size 224 \
    --student image_resnet18 --data "$out/data" --crop-area-min 0.4 --seed "$split" --split "$split" \
    --augmentations 20 --workers 0 --out "$out/cache-seed$split"
  for student in image_resnet18 image_mobilenet_v2 image_alexnet; do
    single "$student, labels" $split --supervised --student $student
    # The first student's run also evaluates the teacher; the others learn from the cache alone.
    if [ $student = image_resnet18 ]; then
      from=(--teacher image_squeezenet1_0 --teacher-weights "$squeezenet" --teacher-size 224)
    else
      from=(--teacher-cache "$out/cache-seed$split")
    fi
    single "squeezenet to $student" $split "${from[@]}" --student $student --objective compress-2q-live simreg --bank-size 256
  done
  for student in rgb flow; do
    distil "mobilenetv2 to $student" scripts/teachers/timm_mobilenetv2.py:mobilenetv2_100 "$mobilenet" "${student}_r3d10" $split
    distil "squeezenet to $student" image_squeezenet1_0 "$squeezenet" "${student}_r3d10" $split
  done
done
"$python" scripts/results_table.py "$out" --rows scripts/rows_ucf101_mini.yaml
