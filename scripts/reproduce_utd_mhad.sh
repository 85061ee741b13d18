#!/usr/bin/env bash
# The five uses of docs/results on UTD-MHAD, cross-subject. Teachers learn from labels, students from their teacher
# alone. Each student is compared with its supervised baseline: the same network trained with labels.
#
#   scripts/reproduce_utd_mhad.sh DATA OUT [SEED…]
#
# DATA  prepared by: python -m data_prep utd_mhad --depth Depth --skeleton Skeleton --modalities depth flow skeleton \
#                      --short-side 80 --out DATA
# OUT   folder for the runs
#
# Finished runs are skipped, so several seeds can run in parallel, and an interrupted script can be started again. The rows
# with three teachers need the labelled networks of seeds 0, 1 and 2, and train the missing ones.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
data=$1 out=$2
seeds=${*:3}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"

epochs=50 quantised_epochs=20 shot_steps=1350  # as many steps as 50 passes over all labels

# run NAME SEED EPOCHS OPTIONS…: 16 frames over 48 frames of the video
run() {
  if [ -f "$out/$1-seed$2/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-seed$2" --seed "$2" --epochs "$3" --data "$data" --student-stride 3 \
    --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 \
    --crop-area-min 0.8 --mirror no --knn-clips 0 --workers 0 --keep-decoded-gb 4 "${@:4}"
}
# labels NAME ENCODER SEED OPTIONS…: teachers, and supervised baselines of students
labels() { run "$1, labels" "$3" "$epochs" --supervised --student "$2" "${@:4}"; }

# distil NAME TEACHER TEACHER_RUN STUDENT SEED OPTIONS…
distil() {
  run "$1" "$5" "$epochs" --teacher "$2" --teacher-weights "$out/$3-seed$5" --student "$4" \
    --objective compress-2q-live simreg --bank-size 400 "${@:6}"
}
# both NAME STUDENT SEED OPTIONS…: from two teachers of two modalities at once
both() {
  run "$1" "$3" "$epochs" --teacher skeleton_r3d10 depth_tiny3d_32 --student "$2" --objective compress-2q-live simreg \
    --teacher-weights "$out/skeleton 10, labels-seed$3" "$out/depth 32, labels-seed$3" --bank-size 400 "${@:4}"
}
# three NAME TEACHER STUDENT SEED OPTIONS…: from one network as three seeds have trained it with labels
three() {
  run "three of $1" "$4" "$epochs" --teacher "$2" "$2" "$2" --student "$3" --objective compress-2q-live simreg \
    --teacher-weights "$out/${1% to *}, labels-seed"{0,1,2} --bank-size 400 "${@:5}"
}
# few NAME SHOTS SEED: a linear layer on few labels, the same ones on which --shots trains with this seed
few() {
  if [ -f "$out/$1-seed$3/evaluation.json" ]; then return; fi
  "$python" -m crossdistill evaluate "$out/$1-seed$3" --data "$data" --protocols lowshot --shots "$2" --draws 1 --seed "$3" \
    --workers 0 --tracker none --json "$out/$1-seed$3/evaluation.json"
}
# shots NAME ENCODER SHOTS SEED OPTIONS…: learn from so many labelled clips of each of the 27 actions alone
shots() {
  run "$1, labels-shots$3" "$4" $((shot_steps / ((27 * $3 + 15) / 16))) --supervised --student "$2" --shots "$3" "${@:5}"
  few "$1, labels-shots$3" "$3" "$4"
}
px48=(--student-size 48) px20=(--student-size 20) small=(--student-size 32 --student-frames 8 --student-stride 6)

for seed in ${seeds:-0 1 2}; do
  labels "skeleton 10" skeleton_r3d10 "$seed" "${px20[@]}"
  labels "depth 32" depth_tiny3d_32 "$seed" "${px48[@]}"
  labels "flow 16" flow_tiny3d_16 "$seed" "${px48[@]}"
  # Across modalities.
  labels "depth 8" depth_tiny3d_8 "$seed" "${px48[@]}"
  distil "skeleton 10 to depth 8" skeleton_r3d10 "skeleton 10, labels" depth_tiny3d_8 "$seed" "${px48[@]}"
  # Shallower: 1/16 of the parameters; 1/12.
  distil "depth 32 to depth 8" depth_tiny3d_32 "depth 32, labels" depth_tiny3d_8 "$seed" "${px48[@]}"
  labels "skeleton 8" skeleton_tiny3d_8 "$seed" "${px20[@]}"
  distil "skeleton 10 to skeleton 8" skeleton_r3d10 "skeleton 10, labels" skeleton_tiny3d_8 "$seed" "${px20[@]}"
  # Small video models: fewer parameters, half of the frames, a smaller picture.
  labels "small depth 8" depth_tiny3d_8 "$seed" "${small[@]}"
  distil "depth 32 to small depth 8" depth_tiny3d_32 "depth 32, labels" depth_tiny3d_8 "$seed" "${small[@]}"
  distil "skeleton 10 to small depth 8" skeleton_r3d10 "skeleton 10, labels" depth_tiny3d_8 "$seed" "${small[@]}"
  # Itself: the labelled network teaches the next, that the next; and no teacher at all.
  distil "small depth 8 to itself" depth_tiny3d_8 "small depth 8, labels" depth_tiny3d_8 "$seed" "${small[@]}" --rounds 2
  distil "skeleton 8 to itself" skeleton_tiny3d_8 "skeleton 8, labels" skeleton_tiny3d_8 "$seed" "${px20[@]}" --rounds 2
  run "small depth 8, ISD" "$seed" 100 --config configs/isd.yaml --crop-area-min 0.4 --bank-size 400 \
    --student depth_tiny3d_8 "${small[@]}"
  # As the thesis means it: the teacher, of the same architecture, has seen no label either.
  distil "small depth 8, ISD, to itself" depth_tiny3d_8 "small depth 8, ISD" depth_tiny3d_8 "$seed" "${small[@]}"
  # Few labels: the teacher learns from them alone, the student from its teacher on all clips without labels.
  for n in 1 5 10; do
    shots "skeleton 10" skeleton_r3d10 $n "$seed" "${px20[@]}"
    shots "depth 8" depth_tiny3d_8 $n "$seed" "${px48[@]}"
    shots "skeleton 8" skeleton_tiny3d_8 $n "$seed" "${px20[@]}"
    from="skeleton 10, labels-shots$n"
    distil "skeleton 10 of $n labels to depth 8" skeleton_r3d10 "$from" depth_tiny3d_8 "$seed" "${px48[@]}"
    distil "skeleton 10 of $n labels to skeleton 8" skeleton_r3d10 "$from" skeleton_tiny3d_8 "$seed" "${px20[@]}"
    for student in depth skeleton; do few "skeleton 10 of $n labels to $student 8" $n "$seed"; done
  done
  # Lower precision: baseline and student start from their trained fp32 networks, and train with labels or with the teacher.
  for bits in w2a4 w4a4 w8a8; do
    run "small depth 8 $bits, labels" "$seed" "$quantised_epochs" --supervised --student depth_tiny3d_8 "${small[@]}" \
      --student-weights "$out/small depth 8, labels-seed$seed" --bits $bits
    distil "depth 32 to small depth 8 $bits" depth_tiny3d_32 "depth 32, labels" depth_tiny3d_8 "$seed" "${small[@]}" \
      --student-weights "$out/depth 32 to small depth 8-seed$seed" --bits $bits --epochs "$quantised_epochs"
  done
  # The other pairs across modalities.
  labels "flow 8" flow_tiny3d_8 "$seed" "${px48[@]}"
  distil "skeleton 10 to flow 8" skeleton_r3d10 "skeleton 10, labels" flow_tiny3d_8 "$seed" "${px48[@]}"
  distil "flow 16 to depth 8" flow_tiny3d_16 "flow 16, labels" depth_tiny3d_8 "$seed" "${px48[@]}"
  distil "depth 32 to flow 8" depth_tiny3d_32 "depth 32, labels" flow_tiny3d_8 "$seed" "${px48[@]}"
  distil "depth 32 to skeleton 8" depth_tiny3d_32 "depth 32, labels" skeleton_tiny3d_8 "$seed" "${px20[@]}"
  distil "flow 16 to skeleton 8" flow_tiny3d_16 "flow 16, labels" skeleton_tiny3d_8 "$seed" "${px20[@]}"
  # Two teachers.
  both "skeleton 10 and depth 32 to small depth 8" depth_tiny3d_8 "$seed" "${small[@]}"
  for bits in w2a4 w4a4 w8a8; do
    both "skeleton 10 and depth 32 to small depth 8 $bits" depth_tiny3d_8 "$seed" "${small[@]}" --bits $bits \
      --student-weights "$out/skeleton 10 and depth 32 to small depth 8-seed$seed" --epochs "$quantised_epochs"
  done
  both "skeleton 10 and depth 32 to depth 8" depth_tiny3d_8 "$seed" "${px48[@]}"
  both "skeleton 10 and depth 32 to flow 8" flow_tiny3d_8 "$seed" "${px48[@]}"
done
# Three teachers that differ in nothing but the seed: an ensemble of itself, and of the skeleton.
for seed in 0 1 2; do
  labels "skeleton 10" skeleton_r3d10 "$seed" "${px20[@]}"
  labels "skeleton 8" skeleton_tiny3d_8 "$seed" "${px20[@]}"
  labels "small depth 8" depth_tiny3d_8 "$seed" "${small[@]}"
  labels "depth 8" depth_tiny3d_8 "$seed" "${px48[@]}"
done
for seed in ${seeds:-0 1 2}; do
  three "small depth 8 to itself" depth_tiny3d_8 depth_tiny3d_8 "$seed" "${small[@]}"
  three "skeleton 8 to itself" skeleton_tiny3d_8 skeleton_tiny3d_8 "$seed" "${px20[@]}"
  three "depth 8 to itself" depth_tiny3d_8 depth_tiny3d_8 "$seed" "${px48[@]}"
  three "skeleton 10 to depth 8" skeleton_r3d10 depth_tiny3d_8 "$seed" "${px48[@]}"
done
"$python" scripts/results_table.py "$out" --rows scripts/rows_utd_mhad.yaml
