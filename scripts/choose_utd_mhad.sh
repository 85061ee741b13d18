#!/usr/bin/env bash
# Choose the recipe of scripts/reproduce_utd_mhad.sh on training people alone: crops, epochs and objective, by the accuracy
# on one training person who was held out, each of the four in turn. The test people (2, 4, 6, 8) are never read.
#
#   scripts/choose_utd_mhad.sh DATA OUT [PERSON…]
#
# DATA    as for scripts/reproduce_utd_mhad.sh      OUT  folder for the runs      PERSON  s1 s3 s5 s7 by default
#
# Students are the small depth network (8 frames of 32x32 pixels). The teacher is a skeleton network of 0.3 M parameters,
# trained with labels on the same people. Finished runs are skipped. The tables at the end compare every setting with the
# first of its kind, clip by clip. The last ones choose the numbers of epochs with labels and without, among 30, 60, 120
# and 240: where held-out accuracy stops rising by more than its standard error.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
data=$1 out=$2
people=${*:3}
people=${people:-s7 s3 s1 s5}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"
lengths="30 60 120 240"

# run NAME PERSON EPOCHS AREA OPTIONS…: one run with crops from a share of the area on
run() {
  local split="1@$2"
  if [ -f "$out/$1-$split/student/student.safetensors" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-$split" --split "$split" --epochs "$3" --crop-area-min "$4" --data "$data" \
    --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --mirror no \
    --knn-clips 0 --workers 0 --tracker none --no-evaluate "${@:5}"
}
small=(--student depth_tiny3d_8 --student-size 32 --student-frames 8 --student-stride 6)
views=(--student depth_tiny3d_8 --student-frames 8 --student-stride 6)

# cache PERSON AREA: ten augmentations of the teacher's embeddings
cache() {
  "$python" -m crossdistill cache --teacher skeleton_tiny3d_16 --teacher-weights "$out/teacher-1@$1" "${views[@]}" \
    --data "$data" --split "1@$1" --crop-area-min "$2" --mirror no --augmentations 10 --workers 0 \
    --out "$out/cache-$2-1@$1"
}
# distil NAME PERSON EPOCHS AREA OBJECTIVE…
distil() {
  run "$1" "$2" "$3" "$4" "${small[@]}" --teacher-cache "$out/cache-$4-1@$2" --bank-size 300 --objective "${@:5}"
}

# Objectives first, then crops, then epochs.
for person in $people; do
  run teacher "$person" 30 0.8 --supervised --student skeleton_tiny3d_16 --student-size 20 --student-stride 3
  cache "$person" 0.8
  for objective in "compress-2q-live simreg" "compress-1q simreg" smooth-l1 dist compress-2q; do
    distil "$objective, 0.8, 30" "$person" 30 0.8 $objective
  done
done
for person in $people; do
  run "labels, 0.8, 30" "$person" 30 0.8 --supervised "${small[@]}"
  run "labels, 0.5, 30" "$person" 30 0.5 --supervised "${small[@]}"
done
for person in $people; do
  distil "compress-2q-live simreg, 0.8, 60" "$person" 60 0.8 compress-2q-live simreg
  for epochs in $lengths; do
    distil "compress-1q simreg, 0.8, $epochs" "$person" "$epochs" 0.8 compress-1q simreg
    run "labels, 0.8, $epochs" "$person" "$epochs" 0.8 --supervised "${small[@]}"
  done
done
splits=(${people//s/1@s})

# compare NAME…: the gain of each over the first, in percent, with intervals over the held-out people
compare() {
  local names=()
  for name in "$@"; do names+=("$out/$name-{split}"); done
  "$python" -m crossdistill evaluate "${names[@]}" --data "$data" --split "${splits[@]}" --k 1 --workers 0 \
    --tracker none --json "$out/$1.json"
}
compare {"compress-2q-live simreg","compress-1q simreg",smooth-l1,dist,compress-2q}", 0.8, 30"
compare "compress-2q-live simreg, 0.8, 60" "compress-1q simreg, 0.8, 60" "compress-2q-live simreg, 0.8, 30"
compare "labels, 0.8, 30" "labels, 0.5, 30" "labels, 0.8, 60"

# choose KIND: the number of epochs of a kind of run
choose() {
  local files=() epochs
  for epochs in $lengths; do
    local name="$out/$1, 0.8, $epochs"
    "$python" -m crossdistill evaluate "$name-{split}" --data "$data" --split "${splits[@]}" --k 1 --workers 0 \
      --tracker none --json "$name-alone.json"
    files+=("$epochs=$name-alone.json")
  done
  echo "epochs of $1: $("$python" scripts/choose_epochs.py "${files[@]}")"
}
choose labels
choose "compress-1q simreg"
