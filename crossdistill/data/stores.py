"""Datasets whose files are in an object store or on a web server, with a bounded copy of them on the disk.

``python -m data_prep link`` makes a folder with the manifest and ``remote.json``, which says where the files are and
how large the copy may become. Every reader asks ``locate`` for the bytes of a stream. Of a linked dataset they are
fetched by range: one request for each stream of a clip (one for each 16 MiB of a long video), and those of a batch side
by side.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Manifest, Stream
from crossdistill.errors import OneProcessError, UserError, first_line, require_package
from crossdistill.utils.files import fitting_name, temporary_path
from crossdistill.utils.records import read_versioned_json

LINK_NAME, LINK_VERSION = "remote.json", 1
COPY_NAME = "copies"
RANGE_BEYOND_END = 416
"""HTTP's status for a range that the file does not have."""
NUM_REQUESTS = 16
"""Requests at once of one process. An answer takes tens of milliseconds, whatever its size."""
REQUEST_BYTES = 2**24
"""Largest part of a file that is asked for at once, so that long videos do not fill the memory: a thread has two."""
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Pauses before a failed request is repeated."""
ANSWER_SECONDS = 30.0
"""Longest time that a store may be silent. The libraries below fsspec wait for five minutes or more."""
LEAST_BYTES_PER_SECOND = 50_000
"""A range that comes more slowly is asked for again."""
FULL_SHARE = 0.9
"""Share of the largest size to which the copy is reduced when it is too large."""
UNFINISHED_SECONDS = 3600.0
"""Age from which a temporary file is one of a killed process."""
IN_USE_SECONDS = 60.0
"""A file that was asked for in this time is not removed: its reader may not have opened it yet."""
CHECKS_PER_SIZE = 32
"""The copy is measured whenever a process has fetched this part of its largest size."""


class StoreError(OneProcessError):
    """A store refuses or does not answer, or its copy cannot be kept. Nothing is wrong with the data."""


def locate(root: Path, stream: Stream) -> FileRange:
    """Return where the bytes of a stream are, after they were fetched if the dataset is linked.

    Raises:
        UnreadableVideoError: The path leaves the dataset's folder.
        UserError: The store does not answer, or what it has is not what the manifest says.
    """
    file = stream.file(root)
    store = find_store(root)
    if store is None or stream.path.startswith("/"):
        return FileRange(file, stream.offset, stream.num_bytes or None)
    return FileRange(store.fetch(stream))


def read_ahead(streams: Iterable[tuple[Path, Stream]]) -> None:
    """Fetch streams, given with the folders of their datasets, side by side; nothing happens to those on the disk."""
    wanted: dict[Path, list[Stream]] = {}
    for root, stream in streams:
        if find_store(root) is not None:
            wanted.setdefault(root, []).append(stream)
    for root, of_root in wanted.items():
        store = find_store(root)
        assert store is not None
        store.fetch_all(of_root)


@functools.lru_cache(maxsize=64)
def find_store(root: Path) -> RemoteStore | None:
    """Return the store of a linked dataset; None if its files are in its folder."""
    path = root / LINK_NAME
    if not path.is_file():
        return None
    facts = read_versioned_json(path, absent="", version=LINK_VERSION, remedy="link the dataset again")
    return RemoteStore(url=str(facts["url"]), folder=root / COPY_NAME, max_bytes=int(facts["max_bytes"]))


def link_text(url: str, *, max_bytes: int) -> str:
    """Return the content of ``remote.json``."""
    facts = {"format": "crossdistill-link", "version": LINK_VERSION, "url": url, "max_bytes": max_bytes}
    return json.dumps(facts, indent=2) + "\n"


def check_shards(manifest: Manifest) -> None:
    """Raise a ``UserError`` if a shard of a packed dataset is missing or has another size than when it was written."""
    if find_store(manifest.root) is not None:
        return
    for name, num_bytes in manifest.facts.get("shards", {}).items():
        path = manifest.root / name
        if not path.is_file():
            raise UserError(
                f"{path} is missing, one of the {len(manifest.facts['shards'])} shards of {manifest.root}: copy it to "
                "this machine, or link the dataset where it is (python -m data_prep link)"
            )
        if path.stat().st_size != num_bytes:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, and the manifest says {num_bytes}: copy it again, or pack "
                "the dataset again (python -m data_prep pack)"
            )


@functools.lru_cache(maxsize=8)
def _file_system(url: str, process: int) -> tuple[Any, str]:
    """Open the store of a URL in one process: connections do not survive a fork."""
    # gcsfs would ask over gRPC what kind of bucket it is, for each request where that is refused. And loader processes
    # that are forked from a process with gRPC end.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    fsspec = require_package("fsspec", target=url, extra="remote")
    try:
        system, path = fsspec.url_to_fs(url, skip_instance_cache=True, **_web_options(url, fsspec.config.conf))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} cannot be opened ({error}): correct the address, or install what opens it: pip install gcsfs for "
            "gs://, pip install 'crossdistill[remote]' for s3:// and https://"
        ) from error
    except OSError as error:
        raise UserError(f"{url} cannot be opened ({error}): check the address, the network and your login") from error
    return system, str(path).rstrip("/")


def _web_options(url: str, conf: dict[str, Any]) -> dict[str, Any]:
    """Return options of a web server: no limit on the whole time, which a manifest of gigabytes would pass."""
    protocol = url.partition("://")[0]
    if protocol not in ("http", "https"):
        return {}
    import aiohttp  # fsspec needs it for the same URL

    limit = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS, sock_read=ANSWER_SECONDS)
    return {"client_kwargs": {"timeout": limit, **conf.get(protocol, {}).get("client_kwargs", {})}}


def _time_limit(system: Any, start: int | None, end: int | None) -> dict[str, float]:
    """Return the argument that limits the time of a request for a range, where fsspec has one."""
    if not getattr(system, "async_impl", False) or end is None:
        return {}
    return {"timeout": ANSWER_SECONDS + (end - (start or 0)) / LEAST_BYTES_PER_SECOND}


def read_remote(url: str, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
    """Read a file of a store, or its bytes from ``start`` to ``end``; requests that fail are repeated.

    Raises:
        UserError: The store lacks the file, refuses it, or does not answer after all repetitions.
    """
    system, folder = _file_system(url, os.getpid())
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            content = system.cat_file(f"{folder}/{path}", start=start, end=end, **_time_limit(system, start, end))
            return bytes(content)
        except Exception as error:  # each protocol has errors of its own
            status = getattr(error, "status", None)  # of HTTP
            is_refused = isinstance(error, PermissionError) or status in (401, 403) or _lacks_login(error)
            if status == RANGE_BEYOND_END:
                raise OneProcessError(
                    f"{url} has fewer bytes in {path} than the manifest says: link the dataset again, or upload the "
                    "file again"
                ) from error
            if is_refused or isinstance(error, FileNotFoundError):
                kind = StoreError if is_refused else OneProcessError
                raise kind(
                    f"{url} {'refuses' if is_refused else 'lacks'} {path} ({_reason(error)}): check the address and "
                    "the credentials that fsspec takes from the environment"
                ) from error
            if pause_seconds is None:
                raise StoreError(
                    f"{url} does not give {path} ({_reason(error)}), after {len(PAUSES_SECONDS) + 1} requests: start "
                    "the same command again when it answers (training with --resume)"
                ) from error
            time.sleep(pause_seconds)
    raise AssertionError("the last request returns or raises")


def _lacks_login(error: BaseException) -> bool:
    """Whether a library finds no valid credentials on this machine: NoCredentialsError, ProfileNotFound and so on."""
    return re.search("Credential|Profile|Auth", type(error).__name__) is not None


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) and not str(error) else first_line(error)


@dataclass
class RemoteStore:
    """Files of a dataset behind a URL, and the copy of those bytes that were read last."""

    url: str
    folder: Path
    """Folder of the copy, which several processes share."""
    max_bytes: int
    """Largest size of the copy. What was asked for in the last minute is kept beyond it."""
    _fetched_bytes: int = field(default=0, init=False)
    """What this process has fetched since it measured the copy."""

    def fetch(self, stream: Stream) -> Path:
        """Return a file with the bytes of a stream; errors as in ``locate``."""
        # With the checksum: a dataset that was uploaded and linked again has other bytes in the same place.
        place = f"{stream.sha256[:16]}-{quote(stream.path, safe='')}@{stream.offset}+{stream.num_bytes}"
        path = self.folder / fitting_name(place, room=40)
        try:
            os.utime(path)  # what was read last is removed last
            if not stream.num_bytes or path.stat().st_size == stream.num_bytes:
                return path
        except (FileNotFoundError, NotADirectoryError):
            pass
        self._fetched_bytes += self._keep(path, self._pieces(stream))
        if self._fetched_bytes * CHECKS_PER_SIZE > self.max_bytes:
            self._fetched_bytes = 0
            self._shrink()
        return path

    def _pieces(self, stream: Stream) -> Iterator[bytes]:
        """Yield the bytes of a stream, with one request for each ``REQUEST_BYTES``."""
        digest, num_bytes = hashlib.sha256(), 0
        stop = stream.offset + stream.num_bytes
        # A manifest of an early version has no sizes.
        starts: Iterable[int] = range(stream.offset, stop, REQUEST_BYTES) if stream.num_bytes else [0]
        for start in starts:
            end = min(stop, start + REQUEST_BYTES) if stream.num_bytes else None
            piece = read_remote(self.url, stream.path, start=start, end=end)
            is_whole_file = start == stream.offset == 0 and len(piece) == stream.num_bytes
            if end is not None and len(piece) > end - start and not is_whole_file:
                raise OneProcessError(
                    f"{self.url} answers a request for {end - start} bytes with {len(piece)}: serve the shards with a "
                    "web server that knows ranges, or copy the dataset to this machine"
                )
            digest.update(piece)
            num_bytes += len(piece)
            yield piece
            if is_whole_file or (end is not None and len(piece) < end - start):
                break  # the server knows no ranges, or the file is too short
        is_whole = num_bytes == (stream.num_bytes or num_bytes)
        if not is_whole or (stream.sha256 and digest.hexdigest() != stream.sha256):
            raise OneProcessError(
                f"{self.url} has other bytes in {stream.path} from byte {stream.offset} on than the manifest says: "
                "link the dataset again, or upload the shard again"
            )

    def _keep(self, path: Path, pieces: Iterable[bytes]) -> int:
        """Write a file of the copy when all of it is there, and return its size."""
        temporary = temporary_path(path)
        try:
            self.folder.mkdir(exist_ok=True)
            # Not flushed to the disk: a file that a power failure has cut is fetched again.
            with open(temporary, "wb") as file:
                num_bytes = sum(map(file.write, pieces))
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot keep a copy ({error.strerror}): free space there, make it writable, or link the "
                "dataset into another folder or with a smaller --copy-size"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return num_bytes

    def fetch_all(self, streams: Iterable[Stream]) -> None:
        """Fetch streams side by side."""
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            for _ in pool.map(self.fetch, streams):
                pass

    def _shrink(self) -> None:
        """Remove the files that were not asked for for the longest time, if the copy is too large."""
        now = time.time()
        found: list[tuple[float, int, str]] = []
        for entry in os.scandir(self.folder):
            try:
                facts = entry.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if entry.name.endswith(".tmp") and now - facts.st_mtime < UNFINISHED_SECONDS:
                continue  # another process writes it
            found.append((facts.st_mtime, facts.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self.max_bytes:
            return
        for asked_at, size, path in sorted(found):
            if total <= FULL_SHARE * self.max_bytes or now - asked_at < IN_USE_SECONDS:
                return
            Path(path).unlink(missing_ok=True)
            total -= size
