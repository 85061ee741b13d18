"""Where the bytes of a stream are: a file of its own, or a range of a larger file such as a tar shard."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import UnreadableVideoError

PIECE_BYTES = 2**24


@dataclass(frozen=True)
class FileRange:
    """A file, or some bytes of it.

    Example:
        >>> print(FileRange(Path("shards/00000.tar"), offset=1536, num_bytes=40_000))
        shards/00000.tar (bytes 1536 to 41536)
    """

    path: Path
    offset: int = 0
    """First byte."""
    num_bytes: int | None = None
    """None: up to the end of the file."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a file of its own."""
        return not self.offset

    @property
    def url(self) -> str:
        """The name under which FFmpeg opens exactly these bytes, even if the path looks like a URL."""
        url = f"file:{self.path.absolute()}"
        if self.is_whole:
            return url
        assert self.num_bytes is not None, "a range has an end"
        return f"subfile,,start,{self.offset},end,{self.offset + self.num_bytes},,:{url}"

    @property
    def protocols(self) -> str:
        """FFmpeg's names of what the URL needs, and of nothing else."""
        return "file" if self.is_whole else "file,subfile"

    def require(self) -> None:
        """Raise ``UnreadableVideoError`` if the file is missing, is no regular file, or ends before the range does."""
        try:
            facts = self.path.stat()
        except OSError as error:
            raise UnreadableVideoError(f"{self}: cannot be opened ({error.strerror})") from error
        if not self.path.is_file():  # a device or a pipe may have no end
            raise UnreadableVideoError(f"{self}: is no regular file")
        if self.num_bytes is not None and not self.is_whole and facts.st_size < self.offset + self.num_bytes:
            raise UnreadableVideoError(f"{self}: the file ends at byte {facts.st_size}")

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            UnreadableVideoError: The file cannot be read, or ends before the range.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                if self.offset:
                    file.seek(self.offset)
                content = file.readall() if self.num_bytes is None else file.read(self.num_bytes)
                # One call may return less, for example from a network disk.
                while (lacking := (self.num_bytes or 0) - len(content)) > 0 and (more := file.read(lacking)):
                    content += more
        except OSError as error:
            raise UnreadableVideoError(f"{self.path}: cannot be opened ({error.strerror})") from error
        if self.num_bytes is not None and len(content) < self.num_bytes:
            raise UnreadableVideoError(f"{self.path}: ends before byte {self.offset + self.num_bytes}")
        return content

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes in pieces, for files of many gigabytes; errors as in ``read``."""
        lacking = sys.maxsize if self.num_bytes is None else self.num_bytes
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                while lacking and (piece := file.read(min(PIECE_BYTES, lacking))):
                    lacking -= len(piece)
                    yield piece
        except OSError as error:
            raise UnreadableVideoError(f"{self.path}: cannot be opened ({error.strerror})") from error
        if self.num_bytes is not None and lacking:
            raise UnreadableVideoError(f"{self.path}: ends before byte {self.offset + self.num_bytes}")

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes in hexadecimal digits; errors as in ``read``."""
        digest = hashlib.sha256()
        # A file that has grown differs as well.
        for piece in (FileRange(self.path) if self.is_whole else self).pieces():
            digest.update(piece)
        return digest.hexdigest()

    def __str__(self) -> str:
        if self.is_whole:
            return str(self.path)
        return f"{self.path} (bytes {self.offset} to {self.offset + (self.num_bytes or 0)})"


def as_range(source: Path | FileRange) -> FileRange:
    """Return a range as it is, and a path as the range of the whole file."""
    return source if isinstance(source, FileRange) else FileRange(source)
