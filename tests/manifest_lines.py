"""Manifests as former versions wrote them: lines of JSON, which a test can change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import MANIFEST_NAME, Manifest

Row = dict[str, Any]


def to_lines(folder: Path, change: Callable[[Row, list[Row]], None] = lambda header, rows: None) -> Path:
    """Replace a dataset's manifest by one of JSON lines, whose header and rows ``change`` may change in place."""
    header, *rows = map(json.loads, Manifest.load(folder).lines())
    change(header, rows)
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in (header, *rows)), encoding="utf-8")
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    return path
