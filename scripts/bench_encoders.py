"""Training speed of encoders by precision and memory layout: the measurements behind ``--precision auto``.

python scripts/bench_encoders.py [NAME ...]  prints clips/s of forward + backward + SGD step.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings

import torch

from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.types import View
from crossdistill.utils.environment import describe_environment

# Name, frames, pixels, batch.
CASES = (
    ("rgb_r3d10", 8, 64, 16),
    ("rgb_r3d18", 8, 48, 8),
    ("rgb_r3d50", 8, 64, 8),
    ("rgb_x3d_xs", 4, 96, 8),
    ("image_resnet18", 1, 112, 16),
    ("image_mobilenet_v2", 1, 112, 16),
    ("image_alexnet", 1, 112, 16),
)
SECONDS_PER_CASE = 3.0

warnings.simplefilter("ignore")


def clips_per_second(name: str, num_frames: int, size_px: int, batch: int, precision: str, layout: str) -> float:
    """Clips/s of training steps on made inputs."""
    torch.manual_seed(0)
    encoder = create_encoder(name, num_frames=num_frames, size_px=size_px).train()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    execution = Execution.choose(encoder, device=device, precision=precision, layout=layout)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
    values = torch.randint(0, 255, (batch, 3, num_frames, size_px, size_px), dtype=torch.uint8, device=device)
    view = View(values, torch.ones(batch, 3, device=device))

    def step() -> float:
        loss = execution.embed(encoder, view).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS_PER_CASE:
        step()
        steps += 1
    return batch * steps / (time.perf_counter() - started)


def main() -> None:
    """Measure every case in every combination."""
    environment = describe_environment()
    print({key: environment[key] for key in ("cpu", "cores", "gpus", "torch") if key in environment})
    columns = list(itertools.product(("fp32", "bf16"), ("no", "yes")))
    print("| encoder | view | " + " | ".join(f"{p}{', channels last' * (c == 'yes')}" for p, c in columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for name, num_frames, size_px, batch in CASES:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        speeds = [clips_per_second(name, num_frames, size_px, batch, *column) for column in columns]
        cells = " | ".join(f"{speed:.1f}" for speed in speeds)
        print(f"| {name} | {num_frames}x{size_px}x{size_px}, batch {batch} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
