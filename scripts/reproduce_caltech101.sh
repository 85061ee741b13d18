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
# Finished runs are skipped and started runs continue. Variables choose a part of it, or another size:
#   ROWS="labels alone pile"   parts: labels; alone (distilled from Caltech-101); pile (from Caltech-101 and the pile);
#                              shots (few labels); objectives; mix (a running teacher, and mixed pictures); temperature;
#                              bank; augmentations; fuel (shares of Caltech-101); precision and itself, which need the
#                              runs of labels and alone. Or: all of these. Besides: lightly (lightly-train's own
#                              distillation); lengths (the number of epochs with labels after which accuracy on
#                              held-out training pictures stops rising); choose (objectives on held-out training
#                              pictures, 20 epochs)
#   STUDENTS="resnet18 mobilenet_v2 alexnet"     students of lengths, labels, alone, pile and shots; other parts: ResNet-18
#   EPOCHS=200 PILE_EPOCHS=20                    passes over the pictures, without the pile and with it
#   PILE_CROPS=4 PILE_BANK=16384                 stored crops of each picture and size of the bank, with the pile
#   PILE_NAME=40k                                several piles in one OUT: rows <student>-pile40k
#   LABEL_EPOCHS=200 LENGTHS="50 100 200 400"    passes with all labels, EPOCHS by default; those that lengths compares
#   LR=0.003 LABEL_LR=0.003                      learning rates, distilled and with labels, chosen for ResNet-18 on held-out
#                                                training pictures; AlexNet has 0.0005
#   RATE_NAME=0.001                              several rates in one OUT: rows <student>-labels-rate0.001, …-alone-rate0.001
#   SIZE=64                                      height and width in pixels that students see
#   PRECISION=auto                               or bf16, fp32: precision of teacher and students. lightly-train has bf16
#                                                if it says bf16, else fp32
#   LIGHTLY_PYTHON=…                             for lightly: Python of an environment with lightly-train and this package
set -euo pipefail
if [ $# -lt 4 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
pictures=$(realpath "$1") pile=$(realpath "$2") weights=$(realpath "$3") out=$4
seeds=${*:5}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
all="labels alone pile shots objectives mix temperature bank augmentations fuel precision itself"
parts=" ${ROWS:-labels alone pile} "
parts=${parts/ all / $all }
for part in $parts; do
  if [[ " $all lengths lightly choose " != *" $part "* ]]; then
    echo "ROWS has $part: choose among $all lengths lightly choose, or all" >&2; exit 2
  fi
done
if [[ "$parts" == *" lightly "* && -z "${LIGHTLY_PYTHON:-}" ]]; then
  echo "ROWS has lightly: give LIGHTLY_PYTHON, see scripts/train_with_lightly.py" >&2; exit 2
fi
epochs=${EPOCHS:-200} pile_epochs=${PILE_EPOCHS:-20} pile_crops=${PILE_CROPS:-4} pile_name=pile${PILE_NAME:-}
rate=${RATE_NAME:+-rate$RATE_NAME}
split=1 protocols=(knn linear cluster lowshot --shots 1 5 10 --draws 1)
teacher=(--teacher image_timm:tf_efficientnet_lite2 --teacher-weights "$weights")
views=(--student-size "${SIZE:-64}" --crop-area-min 0.2 --precision "${PRECISION:-auto}")
lightly_precision=32-true
if [ "${PRECISION:-}" = bf16 ]; then lightly_precision=bf16-mixed; fi
mkdir -p "$out"
cd "$out"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

# has PART|PART…: whether one of these is asked for
has() { [[ "$parts" =~ \ ($1)\  ]]; }
# prepare NAME LIST: a dataset of listed pictures
prepare() { "$python" -m data_prep image_list --list "$2" --pictures "$pictures" --out "$1"; }
# store NAME K DATA…: the teacher's features of K crops of every picture
store() {
  "$python" -m crossdistill cache "${teacher[@]}" --teacher-size 128 --student image_resnet18 "${views[@]}" \
    --channels-last yes --augmentations "$2" --workers 1 --embed-batch-size 64 --out "$1" --data "${@:3}"
}
# measure RUN: evaluate on all labels of Caltech-101, and on few
measure() {
  if [ ! -f "$1/evaluation.json" ]; then
    "$python" -m crossdistill evaluate "$1" --data caltech101 --split "$split" --protocols "${protocols[@]}" \
      --seed "$seed" --workers 0 --json "$1/evaluation.json"
  fi
}
# row NAME KIND OPTIONS…: train, then evaluate
row() {
  local run="$1-seed$seed" kind=()
  local learn=(--bank-size 4096 --lr "${LR:-0.003}" --data caltech101)
  case $2 in
    labels) kind=(--supervised --data caltech101 --epochs "${LABEL_EPOCHS:-$epochs}" --lr "${LABEL_LR:-0.003}") ;;
    taught) kind=("${learn[@]}") ;;
    alone) kind=("${learn[@]}" --teacher-cache features) ;;
    pile) kind=("${learn[@]}" --teacher-cache "${pile_name}_features" --data caltech101 "$pile_name"
      --bank-size "${PILE_BANK:-16384}" --epochs "$pile_epochs" --warmup-epochs 1) ;;
  esac
  if [ ! -f "$run/results.json" ]; then
    "$python" "$here/train.py" --resume --out "$run" --seed "$seed" --split "$split" --student image_resnet18 \
      "${views[@]}" --batch-size 128 --optimizer adamw --weight-decay 0.05 --schedule cosine \
      --epochs "$epochs" --warmup-epochs 5 --knn-clips 0 --workers 0 "${kind[@]}" "${@:3}"
  fi
  measure "$run"
}
# lengths STUDENT OPTIONS…: say after how many epochs with labels the accuracy on held-out pictures stops rising
lengths() {
  local split="1@25%" protocols=(knn linear) files=() n
  for n in ${LENGTHS:-50 100 200 400}; do
    row "$1-length$n" labels "${@:2}" --epochs "$n"
    files+=("$n=$1-length$n-seed$seed/evaluation.json")
  done
  echo "$1, seed $seed: LABEL_EPOCHS=$("$python" "$here/scripts/choose_epochs.py" "${files[@]}")" >&2
}
# choose: ResNet-18 by several objectives, on held-out pictures
choose() {
  local split="1@25%" protocols=(knn linear) short=(--epochs 20 --warmup-epochs 2) objective
  store features_held 4 caltech101 --split "$split"
  row choose-labels labels "${short[@]}"
  for objective in "compress-1q smooth-l1:5" "compress-1q simreg" "compress-1q unic" "compress-2q-live simreg" unic smooth-l1; do
    row "choose-${objective// /-}" taught --teacher-cache features_held "${short[@]}" --objective $objective
  done
}

