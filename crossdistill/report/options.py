"""Options of a report. They stand apart from the work, so that ``--help`` need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report: what it shows, and how networks are loaded and clips are decoded."""

    data: Path | None = None
    """Prepared dataset; by default the dataset of the run."""
    baseline: Path | None = None
    """Run of the same student trained with labels (supervised baseline)."""
    gallery: int = 12
    """Number of test clips shown with their nearest neighbours."""
    teacher: bool = True
    """Load and embed the teacher too."""
    clips: int = 5000
    """Maximum number of clips of each part that are embedded; features are stored in the run folder."""
    runtimes: bool = False
    """Export every network as ONNX, and time it in the runtimes that are installed (onnxruntime, OpenVINO)."""
    workers: int = 2
    """Processes that decode."""
    allow_code: bool = False
    """Run the Python file of a custom encoder (path/to/file.py:function)."""
