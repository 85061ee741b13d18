"""How much must a reader of one training step read? Lines and files of the loop, task, teachers, loss and memory bank.

    python scripts/count_step_lines.py

A CompRess-2q distillation of two small networks trains on random tensors, and the second step runs under a tracer.
Every function that it enters in the rooms training, distillation and objectives counts once, with its docstring and
comments; so do the head and docstring of its class, and the loop itself. Functions of the rooms below (how a clip is
normalised, how a network embeds it) are listed, but they are not part of the step.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from accelerate import Accelerator

from crossdistill.distillation.distiller import Distiller
from crossdistill.encoders import create_encoder
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.tasks import create_optimizer
from crossdistill.training import loop
from crossdistill.training.gradient_scaling import GradientScaling
from crossdistill.types import PairedBatch, View

PACKAGE = Path(loop.__file__).resolve().parents[1]
ROOMS = ("training", "distillation", "objectives")
MAX_LINES, MAX_FILES = 600, 8


def step_inputs() -> tuple[Distiller, torch.optim.Optimizer, Accelerator, PairedBatch]:
    """Build a task, its optimizer, processes and a batch of random clips."""
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    student, teacher = (create_encoder(name, num_frames=4, size_px=16) for name in ("flow_tiny3d_8", "rgb_tiny3d_8"))
    distiller = Distiller(student=student, teachers=teacher, objective="compress-2q", bank_size=16)
    optimizer = create_optimizer(RunConfig(), distiller.trainable)

    def view(channels: int) -> View:
        return View(torch.randint(0, 255, (4, channels, 4, 16, 16), dtype=torch.uint8), torch.ones(4, channels))

    batch = PairedBatch(view(2), (view(3),), sample_ids=torch.arange(4), labels=torch.zeros(4, dtype=torch.int64))
    return distiller, optimizer, accelerator, batch


def entered_functions() -> set[CodeType]:
    """Run two steps and return the functions of ours that the second one entered."""
    distiller, optimizer, accelerator, batch = step_inputs()
    model, optimizer = accelerator.prepare(distiller.trainable, optimizer)
    distiller.wrap(lambda _: model)
    scaling = GradientScaling("fp32", accelerator.device)
    found: set[CodeType] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            found.add(frame.f_code)

    for number in range(2):
        if number == 1:
            sys.setprofile(trace)
        loop._step(distiller, model, optimizer, scaling, batch, lr=0.01, clip_norm=0.0, accelerator=accelerator)
        distiller.after_step()
    sys.setprofile(None)
    return found


def lines_of(path: Path, first_lines: set[int]) -> tuple[int, list[str]]:
    """Count the lines of the functions that begin at some lines, with the heads of their classes, and name them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    total, names = 0, []
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        functions = [part for part in members if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
        entered = [each for each in functions if start_of(each) in first_lines]
        total += sum((each.end_lineno or 0) - start_of(each) + 1 for each in entered)
        if entered and isinstance(node, ast.ClassDef):
            total += start_of(functions[0]) - start_of(node)
        names += [f"{node.name}.{each.name}" if isinstance(node, ast.ClassDef) else each.name for each in entered]
    return total, names


def start_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Return the first line of a definition, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def count() -> dict[str, tuple[int, list[str]]]:
    """Map each file to the number of lines and the functions that one step enters."""
    by_file: dict[Path, set[int]] = {}
    for code in entered_functions():
        by_file.setdefault(Path(code.co_filename), set()).add(code.co_firstlineno)
    by_file[Path(loop.__file__)].add(loop.train.__code__.co_firstlineno)
    found = {path.relative_to(PACKAGE).as_posix(): lines_of(path, lines) for path, lines in sorted(by_file.items())}
    return {name: value for name, value in found.items() if value[0]}


def main() -> None:
    """Print one row per file, and fail above the limits."""
    found = count()
    step = {name: value for name, value in found.items() if name.partition("/")[0] in ROOMS}
    for name, (num_lines, functions) in step.items():
        print(f"{num_lines:4d}  {name:38s} {', '.join(functions)}")
    total = sum(num_lines for num_lines, _ in step.values())
    print(f"{total:4d}  lines in {len(step)} files")
    print("\nbelow the step:")
    for name, (num_lines, functions) in found.items():
        if name not in step:
            print(f"{num_lines:4d}  {name:38s} {', '.join(functions)}")
    if total > MAX_LINES or len(step) > MAX_FILES:
        sys.exit(f"a step may take {MAX_LINES} lines in {MAX_FILES} files to read")


if __name__ == "__main__":
    main()
