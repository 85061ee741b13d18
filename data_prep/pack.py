"""Packs a prepared dataset into tar shards, for disks and object stores that dislike millions of small files.

The result is a prepared dataset as well: its manifest says which bytes of which shard each stream is, so that training
reads any clip at any time. WebDataset reads the shards too: the files of a video have the same key, its position in the
manifest, for example 00000012.rgb.mp4 and 00000012.flow.mp4; 00000012.cls holds the number of its class and
00000012.json its name, class, group and splits. A long video with several segments is stored once, with the key of its
first segment. Repeat the command to continue after an interruption: finished shards
are kept. The streams are the same bytes as before, so teacher caches and runs fit both datasets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import tyro

from crossdistill.data.manifest import Manifest, Stream, Video, is_prepared
from crossdistill.data.stores import LINK_NAME, locate
from crossdistill.data.videos import LazyVideos, Row
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.files import atomic_path, write_text_atomically
from data_prep.pipeline.sizes import parse_size
from data_prep.pipeline.summary import print_summary

BLOCK, END_BYTES = tarfile.BLOCKSIZE, 2 * tarfile.BLOCKSIZE
LARGEST_OF_USTAR = 8**11 - 1
"""Bytes of a file, 8 GiB. GNU's header, which every tar reads, has room for more."""
SHUFFLE_SEED = 0
PLAN_NAME = "packing.json"
"""What the shards of a folder are made of, so that those of another dataset are not taken for finished ones."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of ``python -m data_prep pack``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of a prepared dataset."""
    out: Path
    """Folder of the packed dataset."""
    shard_size: str = "1GB"
    """Largest size of a shard. A video that is larger has one of its own."""
    shuffle: bool = False
    """Put the videos into the shards in a random order, always the same, for readers that take shards from start to
    end, as WebDataset does. The manifest keeps its order."""


@dataclass
class Shard:
    """One tar file and what belongs into it."""

    name: str
    """Path below the dataset's folder."""
    positions: list[int] = field(default_factory=list)
    """Videos, by position in the manifest, in the order of the file."""
    num_bytes: int = END_BYTES


