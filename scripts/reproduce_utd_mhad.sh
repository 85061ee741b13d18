#!/usr/bin/env bash
# UTD-MHAD, cross-subject, three seeds: depth teaches flow, flow teaches depth, depth teaches a depth network of 1/16 of
# its parameters. Teachers learn from labels, students from their teacher alone; beside each stands its supervised twin.
#
#   scripts/reproduce_utd_mhad.sh DATA OUT [SEED…]
#
# DATA  prepared by: python -m data_prep utd_mhad --depth Depth --out DATA        OUT  folder for the runs
#
# What is finished is not done again, so seeds may run side by side. About 25 minutes a seed on one CPU core.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,9p' "$0"; exit 2; fi
data=$1 out=$2
seeds=${*:3}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"

# run NAME OPTIONS…: 16 frames of 48x48 pixels over 48 frames of the video
run() {
  if [ -f "$out/$1/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1" --data "$data" --student-stride 3 --student-size 48 --epochs 40 \
    --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 \
    --crop-area-min 0.5 --mirror no --knn-clips 0 "${@:2}"
}

# distil NAME TEACHER TEACHER_RUN STUDENT SEED
distil() {
  run "$1-seed$5" --seed "$5" --teacher "$2" --teacher-weights "$out/$3-seed$5" --student "$4" \
    --objective compress-1q:1.0 simreg:1.0 --bank-size 400
}

for seed in ${seeds:-0 1 2}; do
  run "depth 32, labels-seed$seed" --seed "$seed" --supervised --student depth_tiny3d_32
  run "flow 16, labels-seed$seed" --seed "$seed" --supervised --student flow_tiny3d_16
  distil "depth 32 to flow 16" depth_tiny3d_32 "depth 32, labels" flow_tiny3d_16 "$seed"
  distil "depth 32 to depth 8" depth_tiny3d_32 "depth 32, labels" depth_tiny3d_8 "$seed"
  run "depth 8, labels-seed$seed" --seed "$seed" --supervised --student depth_tiny3d_8
  distil "flow 16 to depth 16" flow_tiny3d_16 "flow 16, labels" depth_tiny3d_16 "$seed"
  run "depth 16, labels-seed$seed" --seed "$seed" --supervised --student depth_tiny3d_16
done
"$python" scripts/results_table.py "$out"
