#!/usr/bin/env bash
# CompRess's experiment on pictures at the size of Caltech-101: an EfficientNet-Lite2 with ImageNet weights teaches AlexNet,
# ResNet-18 and MobileNetV2, which start from random weights and see no label. Each is compared with the same network
# trained with labels. A pile of other pictures without labels helps the distilled students; the others cannot use it.
#
#   scripts/reproduce_caltech101.sh PICTURES PILE WEIGHTS OUT [SEED…]
#
# PICTURES  folders by class, train.txt and test.txt with one <class>/<picture> per line
# PILE      a folder of pictures, for example Tiny-ImageNet's train, whose pictures the teacher's ImageNet contains
# WEIGHTS   written by: python scripts/teachers/efficientnet_lite.py lite2 lite2.safetensors
# OUT       folder for data, teacher's features and runs
#
# Finished runs are skipped and started runs continue. Variables choose a part of it: STUDENTS="image_resnet18",
# ROWS="labels alone pile" (alone: distilled from Caltech-101 without the pile), EPOCHS=200, PILE_EPOCHS=20.
set -euo pipefail
if [ $# -lt 4 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
pictures=$1 pile=$2 weights=$3 out=$4
seeds=${*:5}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"

# Of Caltech-101, and of Caltech-101 with the pile, which is many times as large.
epochs=${EPOCHS:-200} pile_epochs=${PILE_EPOCHS:-20}

# run NAME SEED EPOCHS OPTIONS…
run() {
  if [ -f "$out/$1-seed$2/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-seed$2" --seed "$2" --epochs "$3" --student-size 64 --batch-size 128 \
    --optimizer adamw --weight-decay 0.05 --schedule cosine --crop-area-min 0.2 --knn-clips 0 --workers 0 "${@:4}"
}
# distil NAME SEED EPOCHS OPTIONS…
distil() { run "$@" --objective compress-2q-live simreg; }
# store NAME DATA…: the teacher's features of four crops of every picture
store() {
  "$python" -m crossdistill cache --teacher image_timm:tf_efficientnet_lite2 --teacher-weights "$weights" \
    --teacher-size 128 --student image_resnet18 --student-size 64 --crop-area-min 0.2 --augmentations 4 --workers 1 \
    --out "$out/$1" --data "${@:2}"
}

mkdir -p "$out"
for part in train test; do sed "s|\(.*\)/\(.*\)|\1/\2,\1,$part|" "$pictures/$part.txt"; done > "$out/list.csv"
"$python" -m data_prep image_list --list "$out/list.csv" --pictures "$pictures" --out "$out/caltech101"
"$python" -m data_prep images --unlabelled --pictures "$pile" --out "$out/pile"
store features "$out/caltech101"
store pile_features "$out/caltech101" "$out/pile"

for seed in ${seeds:-0 1 2}; do
  for student in ${STUDENTS:-image_resnet18 image_mobilenet_v2 image_alexnet_no_dropout}; do
    lr=0.001
    if [ $student = image_alexnet_no_dropout ]; then lr=0.0005; fi
    for row in ${ROWS:-labels alone pile}; do
      case $row in
        labels)
          labelled=${student%_no_dropout}  # with labels AlexNet keeps its dropout, as in the paper
          run "$labelled, labels" "$seed" "$epochs" --supervised --student $labelled --data "$out/caltech101" \
            --lr $lr --warmup-epochs 5 ;;
        alone) distil "caltech to $student" "$seed" "$epochs" --teacher-cache "$out/features" --student $student \
          --data "$out/caltech101" --bank-size 4096 --lr $lr --warmup-epochs 5 ;;
        pile) distil "caltech and pile to $student" "$seed" "$pile_epochs" --teacher-cache "$out/pile_features" \
          --student $student --data "$out/caltech101" "$out/pile" --bank-size 16384 --lr $lr --warmup-epochs 1 ;;
        *) echo "ROWS has $row: choose among labels, alone and pile" >&2; exit 2 ;;
      esac
    done
  done
done
"$python" scripts/results_table.py "$out" --rows scripts/rows_caltech101.yaml
