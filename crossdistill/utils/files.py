"""Write files atomically: to a temporary file that is flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from crossdistill.errors import FULL_DISK_ERRORS, UserError

MAX_NAME_BYTES = 255
"""Longest name of a file on nearly all file systems."""
NUM_RANDOM_BYTES = 4


def fitting_name(name: str, *, room: int = 0) -> str:
    """Return a file name, cut and marked with a hash if it is too long for a file system.

    Args:
        name: Any name without a slash. Its suffix is kept.
        room: Bytes that must remain free.

    Example:
        >>> fitting_name("clip.mp4")
        'clip.mp4'
        >>> fitting_name(300 * "a" + ".mp4", room=240)
        'aa~3e26063f.mp4'
    """
    limit = MAX_NAME_BYTES - room
    if len(os.fsencode(name)) <= limit:
        return name
    ending = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{Path(name).suffix}"
    kept = os.fsencode(name)[: max(0, limit - len(os.fsencode(ending)))]
    return kept.decode("utf-8", errors="ignore") + ending


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside ``path`` that no other process of any machine uses; it is new in each call."""
    return path.with_name(f".{temporary_stem(path)}.{secrets.token_hex(NUM_RANDOM_BYTES)}.tmp")


def temporary_stem(path: Path) -> str:
    """Return the part of the name of a temporary file that is the same in all processes: ``.<stem>.<random>.tmp``."""
    return fitting_name(path.name, room=len("...tmp") + 2 * NUM_RANDOM_BYTES)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder, and rename it to ``path`` if the block succeeds.

    If the block raises, the temporary file is removed and ``path`` is unchanged. The file and its folder are flushed to
    disk, so that a power failure after the block cannot leave an empty file. The file is as readable as the umask
    allows, also if a library that writes it makes it private (safetensors does).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        _set_mode(temporary, mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:  # names no file
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_pair(path: Path, suffix: str) -> Iterator[Path]:
    """Yield a temporary file as ``atomic_path`` does, for a block that also writes a second file beside it.

    The second file has the same name with another ``suffix``, and so has the one beside ``path`` that it replaces. It
    is renamed first. A crash between both renames leaves files of two exports, so the first should say which second
    file belongs to it.
    """
    second = path.with_suffix(suffix)
    if second == path:
        raise UserError(f"{path} ends in {suffix}, which is the name of the file beside it: give another name")
    with atomic_path(path) as temporary:
        written = temporary.with_suffix(suffix)
        try:
            yield temporary
            with atomic_path(second) as temporary_second:
                os.replace(written, temporary_second)
        finally:
            written.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``, which must not exist. Rename it if the block succeeds, else remove it.

    Its files are as readable as the umask allows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode
        for file in temporary.rglob("*"):
            if file.is_file():
                _set_mode(file, mode & 0o666)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_mode(path: Path, mode: int) -> None:
    # Some file systems have one mode for all files and refuse any change.
    if stat.S_IMODE(path.stat().st_mode) != stat.S_IMODE(mode):
        path.chmod(stat.S_IMODE(mode))


def is_writable(folder: Path) -> bool:
    """Return whether files can be made in an existing folder. It tries: permissions do not tell of a network drive."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def require_writable(path: Path) -> None:
    """Raise a ``UserError`` if no file can be written to a path. Call it before the work whose result is written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file name")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not is_writable(parent):
        raise UserError(f"{path} cannot be written, because {parent} is not a writable folder: give another path")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def bytes_text(num_bytes: float) -> str:
    """Return a size as people read it.

    Example:
        >>> bytes_text(900), bytes_text(1_230_000), bytes_text(45_600_000_000)
        ('900 B', '1.23 MB', '45.6 GB')
    """
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def write_lines_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write UTF-8 lines, given without line ends, to a file atomically, one by one."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
