"""The ways to estimate flow against the exact flow of rendered clips: error and time per pair of 240x320 pictures.

python scripts/bench_flow.py [--clips 4] [--frames 12] [--raft-weights raft_small ...]

One thread of the CPU (RAFT takes a GPU if there is one). Clips are stored as H.264 and as MPEG-4 first, as real
videos are, and read back as preparation reads them. Without --raft-weights RAFT is timed with random
parameters, and its error is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torchvision.models.optical_flow import raft_small

from crossdistill.utils.environment import describe_environment
from data_prep.datasets.toyactions_renderer import ACTIONS, SceneKey, compose_scene, render_clip
from data_prep.flow import FLOW_METHODS, FLOW_PRESETS
from data_prep.frames import Frame
from data_prep.pipeline.readers import read_video
from data_prep.recipe import Recipe

HEIGHT_PX, WIDTH_PX = 240, 320
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "H.264": ("libx264", {}),
    "MPEG-4": ("mpeg4", {"bf": "2", "b": "2000000"}),
}
Flow = NDArray[np.float32]


def render(action: str, number: int, num_frames: int) -> tuple[NDArray[np.uint8], Flow]:
    """Pictures [T, H, W, 3] and their flow [T - 1, H, W, 2]: a square clip that is stretched to the width."""
    scene = compose_scene(
        action, SceneKey(seed=0, group=number + 1, clip=number), size_px=HEIGHT_PX, num_frames=num_frames
    )
    clip = render_clip(scene)
    pictures = [cv2.resize(picture, (WIDTH_PX, HEIGHT_PX)) for picture in clip.rgb]
    stretch = np.array([WIDTH_PX / HEIGHT_PX, 1], dtype=np.float32)
    flows = [cv2.resize(flow, (WIDTH_PX, HEIGHT_PX)) * stretch for flow in clip.flow_px]
    return np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), np.stack(flows)


def write(path: Path, pictures: NDArray[np.uint8], codec: str, options: dict[str, str]) -> Path:
    """Store pictures [T, H, W, 3] as a video."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def measure(recipe: Recipe, videos: list[tuple[Path, Flow]]) -> tuple[float, float]:
    """Mean end-point error in pixels, and the median time per pair in milliseconds."""
    errors, milliseconds = [], []
    for path, truth in videos:
        frames: list[Frame] = list(read_video(path, recipe))
        estimate = FLOW_METHODS[recipe.flow].create(recipe)
        for t, exact in enumerate(truth):
            started = time.perf_counter()
            flow = estimate(frames[t], frames[t + 1])
            milliseconds.append(1e3 * (time.perf_counter() - started))
            errors.append(float(np.linalg.norm(flow - exact, axis=-1).mean()))
    return statistics.mean(errors), statistics.median(milliseconds)


def recipes(raft_weights: list[str], random_weights: Path) -> dict[str, Recipe]:
    """What is compared, by name."""
    made = {f"dis, {preset}": Recipe(flow="dis", flow_preset=preset) for preset in FLOW_PRESETS}
    made |= {name: Recipe(flow=name) for name in ("farneback", "tvl1", "motion-vectors")}
    for weights in raft_weights:
        made[f"raft, {Path(weights).name}"] = Recipe(flow="raft", flow_weights=weights)
    if not raft_weights:
        torch.save(raft_small().state_dict(), random_weights)
        made["raft_small, random"] = Recipe(flow="raft", flow_weights=str(random_weights))
    return made


def main() -> None:
    """Render, store, estimate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--raft-weights", nargs="*", default=[])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos: dict[str, list[tuple[Path, Flow]]] = {name: [] for name in CODECS}
        for i, action in enumerate(list(ACTIONS)[:: max(1, len(ACTIONS) // options.clips)][: options.clips]):
            pictures, truth = render(action, i, options.frames)
            for name, (codec, settings) in CODECS.items():
                videos[name].append((write(Path(folder, f"{action}_{codec}.mp4"), pictures, codec, settings), truth))
        moved_px = np.mean([np.linalg.norm(truth, axis=-1).mean() for _, truth in videos["H.264"]])
        table = Table(title=f"flow at {HEIGHT_PX}x{WIDTH_PX}: mean motion {moved_px:.2f} px", title_justify="left")
        for column in ("method", "ms per pair", *(f"error in {name}, px" for name in CODECS)):
            table.add_column(column, justify="left" if column == "method" else "right")
        for name, recipe in recipes(options.raft_weights, Path(folder, "random.pth")).items():
            measured = [measure(recipe, videos[codec]) for codec in CODECS]
            errors = ["-" if "random" in name else f"{error:.3f}" for error, _ in measured]
            table.add_row(name, f"{statistics.median(ms for _, ms in measured):.1f}", *errors)
    Console().print(table)
    print(describe_environment())


if __name__ == "__main__":
    main()
