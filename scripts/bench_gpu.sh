#!/usr/bin/env bash
# Measure on a GPU what docs/explanation/speed.md has of a CPU, in at most ten minutes: see bench_gpu.py for the parts.
#
#     scripts/bench_gpu.sh OUT [options of bench_gpu.py]
#
# OUT gets the table, the rows as JSON lines, the machine and the raw log. The Python is that of PYTHON, of .venv, or
# python3. Where it lacks a package, the wheels of the folder WHEELS are installed into OUT (for a machine without a
# network; there pip can find nothing else), or .venv is made as `make test` makes it, which takes minutes of its own.
set -euo pipefail
if [ $# -lt 1 ]; then sed -n '2,/^[^#]/{/^#/p;}' "$0"; exit 2; fi
out=$1
shift
mkdir -p "$out"
out=$(realpath "$out")
wheels=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    if [ -f .venv/.installed ]; then python=.venv/bin/python; fi
fi
can_run() { "$python" -W ignore scripts/bench_gpu.py --help >"$out/setup.txt" 2>&1; }
if ! can_run && [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$out/site" "$wheels"/*.whl
    export PYTHONPATH="$PYTHONPATH:$out/site"
fi
if ! can_run; then
    echo "$python lacks a package ($(tail -n 1 "$out/setup.txt")): making .venv"
    make .venv/.installed
    python=.venv/bin/python
    can_run || { cat "$out/setup.txt" >&2; exit 1; }
fi
exec "$python" -W ignore scripts/bench_gpu.py --out "$out" "$@"
