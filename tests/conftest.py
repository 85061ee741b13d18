"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT_FOLDER = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real videos and official lists that are not part of the project; tests skip without them."""
    folder = Path(os.environ.get("CROSSDISTILL_SHARED", PROJECT_FOLDER.parent / "shared"))
    if not (folder / "media").is_dir():
        pytest.skip("no shared data")
    return folder
