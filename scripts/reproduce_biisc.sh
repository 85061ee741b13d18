#!/usr/bin/env bash
# The five uses of docs/results on BII Sneeze-Cough, few labels, and clips of other sets without labels: RGB and optical
# flow of 20 people, of whom 15 train. An EfficientNet-Lite2 with ImageNet weights and labelled networks are the teachers.
# Students learn from their teacher alone. Each is compared with its supervised baseline: the same network, trained with
# labels on the same crops.
#
#   scripts/reproduce_biisc.sh VIDEOS OUT [SEED…]
#
# VIDEOS  folders by action, train.txt and test.txt with one <action>/<person>_….mp4 per line
# OUT     folder for data, teachers' features and runs
#
# Finished runs are skipped and started runs continue. Variables choose a part of it, or other data:
#   WEIGHTS=lite2.safetensors  written by: python scripts/teachers/efficientnet_lite.py lite2 lite2.safetensors
#   ROWS="image across …"      parts: image; across; shallower; small; precision; itself; shots; fuel; data, which prepares
#                              the dataset and ends. All if absent. Without WEIGHTS, rows of that teacher are left out
#   LABEL_EPOCHS=100 DISTILLED_EPOCHS=100   passes over the clips, as scripts/choose_biisc.sh finds them
#   SHOT_EPOCHS=400            passes over five clips of each action; the other numbers of clips get as many steps
#   UTD_MHAD=FOLDER            for fuel: prepared as scripts/reproduce_utd_mhad.sh says. It has flow and no RGB
#   UCF101_MINI=FOLDER         for fuel: videos/ and ucfTrainTestlist/ of UCF101, or of a part of it
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
videos=$(realpath "$1") out=$2
seeds=${*:3}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
all="image across shallower small precision itself shots fuel"
parts=${ROWS:-$all}
for part in $parts; do
  if [[ " $all data " != *" $part "* ]]; then echo "ROWS has $part: choose among $all data" >&2; exit 2; fi
done
weights=${WEIGHTS:+$(realpath "$WEIGHTS")}
utd_mhad=${UTD_MHAD:+$(realpath "$UTD_MHAD")} ucf101_mini=${UCF101_MINI:+$(realpath "$UCF101_MINI")}
label_epochs=${LABEL_EPOCHS:-100} distilled_epochs=${DISTILLED_EPOCHS:-100} shot_epochs=${SHOT_EPOCHS:-400}
mkdir -p "$out"
cd "$out"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

view=(--student-size 48 --student-frames 8 --student-stride 3)
small=(--student-size 32 --student-frames 4 --student-stride 6)
crops=(--crop-area-min 0.8)

# has PART|PART…: whether one of these is asked for
has() { [[ " $parts " =~ \ ($1)\  ]]; }

