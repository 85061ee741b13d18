#!/usr/bin/env bash
# The ablations of docs/results on UTD-MHAD: objectives, temperature and bank size, skeleton teacher to a small depth
# student (8 frames of 32x32 pixels), from a cache of ten views of the teacher.
#
#   scripts/reproduce_ablations.sh DATA OUT [SEED…]
#
# DATA  as for scripts/reproduce_utd_mhad.sh       OUT  folder for the runs; "skeleton 10, labels-seed<n>" of that script
#                                                       are its teachers and must be there
#
# Finished runs are skipped.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
data=$1 out=$2
seeds=${*:3}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"
views=(--student-frames 8 --student-stride 6)

# train NAME SEED OBJECTIVE OPTIONS…
train() {
  if [ -f "$out/$1-seed$2/results.json" ]; then return; fi
  local objective
  read -ra objective <<< "$3"
  "$python" train.py --resume --out "$out/$1-seed$2" --seed "$2" --epochs 30 --data "$data" --student depth_tiny3d_8 \
    "${views[@]}" --student-size 32 --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine \
    --warmup-epochs 2 --crop-area-min 0.8 --mirror no --knn-clips 0 --workers 0 --bank-size 400 \
    --teacher-cache "$out/cache-seed$2" --objective "${objective[@]}" "${@:4}"
}

for seed in ${seeds:-0 1 2}; do
  "$python" -m crossdistill cache --teacher skeleton_r3d10 --teacher-weights "$out/skeleton 10, labels-seed$seed" \
    --student depth_tiny3d_8 "${views[@]}" --data "$data" --crop-area-min 0.8 --mirror no --seed "$seed" --augmentations 10 \
    --workers 0 --out "$out/cache-seed$seed"
  train "compress-2q-live + simreg" "$seed" "compress-2q-live simreg"
  train "compress-1q + simreg" "$seed" "compress-1q simreg"
  for objective in compress-1q compress-2q compress-2q-live simreg seed infonce bingo cosine smooth-l1 mse rkd kd dkd dist; do
    train "$objective" "$seed" "$objective"
  done
  train "compress-2q, momentum 0.99" "$seed" compress-2q --ema-momentum 0.99
  for temperature in 0.02 0.1 0.2; do
    train "compress-1q, temperature $temperature" "$seed" compress-1q --temperature "$temperature"
  done
  for size in 64 1600; do
    train "compress-1q, bank $size" "$seed" compress-1q --bank-size "$size"
  done
done
"$python" scripts/results_table.py "$out" --students
