#!/usr/bin/env bash
# The five uses of docs/results on UTD-MHAD, cross-subject. Teachers learn from labels, students from their teacher
# alone, by the default objective, on mixed clips and for long: function matching. Each student is compared with its
# supervised baseline: the same network trained with labels on the same crops for as long.
#
#   scripts/reproduce_utd_mhad.sh DATA OUT [SEED…]
#
# DATA  prepared by: python -m data_prep utd_mhad --depth Depth --skeleton Skeleton --modalities depth flow skeleton \
#                      --short-side 80 --out DATA
# OUT   folder for runs
#
# Finished runs are skipped and started runs continue, so that seeds can run in parallel (not for three). Variables choose
# a part:
#   ROWS="across …"   parts: across; shallower; small; precision; itself; isd (no teacher at all, and its student); shots
#                     (few labels); pairs (the other pairs across modalities); both (two teachers); three (three
#                     teachers: labelled networks of seeds 0, 1 and 2, of which it trains the missing ones). The first
#                     five if absent. Or: all
#   SHOTS="1 5 10"   labelled clips of each action, for shots
#   TEACHER_EPOCHS=150 LABEL_EPOCHS=600 DISTILLED_EPOCHS=600   passes over the clips: teachers, supervised baselines, students
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
data=$(realpath "$1") out=$2
seeds=${*:3}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
all="across shallower small precision itself isd shots pairs both three"
parts=" ${ROWS:-across shallower small precision itself} "
parts=${parts/ all / $all }
for part in $parts; do
  if [[ " $all " != *" $part "* ]]; then echo "ROWS has $part: choose among $all, or all" >&2; exit 2; fi
done
teacher_epochs=${TEACHER_EPOCHS:-150} label_epochs=${LABEL_EPOCHS:-600} distilled_epochs=${DISTILLED_EPOCHS:-600}
mkdir -p "$out"
cd "$out"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

px48=(--student-size 48) px20=(--student-size 20) small=(--student-size 32 --student-frames 8 --student-stride 6)
view=(--data "$data" --student-stride 3 --crop-area-min 0.8 --mirror no --workers 0)  # 16 frames over 48 of the video

# has PART|PART…: whether one of these is asked for
has() { [[ "$parts" =~ \ ($1)\  ]]; }
# run NAME EPOCHS OPTIONS…
run() {
  if [ -f "$1-seed$seed/results.json" ]; then return; fi
  "$python" "$here/train.py" --resume --out "$1-seed$seed" --seed "$seed" --epochs "$2" "${view[@]}" --batch-size 16 \
    --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --knn-clips 0 \
    --keep-decoded-gb 4 "${@:3}"
}
# labels NAME ENCODER OPTIONS…: a supervised baseline
labels() { run "$1, labels" "$label_epochs" --supervised --student "$2" "${@:3}"; }
# teacher NAME ENCODER OPTIONS…
teacher() { run "$1, labels" "$teacher_epochs" --supervised --student "$2" "${@:3}"; }
# distil NAME STUDENT OPTIONS…: from running teachers, which see the same mixed clips
distil() { run "$1" "$distilled_epochs" --student "$2" --mix "${@:3}"; }
# quantised NAME BITS OPTIONS…: continue the run NAME with fewer bits, for a fifth of the epochs
quantised() {
  run "$1 $2" $((distilled_epochs / 5)) --student depth_tiny3d_8 "${small[@]}" --bits "$2" \
    --student-weights "$1-seed$seed" --mix "${@:3}"
}
# few NAME SHOTS: a linear layer on few labels, the same ones on which --shots trains with this seed
few() {
  if [ -f "$1-seed$seed/evaluation.json" ]; then return; fi
  "$python" -m crossdistill evaluate "$1-seed$seed" --data "$data" --protocols lowshot --shots "$2" --draws 1 \
    --seed "$seed" --workers 0 --tracker none --json "$1-seed$seed/evaluation.json"
}
# shots NAME ENCODER SHOTS EPOCHS OPTIONS…: learn from so many labelled clips of each of the 27 actions alone, in as many
# steps of 16 clips as so many epochs over all clips, of 26 such steps, have
shots() {
  run "$1, labels-shots$3" $((26 * $4 / (27 * $3 / 16))) --supervised --student "$2" --shots "$3" "${@:5}"
  few "$1, labels-shots$3" "$3"
}
# three NAME TEACHER STUDENT OPTIONS…: from one network as three seeds have trained it with labels
three() {
  distil "three of $1" "$3" --teacher "$2" "$2" "$2" --teacher-weights "${1% to *}, labels-seed"{0,1,2} "${@:4}"
}

