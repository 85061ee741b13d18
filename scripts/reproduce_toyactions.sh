#!/usr/bin/env bash
# Toyactions rows of docs/results: RGB teaches flow, flow teaches RGB and itself, RGB and flow together teach RGB.
# Teachers (r3d10) learn from labels, students (tiny3d_8, 1/12 of their parameters) from their teachers alone. Each
# student is compared with its supervised baseline: the same network trained with labels.
#
#   scripts/reproduce_toyactions.sh OUT [SEED…]
#
# OUT  folder for the runs. The dataset is rendered at first use (data/toyactions). Finished runs are skipped.
set -euo pipefail
if [ $# -lt 1 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
out=$1
seeds=${*:2}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
cd "$here"

# run NAME SEED OPTIONS…: the laptop's preset (6 frames of 32x32 pixels), longer
run() {
  if [ -f "$out/$1-seed$2/results.json" ]; then return; fi
  "$python" train.py --resume --out "$out/$1-seed$2" --seed "$2" --epochs 10 --workers 1 --knn-clips 0 "${@:3}"
}

for seed in ${seeds:-0 1 2}; do
  for modality in flow rgb; do
    run "$modality 8, labels" "$seed" --supervised --student "${modality}_tiny3d_8"
  done
  run "rgb to flow" "$seed" --teacher rgb_r3d10 --student flow_tiny3d_8 --objective compress-1q simreg
  run "flow to rgb" "$seed" --teacher flow_r3d10 --student rgb_tiny3d_8 --objective compress-1q simreg
  run "flow to flow" "$seed" --teacher flow_r3d10 --student flow_tiny3d_8 --objective compress-1q simreg
  run "rgb and flow to rgb" "$seed" --teacher rgb_r3d10 flow_r3d10 --student rgb_tiny3d_8 --objective compress-1q simreg \
    --standardize phi-s --teacher-drop 0.5
done
"$python" scripts/results_table.py "$out" --rows scripts/rows_toyactions.yaml
