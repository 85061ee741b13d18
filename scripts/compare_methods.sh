#!/usr/bin/env bash
# Compare ways to teach on recorded videos: objectives, mixed clips, cross-fitted teachers, a proxy, UNIC's recipe and
# lightly-train's. All is measured on training people who are held out, and the test people are never read.
#
#   UTD_MHAD=DATA BIISC=DATA scripts/compare_methods.sh OUT [PAIR…]
#
# OUT    folder for networks, features and runs
# PAIR   skeleton-depth, depth-depth (UTD-MHAD, held out: s7 and s1, one after the other); flow-flow, flow-rgb (BII
#        Sneeze-Cough, held out: S001 and S007 to S010 together). Those of the given datasets if absent
# UTD_MHAD  prepared as scripts/reproduce_utd_mhad.sh says       BIISC  OUT/data of scripts/reproduce_biisc.sh
# METHODS="default mix …"   a part of them       EPOCHS=50 SEED=0   of students and baselines; each choice has its OUT
#
# Teachers learn from labels. Students have 0.07 M parameters and see no label. Finished runs are skipped and started runs
# continue. The table has 1-NN and linear accuracy, and the gain over the default.
set -euo pipefail
if [ $# -lt 1 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
out=$1
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
pairs=${*:2}
pairs=${pairs:-${UTD_MHAD:+skeleton-depth depth-depth} ${BIISC:+flow-flow flow-rgb}}
all="default compress-simreg live compress-1q compress-2q compress-2q-live simreg smooth-l1 smooth-l1-running
  compress-smooth-l1 dist unic unic-no-ladder unic-published compress-unic compress-unic-running compress-unic-ladder cospress
  time-relations mix lightly lightly-published folds proxy sgd sgd-smooth-l1-running
  default-live default-mix default-mix-mirror labels-mixup"
methods=${METHODS:-$all}
epochs=${EPOCHS:-50} seed=${SEED:-0} teacher_epochs=50
mkdir -p "$out"

# settings PAIR: what the pair has
settings() {
  case $1 in
    skeleton-depth) teacher=skeleton_r3d10 teacher_view=(--student-size 20 --student-stride 3) ;;
    depth-depth) teacher=depth_tiny3d_16 teacher_view=(--student-size 48 --student-stride 3) ;;
    flow-flow | flow-rgb) teacher=flow_tiny3d_32 teacher_view=(--student-size 48 --student-frames 8 --student-stride 3) ;;
    *) echo "there is no pair $1: choose among skeleton-depth depth-depth flow-flow flow-rgb" >&2; exit 2 ;;
  esac
  case $1 in
    *-depth) data=${UTD_MHAD:?give UTD_MHAD=DATA} splits="1@s7 1@s1" mirror=(--mirror no)
      proxy="depth_tiny3d_32 --proxy-size 48 --proxy-stride 3"
      student=(--student depth_tiny3d_8 --student-size 32 --student-frames 8 --student-stride 6) ;;
    *) data=${BIISC:?give BIISC=DATA} splits="1@S001+S007+S008+S009+S010" mirror=()
      proxy="${1#*-}_tiny3d_32 --proxy-size 48 --proxy-frames 8 --proxy-stride 3"
      student=(--student "${1#*-}_tiny3d_8" --student-size 48 --student-frames 8 --student-stride 3) ;;
  esac
  view=(--data "$data" --crop-area-min 0.8 --workers 0 "${mirror[@]}")
}
# run NAME SPLIT OPTIONS…
run() {
  if [ -f "$out/$1-$2/student/student.safetensors" ]; then return; fi
  "$python" "$here/train.py" --resume --out "$out/$1-$2" --split "$2" --seed "$seed" --epochs "$epochs" "${view[@]}" \
    --batch-size 16 --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --knn-clips 0 \
    --keep-decoded-gb 4 --tracker none --no-evaluate "${@:3}"
}
# options METHOD: of a method, after those of run
options() {
  local published_lr=0.00005  # 0.0005 for a batch of 1,536, which grows with its root
  local sgd="--optimizer sgd --lr 0.01 --weight-decay 0.0001 --schedule steps --warmup-epochs 0"  # as in the paper
  local former="--objective compress-1q simreg"  # the default when these rows were made
  local lightly="--objective compress-1q --temperature 0.07 --mix --clip-norm 1"
  case $1 in
    default | default-live) ;;
    compress-simreg | live) echo $former ;;
    unic) echo --objective unic --adapter ladder ;;
    unic-published) echo --objective unic --adapter ladder --lr 0.0003 --weight-decay 0.03 --warmup-epochs 5 ;;
    unic-no-ladder) echo --objective unic ;;
    smooth-l1) echo --objective smooth-l1 --standardize none ;;
    smooth-l1-running) echo --objective smooth-l1 ;;
    compress-unic-running) echo --objective compress-1q unic ;;
    compress-unic-ladder) echo --objective compress-1q unic --adapter ladder ;;
    compress-smooth-l1) echo --objective compress-1q smooth-l1 --standardize none ;;
    compress-unic) echo --objective compress-1q unic --standardize mean-variance ;;
    time-relations) echo $former time-relations ;;
    mix) echo $former --mix ;;
    default-mix) echo --mix ;;
    default-mix-mirror) echo --mix --mirror yes ;;
    labels-mixup) echo --mixup 1 ;;  # shares as those of --mix: all are as likely
    lightly) echo $lightly ;;
    lightly-published) echo $lightly --lr $published_lr --weight-decay 0.0001 ;;
    sgd) echo $former $sgd ;;
    sgd-smooth-l1-running) echo --objective smooth-l1 $sgd ;;
    folds) echo $former --folds 3 ;;
    proxy) echo $former --proxy $proxy ;;
    *) echo --objective "$1" ;;
  esac
}
# distil PAIR METHOD SPLIT: what mixes clips or compares times within a clip has a running teacher, the rest stored features
distil() {
  local words; read -ra words <<< "$(options "$2")"
  local live=(--teacher "$teacher" --teacher-weights "$out/$teacher-$3")
  case $2 in
    live | default-live | time-relations | *mix | *-mix-mirror | lightly* | proxy) ;;
    labels*) live=(--supervised) ;;
    folds) live=(--teacher "$teacher" --teacher-epochs "$teacher_epochs" --teacher-lr 0.002
      "${teacher_view[@]/#--student/--teacher}") ;;
    *) live=(--teacher-cache "$out/features $1-$3") ;;
  esac
  run "$1 $2" "$3" "${student[@]}" "${live[@]}" "${words[@]}"
}

for pair in $pairs; do
  settings "$pair"
  for split in $splits; do
    run "$teacher" "$split" --supervised --student "$teacher" "${teacher_view[@]}" --epochs "$teacher_epochs"
    run "$pair labels" "$split" --supervised "${student[@]}"
    "$python" -m crossdistill cache --out "$out/features $pair-$split" --split "$split" --seed "$seed" "${view[@]}" "${student[@]}" \
      --teacher "$teacher" --teacher-weights "$out/$teacher-$split" --augmentations 10
    for method in $methods; do distil "$pair" "$method" "$split"; done
  done
  names=()
  for method in labels $methods; do
    "$python" -m crossdistill evaluate "$out/$pair $method-{split}" --data "$data" --split $splits --k 1 --workers 0 \
      --tracker none --json "$out/$pair $method.json"
    names+=("$out/$pair $method.json")
  done
done
"$python" "$here/scripts/method_table.py" $pairs --runs "$out"