for part in train test; do sed "s|\(.*\)/\(.*\)|\1/\2,\1,$part|" "$pictures/$part.txt"; done > list.csv
prepare caltech101 list.csv
if has "alone|objectives|temperature|bank|precision"; then store features 4 caltech101; fi
if has pile; then
  "$python" -m data_prep images --unlabelled --pictures "$pile" --out "$pile_name"
  store "${pile_name}_features" "$pile_crops" caltech101 "$pile_name"
fi
if has augmentations; then for k in 1 2 16; do store "features_$k" "$k" caltech101; done; fi
if has fuel; then
  for n in 4 2; do
    awk -F, -v n="$n" '$3 == "test" || NR % n == 1' list.csv > "list_$((100 / n)).csv"
    prepare "caltech101_$((100 / n))" "list_$((100 / n)).csv"
    store "features_of_$((100 / n))" 4 "caltech101_$((100 / n))"
  done
fi

for seed in ${seeds:-0 1 2}; do
  if has "alone|pile"; then  # a cache has no teacher to evaluate
    row lite2-measured taught "${teacher[@]}" --teacher-size 128 --epochs 1 --warmup-epochs 0
  fi
  for name in ${STUDENTS:-resnet18 mobilenet_v2 alexnet}; do
    labelled=(--student "image_$name") distilled=(--student "image_$name")
    if [ "$name" = alexnet ]; then  # with labels it keeps its dropout, as in the paper
      labelled+=(--lr 0.0005) distilled=(--student image_alexnet_no_dropout --lr 0.0005)
    fi
    if has lengths; then lengths "$name" "${labelled[@]}"; fi
    if has choose && [ "$name" = resnet18 ]; then choose; fi
    if has labels; then row "$name-labels$rate" labels "${labelled[@]}"; fi
    if has alone; then row "$name-alone$rate" alone "${distilled[@]}"; fi
    if has pile; then row "$name-$pile_name" pile "${distilled[@]}"; fi
    if has shots; then  # fewer pictures an epoch, and the same number of steps for each
      for n in 1 5 10; do
        few=(--shots "$n" --batch-size 32 --epochs $((epochs * 10 / n)))
        row "$name-labels-shots$n" labels "${labelled[@]}" "${few[@]}"
      done
    fi
  done
  if has objectives; then  # the paper's rows; mse-bn is its regression with BN on both sides
    for objective in compress-2q compress-2q-live compress-1q simreg seed infonce "compress-2q-live simreg" \
      "compress-1q simreg"; do
      row "resnet18-${objective// /-}" alone --objective $objective
    done
    row resnet18-mse-bn alone --objective mse --standardize mean-variance --adapter mlp2
  fi
  if has mix; then
    live=("${teacher[@]}" --teacher-size 128)
    row resnet18-live taught "${live[@]}"
    row resnet18-mix taught "${live[@]}" --mix
  fi
  if has lightly; then  # its loss, augmentation, optimizer and schedule
    run="resnet18-lightly-seed$seed"
    if [ ! -f "$run/student/student.json" ]; then
      "$LIGHTLY_PYTHON" "$here/scripts/train_with_lightly.py" "$pictures" "$pictures/train.txt" "$run" "${teacher[@]}" \
        --student-size "${SIZE:-64}" --view-size 128 --epochs "$epochs" --seed "$seed" --precision "$lightly_precision"
    fi
    measure "$run"
  fi
  if has temperature; then
    for t in 0.02 0.07 0.1 1; do row "resnet18-temperature$t" alone --objective compress-2q-live --temperature $t; done
  fi
  if has bank; then
    for n in 256 1024; do row "resnet18-bank$n" alone --objective compress-2q-live --bank-size $n; done
    row resnet18-bank-all alone --objective compress-2q-live --bank-size "$(wc -l < "$pictures/train.txt")"
  fi
  if has augmentations; then
    for k in 1 2 16; do row "resnet18-augmentations$k" alone --teacher-cache "features_$k"; done
  fi
  if has fuel; then  # fewer pictures an epoch, and about the same number of steps for each
    for share in 25 50; do
      row "resnet18-fuel$share" alone --data "caltech101_$share" --teacher-cache "features_of_$share" \
        --epochs $((epochs * 100 / share))
    done
  fi
  if has precision; then  # each starts from its network of 32 bits
    for bits in w8a8 w4a4 w2a4; do
      less=(--bits $bits --epochs $(((epochs + 4) / 5)) --warmup-epochs 1)
      row "resnet18-labels-$bits" labels "${less[@]}" --student-weights "resnet18-labels-seed$seed"
      row "resnet18-alone-$bits" alone "${less[@]}" --student-weights "resnet18-alone-seed$seed"
    done
  fi
  if has itself; then
    row resnet18-itself taught --teacher image_resnet18 --teacher-weights "resnet18-alone-seed$seed"
  fi
done
"$python" "$here/scripts/results_table.py" . --rows "$here/scripts/rows_caltech101.yaml"