for seed in ${seeds:-0 1 2}; do
  from_skeleton=(--teacher skeleton_r3d10 --teacher-weights "skeleton 10, labels-seed$seed")
  from_depth=(--teacher depth_tiny3d_32 --teacher-weights "depth 32, labels-seed$seed")
  from_flow=(--teacher flow_tiny3d_16 --teacher-weights "flow 16, labels-seed$seed")
  if has "across|shallower|pairs|both"; then teacher "skeleton 10" skeleton_r3d10 "${px20[@]}"; fi
  if has "across|small|precision|pairs|both"; then teacher "depth 32" depth_tiny3d_32 "${px48[@]}"; fi
  if has "across|shallower|small|precision|itself|isd|both"; then
    labels "small depth 8" depth_tiny3d_8 "${small[@]}"
  fi
  if has "across|shallower|itself|pairs"; then labels "skeleton 8" skeleton_tiny3d_8 "${px20[@]}"; fi
  if has "pairs|both"; then
    labels "depth 8" depth_tiny3d_8 "${px48[@]}"
    labels "flow 8" flow_tiny3d_8 "${px48[@]}"
  fi
  if has across; then
    distil "skeleton 10 to small depth 8" depth_tiny3d_8 "${from_skeleton[@]}" "${small[@]}"
    distil "depth 32 to skeleton 8" skeleton_tiny3d_8 "${from_depth[@]}" "${px20[@]}"
  fi
  if has shallower; then  # 1/16 of the parameters; 1/12
    teacher "small depth 32" depth_tiny3d_32 "${small[@]}"
    distil "small depth 32 to small depth 8" depth_tiny3d_8 --teacher depth_tiny3d_32 \
      --teacher-weights "small depth 32, labels-seed$seed" "${small[@]}"
    distil "skeleton 10 to skeleton 8" skeleton_tiny3d_8 "${from_skeleton[@]}" "${px20[@]}"
  fi
  if has "small|precision"; then  # fewer parameters, half of the frames, a smaller picture
    distil "depth 32 to small depth 8" depth_tiny3d_8 "${from_depth[@]}" "${small[@]}"
  fi
  if has "precision|both"; then
    for bits in w8a8 w4a4 w2a4; do
      run "small depth 8 $bits, labels" $((label_epochs / 5)) --supervised --student depth_tiny3d_8 "${small[@]}" \
        --student-weights "small depth 8, labels-seed$seed" --bits $bits
    done
  fi
  if has precision; then
    for bits in w8a8 w4a4 w2a4; do quantised "depth 32 to small depth 8" $bits "${from_depth[@]}"; done
  fi
  if has itself; then  # born again: the labelled network teaches the next, and that the next
    distil "small depth 8 to itself" depth_tiny3d_8 --teacher depth_tiny3d_8 \
      --teacher-weights "small depth 8, labels-seed$seed" "${small[@]}" --rounds 2
    distil "skeleton 8 to itself" skeleton_tiny3d_8 --teacher skeleton_tiny3d_8 \
      --teacher-weights "skeleton 8, labels-seed$seed" "${px20[@]}" --rounds 2
  fi
  if has isd; then  # as the thesis means it: a teacher of the same architecture that has seen no label either
    run "small depth 8, ISD" "$distilled_epochs" --config "$here/configs/isd.yaml" --crop-area-min 0.4 \
      --bank-size 400 --student depth_tiny3d_8 "${small[@]}"
    distil "small depth 8, ISD, to itself" depth_tiny3d_8 --teacher depth_tiny3d_8 \
      --teacher-weights "small depth 8, ISD-seed$seed" "${small[@]}"
  fi
  if has shots; then  # the teacher learns from few labels alone, the student from its teacher on all clips
    for n in ${SHOTS:-1 5 10}; do
      shots "skeleton 10" skeleton_r3d10 "$n" "$teacher_epochs" "${px20[@]}"
      shots "small depth 8" depth_tiny3d_8 "$n" "$label_epochs" "${small[@]}"
      shots "skeleton 8" skeleton_tiny3d_8 "$n" "$label_epochs" "${px20[@]}"
      from=(--teacher skeleton_r3d10 --teacher-weights "skeleton 10, labels-shots$n-seed$seed")
      distil "skeleton 10 of $n labels to small depth 8" depth_tiny3d_8 "${from[@]}" "${small[@]}"
      distil "skeleton 10 of $n labels to skeleton 8" skeleton_tiny3d_8 "${from[@]}" "${px20[@]}"
      for student in "small depth" skeleton; do few "skeleton 10 of $n labels to $student 8" "$n"; done
    done
  fi
  if has pairs; then
    teacher "flow 16" flow_tiny3d_16 "${px48[@]}"
    distil "skeleton 10 to depth 8" depth_tiny3d_8 "${from_skeleton[@]}" "${px48[@]}"
    distil "skeleton 10 to flow 8" flow_tiny3d_8 "${from_skeleton[@]}" "${px48[@]}"
    distil "flow 16 to depth 8" depth_tiny3d_8 "${from_flow[@]}" "${px48[@]}"
    distil "depth 32 to flow 8" flow_tiny3d_8 "${from_depth[@]}" "${px48[@]}"
    distil "flow 16 to skeleton 8" skeleton_tiny3d_8 "${from_flow[@]}" "${px20[@]}"
  fi
  if has both; then
    two=(--teacher skeleton_r3d10 depth_tiny3d_32
      --teacher-weights "skeleton 10, labels-seed$seed" "depth 32, labels-seed$seed")
    distil "skeleton 10 and depth 32 to small depth 8" depth_tiny3d_8 "${two[@]}" "${small[@]}"
    for bits in w8a8 w4a4 w2a4; do quantised "skeleton 10 and depth 32 to small depth 8" $bits "${two[@]}"; done
    distil "skeleton 10 and depth 32 to depth 8" depth_tiny3d_8 "${two[@]}" "${px48[@]}"
    distil "skeleton 10 and depth 32 to flow 8" flow_tiny3d_8 "${two[@]}" "${px48[@]}"
  fi
done
if has three; then  # they differ in nothing but the seed: an ensemble of itself, and of the skeleton
  for seed in 0 1 2; do
    teacher "skeleton 10" skeleton_r3d10 "${px20[@]}"
    labels "skeleton 8" skeleton_tiny3d_8 "${px20[@]}"
    labels "small depth 8" depth_tiny3d_8 "${small[@]}"
    labels "depth 8" depth_tiny3d_8 "${px48[@]}"
  done
  for seed in ${seeds:-0 1 2}; do
    three "small depth 8 to itself" depth_tiny3d_8 depth_tiny3d_8 "${small[@]}"
    three "skeleton 8 to itself" skeleton_tiny3d_8 skeleton_tiny3d_8 "${px20[@]}"
    three "depth 8 to itself" depth_tiny3d_8 depth_tiny3d_8 "${px48[@]}"
    three "skeleton 10 to depth 8" skeleton_r3d10 depth_tiny3d_8 "${px48[@]}"
  done
fi
"$python" "$here/scripts/results_table.py" . --rows "$here/scripts/rows_utd_mhad.yaml"
