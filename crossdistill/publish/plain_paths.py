"""No published file names the folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError

# Also inside a name: "rgb_hf:/home/me/model" and "/home/me/net.py:build". A path of one part, "/", is no folder's name.
_FOLDERS = re.compile(r"(?:(?<![\w./~-])(?:~|\.\.)?/|(?<![\w])[A-Za-z]:\\)(?:[^/\\\n\"]*[/\\])*(?=[^/\\\n\"])")


def without_folders(value: Any) -> Any:
    """Return JSON values in which every path that begins outside the working directory is its last part alone.

    Example:
        >>> without_folders({"weights": ["/home/me/runs/teacher"], "name": "rgb_hf:/models/vit", "data": "data/ucf101"})
        {'weights': ['teacher'], 'name': 'rgb_hf:vit', 'data': 'data/ucf101'}
    """
    if isinstance(value, str):
        return value if "://" in value else _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    return value


def require_no_folder(files: Mapping[str, bytes | Path], folders: list[Path]) -> None:
    """Raise a ``UserError`` if a text, or the header of a file of tensors, names one of some folders.

    Args:
        files: Name to the content or to the file.
        folders: Absolute paths, for example the home folder. One with a single part, ``/tmp``, is not looked for.
    """
    marks = [str(folder) for folder in folders if len(folder.parts) > 2]
    for name, content in files.items():
        text = _text_of(content)
        for mark in marks:
            if re.search(re.escape(mark) + r"(?![\w.-])", text):
                raise UserError(
                    f"{name} names the folder {mark} of this machine: remove the path from it and try again"
                )


def _text_of(content: bytes | Path) -> str:
    """Return a text, or of a file of tensors its header."""
    if isinstance(content, bytes):
        return content.decode("utf-8", errors="replace")
    with open(content, "rb") as file:
        if content.suffix != ".safetensors":
            return file.read().decode("utf-8", errors="replace")
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8", errors="replace")
