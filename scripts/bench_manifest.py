"""A manifest of many videos: time to open it, memory of every process that reads it, time to look up a video.

    python scripts/bench_manifest.py --videos 650000
    python scripts/bench_manifest.py --videos 650000 --repeat 16 --folder big --starts fork

The manifest is made up: clips of Kinetics' length and names, two streams (rgb and flow) of 300 frames, one clip in ten
with a varying frame rate. There are no video files. A process then opens it, selects the training clips, and hands
them to a DataLoader with four workers, which look up clips in the random order of an epoch, as training does before it
decodes: every clip, or the first ``--lookups`` of that order. One clip in a hundred for each worker is enough to touch
every page: a kernel maps 16 pages at once, and they have hundreds of rows of any column. So the memory is the same.

Every process reports its proportional set size (shared pages count by their share) and its private memory.
Those of the same process with a manifest of a few videos are subtracted. The rest, divided by the number of clips, is
what a clip costs.

Reads the sizes from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from crossdistill.data.columns import Layout
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey, TrainingBatches
from crossdistill.data.video_table import write_table
from crossdistill.encoders.architecture import make_view
from crossdistill.utils.console import print_table
from crossdistill.utils.files import atomic_path

NUM_WORKERS = 4
NUM_CLASSES = 700
NUM_FRAMES = 301
FEW_VIDEOS = 64
BATCH_SIZE = 256
NUM_ROUNDS, LOOKUPS_A_ROUND = 51, 500


def made_rows(num_videos: int) -> Iterator[dict[str, Any]]:
    """Yield made-up videos as JSON objects."""
    generator = np.random.default_rng(0)
    constant, several = [0, 1001, NUM_FRAMES - 1], [0, *[33, 2, 34, 1] * ((NUM_FRAMES - 1) // 3)]
    for i in range(num_videos):
        name, label = f"{i:011d}_000010_000020", i % NUM_CLASSES
        # A container that stores milliseconds makes a constant frame rate a varying one.
        is_rounded = i % 10 == 0
        facts = {"name": name, "label": label, "group": name[:11], "status": "ok", "reason": ""}
        facts["splits"] = {"1": "test" if i % 20 == 0 else "train"}
        facts["streams"] = {
            stream: {
                "path": f"{stream}/class {label:03d}/{name}.mp4",
                "width_px": 340,
                "height_px": 256,
                "time_base": [1, 1000] if is_rounded else [1, 30000],
                "is_seekable": True,
                "num_frames": NUM_FRAMES,
                "pts": several if is_rounded else constant,
                "keyframes": keyframes,
                "num_bytes": 400_000 + i % 100_000,
                "sha256": generator.bytes(32).hex(),
            }
            for stream, keyframes in (("rgb", [0, 16, 18]), ("flow", [0, 1, NUM_FRAMES - 1]))
        }
        yield facts


def made_header() -> dict[str, Any]:
    """Header of the made-up dataset."""
    classes = [f"class {i:03d}" for i in range(NUM_CLASSES)]
    return {"dataset": "made_up", "classes": classes, "flip_keeps_label": True, "facts": {}}


def make_manifest(folder: Path, num_videos: int, *, repeat: int = 1) -> float:
    """Write the manifest unless it is there; return the seconds.

    With ``repeat`` the batches of a smaller manifest are written so many times, which takes seconds instead of an hour.
    """
    path = folder / "manifest.arrow"
    start = time.perf_counter()
    if not path.exists():
        layout = Layout.of(made_rows(20))  # has all that more rows have
        with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            write_table(sink, made_header(), made_rows(num_videos), layout, name=str(path))
        if repeat > 1:
            _repeat_batches(path, repeat)
    return time.perf_counter() - start


def _repeat_batches(path: Path, repeat: int) -> None:
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    *batches, last = (file.get_batch_with_custom_metadata(i) for i in range(file.num_record_batches))
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, file.schema) as out,
    ):
        for each in [*(batches * repeat), last]:
            out.write_batch(each.batch, custom_metadata=each.custom_metadata)


def memory_of_this_process() -> dict[str, int]:
    """Proportional and private bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"pss": kib["Pss"] * 1024, "private": (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024}


class Lookups(Dataset[object]):
    """Looks up the videos of a batch; for an empty one it returns the number of the process and its memory."""

    def __init__(self, clips: PairedClips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, keys: list[SampleKey]) -> object:
        """Return the number of frames of the videos, or the memory."""
        if not keys:
            time.sleep(2)  # until every worker has such a batch
            return os.getpid(), memory_of_this_process()
        return sum(self.clips.entries[key.index].video.streams["rgb"].num_frames for key in keys)


@dataclass(frozen=True)
class Batches:
    """The first batches of an epoch, and then an empty one for each worker."""

    epoch: Iterator[list[SampleKey]]
    num_batches: int

    def __len__(self) -> int:
        return self.num_batches + NUM_WORKERS

    def __iter__(self) -> Iterator[list[SampleKey]]:
        yield from itertools.islice(self.epoch, self.num_batches)
        yield from ([] for _ in range(NUM_WORKERS))


def _as_it_is(value: object) -> object:
    return value