# run NAME EPOCHS OPTIONS…: train, and evaluate with all labels
run() {
  if [ -f "$1-seed$seed/results.json" ]; then return; fi
  "$python" "$here/train.py" --resume --out "$1-seed$seed" --seed "$seed" --epochs "$2" --data data "${view[@]}" \
    "${crops[@]}" --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 \
    --checkpoint-every-steps 200 --knn-clips 0 --workers 0 --keep-decoded-gb 4 --tracker none "${@:3}"
}
# labels NAME ENCODER OPTIONS…: teachers, and supervised baselines of students
labels() { run "$1, labels" "$label_epochs" --supervised --student "$2" "${@:3}"; }
# store NAME STUDENT OPTIONS…: features of a teacher, for the crops that a student will see
store() {
  "$python" -m crossdistill cache --out "$1-seed$seed" --seed "$seed" --data data --student "$2" "${view[@]}" "${crops[@]}" \
    --workers 0 --augmentations 10 "${@:3}"
}
# distil NAME STUDENT FEATURES OPTIONS…
distil() { run "$1" "$distilled_epochs" --student "$2" --teacher-cache "$3-seed$seed" "${@:4}"; }
# taught NAME TEACHER_RUN ENCODER OPTIONS…: by a trained network of the same architecture
taught() {
  run "$1" "$distilled_epochs" --teacher "$3" --teacher-weights "$2-seed$seed" --student "$3" "${@:4}"
}
# few NAME SHOTS…: a linear layer on few labels, the same ones on which --shots trains with this seed
few() {
  if [ -f "$1-seed$seed/evaluation.json" ]; then return; fi
  local protocols=(lowshot)
  if [ $# -gt 2 ]; then protocols=(knn linear cluster lowshot); fi
  "$python" -m crossdistill evaluate "$1-seed$seed" --data data --protocols "${protocols[@]}" --shots "${@:2}" --draws 1 \
    --seed "$seed" --workers 0 --tracker none --json "$1-seed$seed/evaluation.json"
}
# shots NAME ENCODER N: learn from N labelled clips of each of the 8 actions alone
shots() {
  local batch=$(($3 < 2 ? 8 : 16))
  local steps=$((8 * $3 / batch))  # an epoch has whole batches alone: two with five clips of each action
  run "$1, labels-shots$3" $(((shot_epochs * 2 + steps - 1) / steps)) --supervised --student "$2" --shots "$3" --batch-size $batch
  few "$1, labels-shots$3" "$3"
}
# fuel NAME STUDENT FEATURES OPTIONS…: on the clips of several sets
fuel() {
  distil "$@" --epochs $(((distilled_epochs + 1) / 2))
  few "$1" 1 5 10
}
image=(--teacher image_timm:tf_efficientnet_lite2 --teacher-weights "$weights" --teacher-size 128 --teacher-frames 4)

if [ ! -f list.csv ]; then
  (echo path,label,split,group
  for part in train test; do sed -E "s|^((\w+)/([A-Z][0-9]+)_.*)\$|\1,\2,$part,\3|" "$videos/$part.txt"; done) > list.part
  mv list.part list.csv
fi
prepare=(--short-side 64 --modalities rgb flow)
"$python" -m data_prep list --videos "$videos" --train-list list.csv --test-list list.csv "${prepare[@]}" --out data
if [ "$parts" = data ]; then exit; fi
rgb_sets=(data) flow_sets=(data)  # UTD-MHAD has no RGB, which the image teacher sees
if has fuel; then
  "$python" -m data_prep toyactions --clips-per-class 60 --out toyactions
  rgb_sets+=(toyactions) flow_sets+=(toyactions)
  if [ -n "$ucf101_mini" ]; then
    "$python" -m data_prep ucf101 --videos "$ucf101_mini/videos" --annotations "$ucf101_mini/ucfTrainTestlist" \
      "${prepare[@]}" --out ucf101_mini
    rgb_sets+=(ucf101_mini) flow_sets+=(ucf101_mini)
  fi
  if [ -n "$utd_mhad" ]; then flow_sets+=("$utd_mhad"); fi
fi

for seed in ${seeds:-0 1 2}; do
  for modality in rgb flow; do labels "$modality 8" "${modality}_tiny3d_8"; done  # the baselines of most parts
  if has "image|itself|shots|fuel" && [ -n "$weights" ]; then
    for modality in rgb flow; do
      store "features-lite2-$modality" "${modality}_tiny3d_8" "${image[@]}" --augmentations 4
      distil "lite2 to $modality 8" "${modality}_tiny3d_8" "features-lite2-$modality"
      few "lite2 to $modality 8" 1 5 10
    done
    run "lite2, measured" 1 --warmup-epochs 0 --student rgb_tiny3d_8 "${image[@]}"  # a cache has no teacher to evaluate
  fi
  if has "across|shallower|small|precision|fuel"; then
    for modality in rgb flow; do labels "$modality 32" "${modality}_tiny3d_32"; done
    from_rgb=(--teacher rgb_tiny3d_32 --teacher-weights "rgb 32, labels-seed$seed")
    from_flow=(--teacher flow_tiny3d_32 --teacher-weights "flow 32, labels-seed$seed")
  fi
  if has across; then
    store features-rgb-flow flow_tiny3d_8 "${from_rgb[@]}"
    store features-flow-rgb rgb_tiny3d_8 "${from_flow[@]}"
    distil "rgb 32 to flow 8" flow_tiny3d_8 features-rgb-flow
    distil "flow 32 to rgb 8" rgb_tiny3d_8 features-flow-rgb
  fi
  if has shallower; then  # 1/16 of the parameters
    store features-rgb-rgb rgb_tiny3d_8 "${from_rgb[@]}"
    store features-flow-flow flow_tiny3d_8 "${from_flow[@]}"
    distil "rgb 32 to rgb 8" rgb_tiny3d_8 features-rgb-rgb
    distil "flow 32 to flow 8" flow_tiny3d_8 features-flow-flow
  fi
  if has "small|precision"; then  # fewer parameters, half of the frames, fewer pixels
    for modality in rgb flow; do
      from=(--teacher "${modality}_tiny3d_32" --teacher-weights "$modality 32, labels-seed$seed")
      labels "small $modality 8" "${modality}_tiny3d_8" "${small[@]}"
      store "features-$modality-small" "${modality}_tiny3d_8" "${small[@]}" "${from[@]}"
      distil "$modality 32 to small $modality 8" "${modality}_tiny3d_8" "features-$modality-small" "${small[@]}"
    done
  fi
  if has precision; then  # both start from their networks of 32 bits
    for bits in w8a8 w4a4; do
      for modality in rgb flow; do
        less=("${small[@]}" --bits $bits --epochs $(((label_epochs + 4) / 5)))
        labels "small $modality 8 $bits" "${modality}_tiny3d_8" "${less[@]}" \
          --student-weights "small $modality 8, labels-seed$seed"
        less=("${small[@]}" --bits $bits --epochs $(((distilled_epochs + 4) / 5)))
        distil "$modality 32 to small $modality 8 $bits" "${modality}_tiny3d_8" "features-$modality-small" "${less[@]}" \
          --student-weights "$modality 32 to small $modality 8-seed$seed"
      done
    done
  fi
  if has itself; then
    for modality in rgb flow; do  # born again: the teacher has seen the labels
      taught "$modality 8, born again" "$modality 8, labels" "${modality}_tiny3d_8"
      # The thesis's meaning: the teacher has seen no label of these clips.
      if [ -n "$weights" ]; then taught "$modality 8, label-free" "lite2 to $modality 8" "${modality}_tiny3d_8"; fi
    done
  fi
  if has shots; then
    for n in 1 5 10; do
      for modality in rgb flow; do
        shots "$modality 8" "${modality}_tiny3d_8" $n
        shots "$modality 32" "${modality}_tiny3d_32" $n
        store "features-$modality-shots$n" "${modality}_tiny3d_8" --teacher "${modality}_tiny3d_32" \
          --teacher-weights "$modality 32, labels-shots$n-seed$seed"
        distil "$modality 32 of $n labels to $modality 8" "${modality}_tiny3d_8" "features-$modality-shots$n"
        few "$modality 32 of $n labels to $modality 8" $n
      done
    done
  fi
  if has fuel; then  # about twice the clips and half of the epochs: about as many steps
    if [ -n "$weights" ]; then
      for modality in rgb flow; do
        store "features-lite2-$modality-fuel" "${modality}_tiny3d_8" "${image[@]}" --augmentations 4 --data "${rgb_sets[@]}"
        fuel "lite2 to $modality 8, fuel" "${modality}_tiny3d_8" "features-lite2-$modality-fuel" --data "${rgb_sets[@]}"
      done
    fi
    store features-flow-flow-fuel flow_tiny3d_8 "${from_flow[@]}" --augmentations 4 --data "${flow_sets[@]}"
    fuel "flow 32 to flow 8, fuel" flow_tiny3d_8 features-flow-flow-fuel --data "${flow_sets[@]}"
  fi
done
"$python" "$here/scripts/results_table.py" . --rows "$here/scripts/rows_biisc.yaml"
