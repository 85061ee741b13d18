"""Do the commands compute the same numbers as before? Record small runs, refactor, compare them to the bit.

    python scripts/golden_runs.py record golden.json --work /tmp/before
    python scripts/golden_runs.py compare golden.json --work /tmp/after

Each run is a command as a user types it: prepare, train with labels, distil (2q with its EMA copy, two standardised
teachers, quantised, from a cache, self-distillation, two rounds), evaluate, agreement, predict, export. The record
holds SHA-256 sums of weights, of checkpoints' tensors and of exported files' outputs, the curves, and the JSON of
evaluations. The sums depend on the CPU and on the versions of the libraries: compare on the machine that recorded.
It takes three minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SMALL_VIEWS = (
    "--teacher-frames 4 --teacher-stride 2 --teacher-size 32 --student-frames 4 --student-stride 2 --student-size 32"
)
FAST = (
    "--data data --epochs 2 --batch-size 16 --optimizer adamw --lr 0.001 --workers 1 --seed 3 --bank-size 64 "
    "--log-every-steps 1 --knn-clips 16 --tracker none --keep-checkpoints"
)
LABELS = f"{FAST} --supervised --student-frames 4 --student-stride 2 --student-size 32"
RGB = "--teacher rgb_r3d10 --teacher-weights runs/rgb"
FLOW = f"--student flow_r3d10 {SMALL_VIEWS}"
# What differs from run to run, and sentences for people.
VOLATILE = ("clips_per_second", "data_wait", "seconds", "conclusions", "basis", "note", "origin", "sample")


def commands() -> dict[str, str]:
    """Map a name to a command line."""
    train, evaluate = "train.py", "crossdistill evaluate"
    return {
        "data": "-m data_prep toyactions --out data --clips-per-class 6 --size 32 --frames 8 --seed 1",
        "rgb": f"{train} {LABELS} --student rgb_r3d10 --out runs/rgb",
        "depth": f"{train} {LABELS} --student depth_r3d10 --out runs/depth",
        "2q": f"{train} {FAST} {RGB} {FLOW} --objective compress-2q --out runs/2q",
        "two": f"{train} {FAST} --teacher rgb_r3d10 depth_r3d10 --teacher-weights runs/rgb runs/depth {FLOW} "
        "--objective compress-2q-live simreg --standardize phi-s --teacher-drop 0.3 --accumulate 2 --out runs/two",
        "quantised": f"{train} {FAST} {RGB} {FLOW} --student-weights runs/2q --bits w4a8 --objective compress-1q "
        "--out runs/quantised",
        "cache": f"crossdistill cache {RGB} --data data --augmentations 2 --out cache --seed 3 --workers 1 "
        + FLOW.replace(" --student-size 32", ""),
        "cached": f"{train} {FAST} {RGB} {FLOW} --teacher-cache cache --objective compress-2q-live simreg:0.5 kd "
        "--schedule cosine --warmup-epochs 0.5 --clip-norm 1 --out runs/cached",
        "self": f"{train} {FAST} --teacher self --student flow_r3d10 --student-frames 4 --student-stride 2 "
        "--student-size 32 --objective compress-2q-live --strong-views --out runs/self",
        "rounds": f"{train} {FAST} {RGB} {FLOW} --objective compress-1q --rounds 2 --out runs/rounds",
        "evaluate": f"{evaluate} runs/2q --data data --protocols knn linear linear-sweep cluster retrieval lowshot "
        "finetune --finetune-epochs 1 --shots 1 2 --draws 2 --bootstrap 50 --workers 1 --json evaluate.json",
        "fusion": f"{evaluate} runs/rgb runs/2q --data data --protocols fusion agreement --views 2x3 --bootstrap 50 "
        "--workers 1 --json fusion.json",
        "agreement": f"crossdistill agreement {RGB} {FLOW} --student-weights runs/2q --data data --k 3 --clips 40 "
        "--workers 1 --json agreement.json",
        "predict": "crossdistill predict runs/2q data/flow --data data --k 3 --clips 2 --json predict.json",
        **{
            f"export-{to}": f"crossdistill export runs/{student} --to {to} --clips 4 --out export-{to}"
            for to, student in {
                "onnx": "quantised",
                "torchscript": "2q",
                "torch-export": "rgb",
                "safetensors": "2q",
                "hf": "2q",
            }.items()
        },
    }


def run(name: str, command: str, work: Path) -> None:
    """Run one command in the work folder; its output stays in ``logs/``."""
    words = command.split()
    if words[0] == "train.py":
        words = [sys.executable, str(PROJECT / "train.py"), *words[1:]]
    elif words[0] == "-m":
        words = [sys.executable, *words]
    else:
        words = [str(BIN / words[0]), *words[1:]]
    if name == "predict":  # a folder stands for one of its files
        folder = work / words[3]
        words[3] = str(sorted(path for path in folder.rglob("*") if path.is_file())[0].relative_to(work))
    log = work / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    with log.open("w") as file:
        status = subprocess.run(words, cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        raise SystemExit(f"{name} failed with status {status}: {' '.join(words)}\n{log.read_text()[-3000:]}")


def digest(parts: Iterator[bytes]) -> str:
    """SHA-256 of bytes, shortened."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def tensors_digest(path: Path) -> str:
    """Of the names and values in a safetensors file, whatever its header says."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return digest(
        part
        for name in sorted(tensors)
        for part in (
            f"{name}{tensors[name].dtype}{list(tensors[name].shape)}".encode(),
            tensors[name].numpy().tobytes(),
        )
    )


def stable(value: Any) -> Any:
    """Return JSON values without what differs from run to run."""
    if isinstance(value, dict):
        return {key: stable(part) for key, part in value.items() if key not in VOLATILE}
    return [stable(part) for part in value] if isinstance(value, list) else value


def outputs_digest(path: Path, to: str) -> str:
    """Of what an exported file gives for fixed clips."""
    import torch

    if to in ("safetensors", "hf"):
        return digest(
            tensors_digest(file).encode() for file in sorted([path] if path.is_file() else path.rglob("*.safetensors"))
        )
    channels = {"onnx": 2, "torchscript": 2, "torch-export": 3}[to]
    clips = torch.linspace(-1, 1, 3 * channels * 4 * 32 * 32).reshape(3, channels, 4, 32, 32)
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return digest(array.tobytes() for array in session.run(None, {"clips": clips.numpy()}))
    with warnings.catch_warnings(), torch.no_grad(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path)) if to == "torchscript" else torch.export.load(file).module()
        given = module(clips)
    return digest(tensor.numpy().tobytes() for tensor in ([given] if isinstance(given, torch.Tensor) else given))


def collect(work: Path) -> dict[str, Any]:
    """Everything that must stay, by file."""
    found: dict[str, Any] = {}
    for path in sorted(work.rglob("*.safetensors")):
        name = str(path.relative_to(work))
        # A feature file's name and the folder of a fine-tuned student hold sums of keys, which may gain fields.
        if "features" not in path.parts and not name.startswith("export-"):
            found[name] = tensors_digest(path)
    for path in sorted(work.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(work))] = stable(lines)
    for path in sorted([*work.rglob("results.json"), *work.glob("*.json")]):
        found[str(path.relative_to(work))] = stable(json.loads(path.read_text()))
    found["dataset"] = digest(path.read_bytes() for path in sorted((work / "data").rglob("*.*")) if path.is_file())
    for path in sorted(work.glob("export-*")):
        if path.name != "export-safetensors.classifier":
            found[path.name] = outputs_digest(path, path.name.removeprefix("export-"))
    return found


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Dotted names of what is another value, or is in one of the two alone."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            here = f"{path} > {key}" if path else key
            if key not in before or key not in after:
                yield f"{here}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], here)
    elif before != after:
        yield f"{path}: {str(before)[:200]} is now {str(after)[:200]}"


def main() -> None:
    """Run the commands, then record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="the recorded sums")
    parser.add_argument("--work", type=Path, required=True, help="folder in which the commands run; finished ones stay")
    options = parser.parse_args()
    work = options.work.absolute()
    for name, command in commands().items():
        done = work / "logs" / f"{name}.done"
        if not done.exists():
            print(f"{name}: {command}", flush=True)
            run(name, command, work)
            done.touch()
    found = collect(work)
    if options.action == "record":
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} sums recorded in {options.file}")
        return
    changed = list(differences(stable(json.loads(options.file.read_text())), stable(found)))
    print("\n".join(changed) or f"all {len(found)} are equal to the bit")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