def measure(folder: Path, start_method: str, max_lookups: int) -> dict[str, Any]:
    """Open the manifest, look up training clips in the workers, and return times and memory."""
    start, start_processor = time.perf_counter(), time.process_time()
    manifest = Manifest.load(folder)
    opened, opened_processor = time.perf_counter(), time.process_time()
    train = manifest.positions(split="1", part="train")
    assert manifest.streams == ("flow", "rgb")
    answered, answered_processor = time.perf_counter(), time.process_time()
    entries = entries_of(manifest, train)
    view = make_view("rgb", num_frames=8, stride=4, size_px=112)
    clips = PairedClips(entries, student_view=view)
    num_clips, num_videos = len(clips), len(manifest.videos)
    del train, entries
    ready = time.perf_counter()
    batches = TrainingBatches(
        num_samples=num_clips, batch_size=1 if num_clips < BATCH_SIZE else BATCH_SIZE, num_epochs=1, seed=0
    )
    # Every worker has a batch.
    num_batches = min(len(batches), max(NUM_WORKERS, max_lookups // batches.batch_size))
    epoch = iter(batches)  # it holds the order of the clips until the memory is measured
    loader = DataLoader(
        Lookups(clips),
        batch_sampler=Batches(epoch, num_batches),
        num_workers=NUM_WORKERS,
        collate_fn=_as_it_is,
        multiprocessing_context=start_method,
    )
    num_frames, workers = 0, {}
    for found in loader:
        if isinstance(found, tuple):
            workers[found[0]] = found[1]
        else:
            num_frames += found
    walked = time.perf_counter()
    own = memory_of_this_process()
    assert len(workers) == NUM_WORKERS and num_frames == num_batches * batches.batch_size * NUM_FRAMES
    rounds_seconds = []
    for chosen in np.random.default_rng(0).integers(num_clips, size=(NUM_ROUNDS, LOOKUPS_A_ROUND)).tolist():
        timed = time.process_time()
        for i in chosen:
            clips.entries[i]
        rounds_seconds.append((time.process_time() - timed) / LOOKUPS_A_ROUND)
    return {
        "num_videos": num_videos,
        "num_clips": num_clips,
        "num_lookups": num_batches * batches.batch_size,
        "open_seconds": opened - start,
        "open_processor_seconds": opened_processor - start_processor,
        "questions_seconds": answered - opened,
        "questions_processor_seconds": answered_processor - opened_processor,
        "dataset_seconds": ready - answered,
        "walk_seconds": walked - ready,
        "lookup_microseconds": [1e6 * of(rounds_seconds) for of in (min, statistics.median)],
        "main": own,
        "workers": list(workers.values()),
    }


def measure_apart(folder: Path, start_method: str, max_lookups: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), "--starts", start_method]
    command += ["--lookups", str(max_lookups)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    """Make the manifests, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=50_000, help="number of videos (default: 50,000)")
    parser.add_argument("--repeat", type=int, default=1, help="write the videos so many times (default: once)")
    parser.add_argument("--folder", type=Path, help="where the manifest is made and kept; default: a temporary folder")
    parser.add_argument(
        "--lookups", type=int, default=sys.maxsize, help="clips that all workers look up (default: every clip once)"
    )
    parser.add_argument("--starts", nargs="+", default=["fork", "spawn"], help="how workers start (default: both ways)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.starts[0], args.lookups)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        few, many = Path(temporary, "few"), args.folder or Path(temporary, "many")
        make_manifest(few, FEW_VIDEOS)
        written_seconds = make_manifest(many, args.videos, repeat=args.repeat)
        columns = {}
        for start_method in args.starts:
            base, found = (measure_apart(folder, start_method, args.lookups) for folder in (few, many))
            num_clips = found["num_clips"] - base["num_clips"]

            def per_clip(
                kind: str, base: dict[str, Any] = base, found: dict[str, Any] = found, n: int = num_clips
            ) -> str:
                own = (found["main"][kind] - base["main"][kind]) / n
                worst = max(each[kind] for each in found["workers"]) - min(each[kind] for each in base["workers"])
                return f"{own:.0f} / {worst / n:.0f}"

            columns[start_method] = {
                "videos": f"{found['num_videos']:,}",
                "open, s": f"{found['open_seconds']:.3f} ({found['open_processor_seconds']:.3f})",
                "select a split, common streams, s": f"{found['questions_seconds']:.3f} "
                f"({found['questions_processor_seconds']:.3f})",
                "dataset of the training clips, s": f"{found['dataset_seconds']:.3f}",
                "look up clips in the workers, s": f"{found['walk_seconds']:.1f} ({found['num_lookups']:,} clips)",
                "look up one clip, µs of processor time, fastest / median round": " / ".join(
                    f"{microseconds:.0f}" for microseconds in found["lookup_microseconds"]
                ),
                "proportional bytes a clip, main / worker": per_clip("pss"),
                "private bytes a clip, main / worker": per_clip("private"),
            }
        size = sum(path.stat().st_size for path in many.glob("manifest.*"))
        print(
            f"manifest: {size / 1e6:.1f} MB, {size / args.videos / args.repeat:.0f} bytes a video; "
            f"made in {written_seconds:.1f} s"
        )
        facts = next(iter(columns.values()))
        rows = [[fact, *(column[fact] for column in columns.values())] for fact in facts]
        load = os.getloadavg()[0]
        print_table(f"{NUM_WORKERS} workers, load {load:.0f}; in brackets processor time", ["", *columns], rows)


if __name__ == "__main__":
    main()
