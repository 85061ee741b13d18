#!/usr/bin/env bash
# Choose the numbers of epochs of scripts/reproduce_biisc.sh on training people alone: by the accuracy on a part of them
# that is held out, after which it stops rising. The test people (S002 to S006) are never read.
#
#   scripts/choose_biisc.sh DATA WEIGHTS OUT [PEOPLE…]
#
# DATA     written to OUT/data by: ROWS=data scripts/reproduce_biisc.sh VIDEOS OUT
# WEIGHTS  as for scripts/reproduce_biisc.sh      OUT  folder for features and runs, for example OUT/choice of that script
# PEOPLE   held out together, joined by +; S001+S007+S008+S009+S010 by default. Each further group holds out other people
#
# Networks of 0.07 M parameters learn from all labels, from five labels of each action, and without labels from the image
# teacher, which has seen none of the clips. RGB and flow each; the longer of the two is taken. Finished runs are skipped.
# The last lines are the variables that scripts/reproduce_biisc.sh takes; OUT/epochs holds them.
# LENGTHS="25 50 100 200" are tried, and four times as many passes over five labels of each action.
set -euo pipefail
if [ $# -lt 3 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
data=$1 weights=$2 out=$3
people=${*:4}
people=${people:-S001+S007+S008+S009+S010}
lengths=${LENGTHS:-25 50 100 200}
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$here/.venv/bin/python}"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

view=(--data "$data" --student-size 48 --student-frames 8 --student-stride 3 --crop-area-min 0.8 --workers 0)
# run NAME SPLIT EPOCHS OPTIONS…
run() {
  if [ -f "$out/$1 $3-$2/student/student.safetensors" ]; then return; fi
  "$python" "$here/train.py" --resume --out "$out/$1 $3-$2" --split "$2" --epochs "$3" "${view[@]}" --batch-size 16 \
    --optimizer adamw --lr 0.002 --weight-decay 0.05 --schedule cosine --warmup-epochs 2 --checkpoint-every-steps 200 \
    --knn-clips 0 --keep-decoded-gb 4 --tracker none --no-evaluate "${@:4}"
}
for held in $people; do
  for modality in rgb flow; do
    split="1@$held" student=(--student "${modality}_tiny3d_8")
    for epochs in $lengths; do run "$modality labels" "$split" "$epochs" --supervised "${student[@]}"; done
    "$python" -m crossdistill cache --out "$out/features-$modality-$split" --split "$split" "${view[@]}" "${student[@]}" \
      --teacher image_timm:tf_efficientnet_lite2 --teacher-weights "$weights" --teacher-size 128 --teacher-frames 4 \
      --augmentations 4
    for epochs in $lengths; do
      run "$modality distilled" "$split" "$epochs" "${student[@]}" --teacher-cache "$out/features-$modality-$split"
    done
    for epochs in $lengths; do
      run "$modality shots" "$split" $((4 * epochs)) --supervised "${student[@]}" --shots 5
    done
  done
done

# longest KIND FACTOR PROTOCOL…: the number of epochs of a kind of run
longest() {
  local longest=0 number modality epochs files
  for modality in rgb flow; do
    files=()
    for epochs in $lengths; do
      local name="$out/$modality $1 $(($2 * epochs))"
      "$python" -m crossdistill evaluate "$name-{split}" --data "$data" --split "${splits[@]}" --protocols "${@:3}" \
        --workers 0 --tracker none --json "$name.json" >&2
      files+=("$(($2 * epochs))=$name.json")
    done
    echo "$modality, $1" >&2
    number=$("$python" "$here/scripts/choose_epochs.py" "${files[@]}")
    if [ "$number" -gt $longest ]; then longest=$number; fi
  done
  echo "$longest"
}
splits=()
for held in $people; do splits+=("1@$held"); done
label_epochs=$(longest labels 1 knn linear)
distilled_epochs=$(longest distilled 1 knn linear)
shot_epochs=$(longest shots 4 lowshot --shots 5 --draws 1)
printf 'LABEL_EPOCHS=%s\nDISTILLED_EPOCHS=%s\nSHOT_EPOCHS=%s\n' "$label_epochs" "$distilled_epochs" "$shot_epochs" \
  | tee "$out/epochs"