@dataclass(frozen=True)
class Member:
    """One file of a shard."""

    name: str
    num_bytes: int
    content: bytes | None = None
    """None: the bytes of ``stream``."""
    stream: tuple[str, Stream] | None = None
    """Name and entry of a stream."""

    @property
    def padded_bytes(self) -> int:
        """Bytes in the shard: header, content, padding."""
        return BLOCK + -(-self.num_bytes // BLOCK) * BLOCK


def pack_dataset(options: PackOptions) -> Manifest:
    """Write the shards and the manifest, and print the number of files by status.

    Raises:
        UserError: The size is invalid, ``--out`` is no folder of its own, or a file differs from the manifest.
    """
    largest = parse_size(options.shard_size, option="--shard-size")
    manifest = Manifest.load(options.folder)
    if options.out.resolve() == options.folder.resolve():
        raise UserError(f"--out {options.out} is the dataset itself: give another folder")
    _require_packable(manifest)
    positions = np.flatnonzero(manifest.is_usable)
    if options.shuffle:
        positions = np.random.default_rng(SHUFFLE_SEED).permutation(positions)
    _claim(options.out, [manifest.content_digest, largest, options.shuffle])
    owners = owners_of(manifest, positions.tolist())
    shards = plan_shards(manifest, positions.tolist(), largest, owners)
    with progress_bar(unit=manifest.noun) as bar:
        task = bar.add_task("packing", total=len(positions))
        for shard in shards:
            path = options.out / shard.name
            if path.is_file() and path.stat().st_size == shard.num_bytes:
                bar.advance(task, len(shard.positions))
            else:
                write_shard(path, manifest, shard, owners, on_video=lambda: bar.advance(task))
    sizes = {shard.name: shard.num_bytes for shard in shards}
    facts = manifest.facts | {"shards": sizes}
    packed = dataclasses.replace(manifest, root=options.out, videos=PackedVideos(manifest, shards, owners), facts=facts)
    packed.save()
    packed = Manifest.load(options.out)
    print_summary(packed)
    console.print(f"{len(shards)} shards, {sum(sizes.values()) / 1e9:.2f} GB: {options.out / 'shards'}", soft_wrap=True)
    return packed


def _require_packable(manifest: Manifest) -> None:
    if manifest.facts.get("shards"):
        raise UserError(f"{manifest.root} is packed already: give the dataset that it was made from")
    for video in manifest.videos:
        for stream in video.streams.values():
            if not (stream.num_bytes and stream.sha256):
                raise UserError(
                    f"the manifest of {manifest.root} has no size and checksum of {stream.path}, because an early "
                    "version wrote it: prepare the dataset again"
                )


def _claim(out: Path, facts: list[Any]) -> None:
    """Raise a ``UserError`` if a folder has shards of something else; else note what it gets."""
    path, plan = out / PLAN_NAME, json.dumps(facts)
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    if known is None and (is_prepared(out) or (out / LINK_NAME).exists()):
        raise UserError(f"--out {out} holds another dataset: give another folder")
    if known is None and (out / "shards").exists():
        known = "none"
    if known not in (None, plan):
        raise UserError(
            f"--out {out} has shards of another dataset, size or order: give another folder, or delete "
            f"{out / 'shards'} and {path}"
        )
    write_text_atomically(path, plan + "\n")
    for unfinished in (out / "shards").glob(".*.tmp"):  # of a killed process
        unfinished.unlink(missing_ok=True)


Owners = Mapping[str, int]
"""Path of a file that several segments share, to the position of the one with which it is stored."""


def owners_of(manifest: Manifest, positions: Sequence[int]) -> Owners:
    """Return the owners of the shared files, for videos that are stored in this order; empty without segments."""
    owners: dict[str, int] = {}
    for position in positions if manifest.table.layout.has_segments else ():
        for stream in manifest.videos[position].streams.values():
            if stream.is_segment:
                owners.setdefault(stream.path, position)
    return owners


def plan_shards(manifest: Manifest, positions: Sequence[int], largest_bytes: int, owners: Owners) -> list[Shard]:
    """Divide videos into shards, from the sizes in the manifest alone."""
    shards: list[Shard] = []
    for position in positions:
        num_bytes = sum(member.padded_bytes for member in members_of(manifest.videos[position], position, owners))
        if not shards or (shards[-1].positions and shards[-1].num_bytes + num_bytes > largest_bytes):
            shards.append(Shard(f"shards/{len(shards):06d}.tar"))
        shards[-1].positions.append(position)
        shards[-1].num_bytes += num_bytes
    return shards


def members_of(video: Video, position: int, owners: Owners) -> list[Member]:
    """List the files of a video in a shard, in their order, except those that are stored with another segment."""
    key = f"{position:08d}"
    facts: dict[str, Any] = {"name": video.name, "label": video.label, "group": video.group, "splits": video.splits}
    members = [_text(f"{key}.json", json.dumps(facts, sort_keys=True))]
    if video.label is not None:
        members.append(_text(f"{key}.cls", str(video.label)))
    for name, stream in sorted(video.streams.items()):
        if owners.get(stream.path, position) != position:
            continue
        suffix = Path(video.name if stream.offset else stream.path).suffix.lower()
        # A picture has the name that readers of shards expect.
        middle = "" if not stream.is_video else f".{name}"
        members.append(Member(f"{key}{middle}{suffix}", stream.num_bytes, stream=(name, stream)))
    return members


def _text(name: str, text: str) -> Member:
    content = text.encode()
    return Member(name, len(content), content=content)


def _members(manifest: Manifest, shard: Shard, owners: Owners) -> Iterator[tuple[int, Member]]:
    for position in shard.positions:
        for member in members_of(manifest.videos[position], position, owners):
            yield position, member


def write_shard(path: Path, manifest: Manifest, shard: Shard, owners: Owners, *, on_video: Callable[[], None]) -> None:
    """Write one shard atomically, and call ``on_video`` after each video.

    Raises:
        UserError: A file of the dataset is missing, or has other bytes than the manifest says.
    """
    last_position = -1
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for position, member in _members(manifest, shard, owners):
            info = tarfile.TarInfo(member.name)  # no owner and no date: the same dataset gives the same bytes
            info.size = member.num_bytes
            file.write(info.tobuf(tarfile.USTAR_FORMAT if info.size <= LARGEST_OF_USTAR else tarfile.GNU_FORMAT))
            if member.content is not None:
                file.write(member.content)
            else:
                _copy_stream(manifest, position, member, file)
            file.write(bytes(member.padded_bytes - BLOCK - member.num_bytes))
            if position != last_position:
                on_video()
            last_position = position
        file.write(bytes(END_BYTES))


def _copy_stream(manifest: Manifest, position: int, member: Member, file: BinaryIO) -> None:
    """Append the bytes of a stream, in pieces: a long video may have many gigabytes."""
    assert member.stream is not None
    _, stream = member.stream
    digest = hashlib.sha256()
    try:
        for piece in locate(manifest.root, stream).pieces():
            digest.update(piece)
            file.write(piece)
        reason = "" if digest.hexdigest() == stream.sha256 else "it differs from the manifest"
    except UnreadableVideoError as error:
        reason = str(error)
    if reason:
        raise UserError(
            f"{stream.path} of {manifest.videos[position].name} cannot be packed ({reason}): run python -m data_prep "
            f"verify {manifest.root} and repair the dataset first"
        )


class PackedVideos(LazyVideos):
    """The videos of a manifest with their streams where they are in shards."""

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], owners: Owners) -> None:
        self._manifest, self._shards, self._owners = manifest, shards, owners
        # Path of a shared file to its shard and its first byte.
        self._shared: dict[str, tuple[str, int]] = {}
        self._shard_of = np.full(len(manifest.videos), -1, dtype=np.int32)
        self._offset_of = np.zeros(len(manifest.videos), dtype=np.int64)
        for number, shard in enumerate(shards):
            offset = 0
            for position in shard.positions:
                self._shard_of[position], self._offset_of[position] = number, offset
                for member in members_of(manifest.videos[position], position, owners):
                    if member.stream is not None and member.stream[1].path in owners:
                        self._shared[member.stream[1].path] = (shard.name, offset + BLOCK)
                    offset += member.padded_bytes

    def __len__(self) -> int:
        return len(self._shard_of)

    def row(self, position: int) -> Row:
        """Return a video as a JSON object; one that cannot be used has no streams."""
        video = self._manifest.videos[position]
        shard, offset = self._shards[self._shard_of[position]], int(self._offset_of[position])
        streams: dict[str, Stream] = {}
        for name, stream in video.streams.items() if video.is_usable else ():
            if stream.path in self._shared:
                path, first_byte = self._shared[stream.path]
                streams[name] = dataclasses.replace(stream, path=path, offset=first_byte)
        for member in members_of(video, position, self._owners) if video.is_usable else ():
            if member.stream is not None:
                name, stream = member.stream
                streams[name] = dataclasses.replace(stream, path=shard.name, offset=offset + BLOCK)
            offset += member.padded_bytes
        return dataclasses.replace(video, streams=streams).to_json()
