"""Makes a dataset that is in an object store or on a web server usable on this machine, without copying it whole.

The folder gets the manifest, and the address of the files. Training, evaluation, caches and verify then fetch the clips
that they read, and keep the last of them in the folder, up to --copy-size. Pack the dataset first (python -m data_prep
pack), and upload its folder as it is. Addresses: s3://bucket/path, gs://bucket/path, https://host/path, and all others
that fsspec knows. Credentials and settings come from where fsspec and its libraries look for them, for example
AWS_ACCESS_KEY_ID and FSSPEC_S3_ENDPOINT_URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.data.stores import LINK_NAME, find_store, link_text, read_remote
from crossdistill.data.video_table import VideoTable
from crossdistill.errors import UserError
from crossdistill.utils.files import atomic_path, write_text_atomically
from data_prep.pipeline.sizes import parse_size
from data_prep.pipeline.summary import print_summary

LEAST_COPY_BYTES = 10**8


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """Options of ``python -m data_prep link``."""

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """Address of the folder that has the manifest."""
    out: Path
    """Folder for the manifest and the copies, which is then given as --data."""
    copy_size: str = "50GB"
    """Largest size of the copies on this machine's disk. Those that were not read for the longest time are removed,
    but none of the last minute."""


def link_dataset(options: LinkOptions) -> Manifest:
    """Fetch the manifest, write the link, and print the number of files by status.

    Raises:
        UserError: The store has no manifest or does not answer, the size is invalid, or ``--out`` is another dataset.
    """
    max_bytes = parse_size(options.copy_size, option="--copy-size")
    if max_bytes < LEAST_COPY_BYTES:
        raise UserError(f"--copy-size is {options.copy_size}: give 100MB or more, so that a batch fits in")
    if "://" not in options.url:
        raise UserError(f"{options.url} is no address: give one such as s3://bucket/folder, or use --data for a folder")
    if (options.out / MANIFEST_NAME).exists() and not (options.out / LINK_NAME).exists():
        raise UserError(f"--out {options.out} holds a dataset: give another folder")
    url = options.url.rstrip("/")
    content = read_remote(url, MANIFEST_NAME)
    with atomic_path(options.out / MANIFEST_NAME) as temporary:
        temporary.write_bytes(content)
        # Before it is kept: else what the folder had before stays.
        _require_room(VideoTable.open(temporary), max_bytes)
    write_text_atomically(options.out / LINK_NAME, link_text(url, max_bytes=max_bytes))
    find_store.cache_clear()
    manifest = Manifest.load(options.out)
    _require_named_inside(manifest, url)
    print_summary(manifest)
    return manifest


def _require_room(table: VideoTable, max_bytes: int) -> None:
    """Raise a ``UserError`` if the copies have no room for the largest file."""
    sizes = (table.stream_numbers(name, "num_bytes").max(initial=0) for name in table.layout.streams)
    largest_bytes = int(max(sizes, default=0))
    if largest_bytes > max_bytes:
        raise UserError(
            f"--copy-size is {max_bytes / 1e9:.3g}GB, and the largest file of the dataset has "
            f"{largest_bytes / 1e9:.3g} GB: give more, so that it is not fetched for each clip"
        )


def _require_named_inside(manifest: Manifest, url: str) -> None:
    """Raise a ``UserError`` if files of the dataset are not beside its manifest."""
    for video in () if manifest.facts.get("shards") else manifest.videos:
        for stream in video.streams.values():
            if stream.path.startswith("/") or not stream.num_bytes:
                raise UserError(
                    f"the dataset at {url} names {stream.path}, which is on the machine where it was prepared: pack it "
                    "there (python -m data_prep pack), and upload the packed folder"
                )
