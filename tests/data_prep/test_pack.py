"""Packed datasets: shards that WebDataset's layout describes, read by range, on the disk and from a server."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import gcs_server
import numpy as np
import pytest
import torch
from in_process import train
from safetensors.torch import load_file

from crossdistill.commands.main import main as train_main
from crossdistill.data import stores
from crossdistill.data.dataset import PairedClips, entries_of, make_loader
from crossdistill.data.decode import read_frames
from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Stream
from crossdistill.data.sampling import SampleKey
from crossdistill.data.stores import (
    COPY_NAME,
    RemoteStore,
    _file_system,
    check_shards,
    find_store,
    locate,
    read_remote,
)
from crossdistill.data.transforms import Augmentation
from crossdistill.encoders import create_encoder
from crossdistill.encoders.architecture import make_view
from crossdistill.encoders.execution import Execution
from crossdistill.errors import OneProcessError, UserError
from crossdistill.evaluation.evaluate import evaluate_encoder
from crossdistill.evaluation.feature_store import video_digest
from crossdistill.modalities import MODALITIES
from crossdistill.training.monitor import Monitor
from crossdistill.types import PairedBatch
from crossdistill.utils.distributed import create_accelerator
from data_prep import link as link_module
from data_prep import pack as pack_module
from data_prep.__main__ import main
from data_prep.inspect import print_streams
from data_prep.link import LinkOptions, link_dataset
from data_prep.pack import PackOptions, pack_dataset, parse_size
from data_prep.verify import VerifyOptions, verify_dataset

SMALL = "100KB"


@pytest.fixture(scope="module")
def packed(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "toyactions"
    pack_dataset(PackOptions(folder=toy_folder, out=out, shard_size=SMALL))
    return out


def _clips(folder: Path, *, decoder: str = "pyav") -> PairedClips:
    manifest = Manifest.load(folder)
    views = [make_view(name, 4, 1, 24) for name in ("rgb", "flow")]
    return PairedClips(
        entries_of(manifest, range(len(manifest.videos))),
        student_view=views[0],
        teacher_views=views[1:],
        augmentation=Augmentation(),
        decoder=decoder,
    )


def _batch(folder: Path, *, decoder: str = "pyav") -> PairedBatch:
    return _clips(folder, decoder=decoder).read_batch([SampleKey(i, 0) for i in (5, 0, 17, 3)])


def _assert_equal(one: PairedBatch, two: PairedBatch) -> None:
    assert not one.unreadable and not two.unreadable
    assert torch.equal(one.student.values, two.student.values)
    assert torch.equal(one.teachers[0].values, two.teachers[0].values)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_packed_clips_are_the_loose_ones(toy_folder: Path, packed: Path, decoder: str) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    assert len(list((packed / "shards").glob("*.tar"))) > 2
    assert Manifest.load(packed).content_digest == Manifest.load(toy_folder).content_digest
    _assert_equal(_batch(packed, decoder=decoder), _batch(toy_folder, decoder=decoder))


def test_shards_have_the_layout_that_readers_of_shards_know(toy_folder: Path, packed: Path) -> None:
    manifest = Manifest.load(toy_folder)
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    for shard in sorted((packed / "shards").iterdir()):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")  # as WebDataset does
                file = archive.extractfile(member)
                assert file is not None
                samples[key][suffix] = file.read()
    assert len(samples) == len(manifest.videos)
    for key, sample in samples.items():
        video = manifest.videos[int(key)]
        facts = json.loads(sample["json"])
        assert (facts["name"], int(sample["cls"])) == (video.name, video.label)
        assert sample["rgb.mp4"] == (toy_folder / video.streams["rgb"].path).read_bytes()
        assert {suffix.partition(".")[0] for suffix in sample} - {"json", "cls"} == set(video.streams)


def test_webdataset_reads_the_shards(toy_folder: Path, packed: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, (packed / "shards").iterdir()))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    videos = Manifest.load(toy_folder).videos
    assert [json.loads(sample["json"])["name"] for sample in samples] == [video.name for video in videos]
    for sample, video in zip(samples, videos, strict=True):
        assert int(sample["cls"]) == video.label
        assert sample["rgb.mp4"] == (toy_folder / video.streams["rgb"].path).read_bytes()


def test_every_shard_but_those_of_one_video_keeps_the_size(packed: Path) -> None:
    sizes = [path.stat().st_size for path in (packed / "shards").iterdir()]
    assert max(sizes) <= parse_size(SMALL, option="")


def test_large_streams_have_headers_with_room_for_their_size(
    toy_folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "LARGEST_OF_USTAR", 1_000)
    large = pack_dataset(PackOptions(folder=toy_folder, out=tmp_path / "large", shard_size=SMALL))
    magics = set()
    for name in large.facts["shards"]:
        with tarfile.open(large.root / name) as ours, tarfile.open(packed / name) as usual:
            for member in ours:
                twin = usual.getmember(member.name)
                assert (member.offset_data, member.size) == (twin.offset_data, twin.size)
                content = (large.root / name).read_bytes()
                magics.add((member.size > 1_000, content[member.offset + 257 : member.offset + 265]))
    assert magics == {(False, b"ustar\x0000"), (True, b"ustar  \0")}
    info = tarfile.TarInfo("film.mp4")
    info.size = 9 * 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert len(header) == tarfile.BLOCKSIZE and tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == info.size


def test_packing_continues_and_is_the_same_again(toy_folder: Path, packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(packed, again)
    victim = sorted((again / "shards").iterdir())[1]
    kept = sorted((again / "shards").iterdir())[0]
    victim.unlink()
    modified_ns = kept.stat().st_mtime_ns
    pack_dataset(PackOptions(folder=toy_folder, out=again, shard_size=SMALL))
    assert kept.stat().st_mtime_ns == modified_ns
    for path in (packed / "shards").iterdir():
        assert (again / "shards" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="has shards of another dataset, size or order: give another folder"):
        pack_dataset(PackOptions(folder=toy_folder, out=again, shard_size="1MB"))


def test_packing_writes_a_short_shard_again_and_removes_what_a_killed_process_left(
    toy_folder: Path, packed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(packed, again)
    victim = sorted((again / "shards").iterdir())[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1000])
    (again / "shards" / ".000007.tar.0123.tmp").write_bytes(whole)
    pack_dataset(PackOptions(folder=toy_folder, out=again, shard_size=SMALL))
    assert victim.read_bytes() == whole
    assert [path.suffix for path in (again / "shards").iterdir()] == [".tar"] * len(list((packed / "shards").iterdir()))


def test_packing_does_not_replace_another_dataset(
    toy_folder: Path, served: tuple[str, type[_RangeHandler]], tmp_path: Path
) -> None:
    other, linked = tmp_path / "other", tmp_path / "linked"
    shutil.copytree(toy_folder, other)
    link_dataset(LinkOptions(url=served[0], out=linked))
    for out in (other, linked):
        before = (out / "manifest.arrow").read_bytes()
        with pytest.raises(UserError, match="holds another dataset: give another folder"):
            pack_dataset(PackOptions(folder=toy_folder, out=out, shard_size=SMALL))
        assert (out / "manifest.arrow").read_bytes() == before and not (out / "shards").exists()


def test_shuffled_shards_hold_the_same_clips(toy_folder: Path, packed: Path, tmp_path: Path) -> None:
    pack_dataset(PackOptions(folder=toy_folder, out=tmp_path / "mixed", shard_size=SMALL, shuffle=True))
    _assert_equal(_batch(tmp_path / "mixed"), _batch(packed))
    with tarfile.open(tmp_path / "mixed" / "shards" / "000000.tar") as archive:
        labels = [int(archive.extractfile(m).read()) for m in archive if m.name.endswith(".cls")]  # type: ignore[union-attr]
    assert labels != sorted(labels)


def test_verify_finds_a_changed_byte_of_a_shard(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(packed, folder)
    verify_dataset(VerifyOptions(folder=folder, workers=1))
    stream = Manifest.load(folder).videos[0].streams["rgb"]
    with open(folder / stream.path, "r+b") as file:
        file.seek(stream.offset + stream.num_bytes - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 255]))
    num_shards = len(list((folder / "shards").iterdir()))
    advice = r"copy or upload them again, or delete them .* repeat python -m data_prep pack"
    with pytest.raises(
        SystemExit, match=f"1 of the {num_shards} shards of {folder} differ from the manifest: {advice}"
    ):
        verify_dataset(VerifyOptions(folder=folder, workers=1))
    where = f"{stream.path} (bytes {stream.offset} to {stream.offset + stream.num_bytes}): "
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(where)]


def test_a_missing_and_a_short_shard_are_named_before_a_run(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(packed, folder)
    manifest = Manifest.load(folder)
    check_shards(manifest)
    shard = folder / "shards" / "000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-700])
    with pytest.raises(UserError, match=f"{shard} has {len(content) - 700} bytes, and the manifest says"):
        check_shards(manifest)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} is missing, one of the .* link the dataset where it is"):
        check_shards(manifest)


def test_a_range_beyond_the_end_of_its_shard_is_unreadable(packed: Path) -> None:
    stream = Manifest.load(packed).videos[0].streams["rgb"]
    beyond = dataclasses.replace(stream, offset=10**9)
    clips = _clips(packed)
    entry = clips.entries[0]
    streams = {**entry.video.streams, "rgb": beyond}
    clips.entries = [dataclasses.replace(entry, video=dataclasses.replace(entry.video, streams=streams))]
    (fault,) = clips.read_batch([SampleKey(0, 0)]).unreadable
    assert re.search(r"000000\.tar \(bytes 1000000000 to \d+\): the file ends at byte \d+", fault[1])


def test_originals_in_place_are_packed_and_read_as_they_were(toy_folder: Path, tmp_path: Path) -> None:
    source = Manifest.load(toy_folder)
    loose = dataclasses.replace(
        source,
        root=tmp_path / "originals",
        facts={"recipe": {"keep_original": True}},
        videos=tuple(
            dataclasses.replace(
                video,
                streams={"rgb": video.streams["rgb"].at(str((toy_folder / video.streams["rgb"].path).resolve()))},
            )
            for video in source.videos[:3]
        ),
    )
    loose.root.mkdir()
    loose.save()
    packed = pack_dataset(PackOptions(folder=loose.root, out=tmp_path / "packed"))
    for video, original in zip(packed.videos, source.videos, strict=False):
        read = [read_frames(m.root, v.streams["rgb"], [0, 5]) for m, v in ((packed, video), (source, original))]
        np.testing.assert_array_equal(*read)
    verify_dataset(VerifyOptions(folder=packed.root, workers=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": "much"}, "--shard-size is 'much': give a number and a unit, for example 1GB"),
        ({"shard_size": "0GB"}, "--shard-size is '0GB'"),
    ],
)
def test_bad_sizes_are_refused(toy_folder: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        pack_dataset(PackOptions(folder=toy_folder, out=tmp_path / "out", **change))  # type: ignore[arg-type]


def test_packed_and_changed_datasets_are_refused(toy_folder: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is packed already: give the dataset that it was made from"):
        pack_dataset(PackOptions(folder=packed, out=tmp_path / "out"))
    with pytest.raises(UserError, match="is the dataset itself"):
        pack_dataset(PackOptions(folder=toy_folder, out=toy_folder))
    changed = tmp_path / "changed"
    shutil.copytree(toy_folder, changed)
    video = Manifest.load(changed).videos[1]
    (changed / video.streams["flow"].path).write_bytes(b"something else")
    with pytest.raises(UserError, match=f"of {video.name} cannot be packed .*verify"):
        pack_dataset(PackOptions(folder=changed, out=tmp_path / "out"))
    assert not (tmp_path / "out" / "shards").exists() or not list((tmp_path / "out" / "shards").iterdir())


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files by range, as object stores and web servers do; notes what was asked for."""

    asked: ClassVar[list[tuple[str, str]]]
    failures_left: ClassVar[int]
    failure: ClassVar[int] = 503
    knows_ranges: ClassVar[bool] = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range", "")
        type(self).asked.append((path.name, wanted))
        if type(self).failures_left > 0:
            type(self).failures_left -= 1
            self.send_error(type(self).failure)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if type(self).knows_ranges else None
        first, last = (int(match[1]), min(int(match[2]), len(content) - 1)) if match else (0, len(content) - 1)
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_RangeHandler]]]:
    """The packed dataset on a web server, and its handler."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("crossdistill.data.stores.PAUSES_SECONDS", (0.01, 0.01))

    class Handler(_RangeHandler):
        asked: ClassVar[list[tuple[str, str]]] = []
        failures_left = 0

        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(packed))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    server.shutdown()
    thread.join()
    server.server_close()
    find_store.cache_clear()


def test_linked_clips_come_by_range_and_once(
    served: tuple[str, type[_RangeHandler]], toy_folder: Path, tmp_path: Path
) -> None:
    url, handler = served
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=url, out=linked))
    handler.asked.clear()
    _assert_equal(_batch(linked), _batch(toy_folder))
    assert len(handler.asked) == 4 * 2 and all(wanted.startswith("bytes=") for _, wanted in handler.asked)
    _assert_equal(_batch(linked), _batch(toy_folder))
    assert len(handler.asked) == 4 * 2, "the second time they are read from the copies"


def test_the_copies_stay_within_their_size(served: tuple[str, type[_RangeHandler]], tmp_path: Path) -> None:
    url, _ = served
    linked = tmp_path / "linked"
    manifest = link_dataset(LinkOptions(url=url, out=linked))
    store = find_store(linked)
    assert store is not None
    store.max_bytes = 40_000
    for video in manifest.videos:
        for stream in video.streams.values():
            for path in (linked / COPY_NAME).glob("*"):  # as if the next clip were read two minutes later
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 120))
            assert locate(linked, stream).path.is_file()
            size = sum(path.stat().st_size for path in (linked / COPY_NAME).iterdir())
            assert size <= 40_000 + stream.num_bytes


def test_what_a_reader_asked_for_is_not_removed_before_it_is_read(store: tuple[RemoteStore, dict[str, bytes]]) -> None:
    """A stream that is larger than the copies may be, and one that another process fetched."""
    remote, content = store
    content["a.jpg"] = bytes(9_000)
    other = remote.fetch(_stream_of(bytes(9_000)))
    content["a.jpg"] = bytes(20_000)
    assert remote.fetch(_stream_of(bytes(20_000))).is_file() and other.is_file()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteStore, dict[str, bytes]]:
    """A store, and what it has: path to content."""
    content: dict[str, bytes] = {}
    monkeypatch.setattr(stores, "read_remote", lambda url, path, *, start, end: content[path][start:end])
    return RemoteStore(url="mem://x", folder=tmp_path / "copies", max_bytes=10_000), content


def _stream_of(content: bytes) -> Stream:
    facts = {"width_px": 8, "height_px": 8, "time_base": Fraction(1), "pts": [0], "keyframes": [0]}
    return Stream("a.jpg", num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), **facts)


def test_copies_of_what_was_uploaded_again_and_copies_that_were_cut_are_not_used(
    store: tuple[RemoteStore, dict[str, bytes]],
) -> None:
    remote, content = store
    for version in (b"first", b"again"):  # of the same length
        content["a.jpg"] = version
        path = remote.fetch(_stream_of(version))
        assert path.read_bytes() == version
    path.write_bytes(b"")
    assert remote.fetch(_stream_of(b"again")).read_bytes() == b"again"


def test_a_long_file_is_fetched_in_parts(
    store: tuple[RemoteStore, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, content = store
    content["a.jpg"] = bytes(range(10))
    monkeypatch.setattr(stores, "REQUEST_BYTES", 4)
    asked: list[tuple[int, int]] = []
    read = stores.read_remote
    monkeypatch.setattr(
        stores, "read_remote", lambda *args, start, end: asked.append((start, end)) or read(*args, start=start, end=end)
    )
    assert remote.fetch(_stream_of(content["a.jpg"])).read_bytes() == content["a.jpg"]
    assert asked == [(0, 4), (4, 8), (8, 10)]
    part = dataclasses.replace(_stream_of(content["a.jpg"][3:9]), offset=3)
    assert remote.fetch(part).read_bytes() == content["a.jpg"][3:9] and asked[3:] == [(3, 7), (7, 9)]
    whole = _stream_of(content["a.jpg"])
    content["a.jpg"] = content["a.jpg"][:5]
    copies = len(list(remote.folder.iterdir()))
    with pytest.raises(OneProcessError, match=r"has other bytes in a\.jpg from byte 0 on"):
        remote.fetch(dataclasses.replace(whole, sha256="0" * 64))
    assert asked[5:] == [(0, 4), (4, 8)], "after the end nothing is asked for"
    monkeypatch.setattr(stores, "read_remote", lambda *args, start, end: bytes(range(10)))  # it knows no ranges
    with pytest.raises(OneProcessError, match="a request for 4 bytes with 10: serve the shards"):
        remote.fetch(dataclasses.replace(part, sha256="1" * 64))
    assert len(list(remote.folder.iterdir())) == copies, "nothing unfinished stays"
    (remote.folder / remote.fetch(whole)).unlink()
    assert remote.fetch(whole).read_bytes() == bytes(range(10)), "a whole file comes from any server"


def test_copies_that_cannot_be_written_are_one_sentence(store: tuple[RemoteStore, dict[str, bytes]]) -> None:
    remote, content = store
    content["a.jpg"] = b"x"
    remote.folder.write_text("in the way")
    with pytest.raises(OneProcessError, match=r"copies cannot keep a copy \(.*\): free space there, make it writable"):
        remote.fetch(_stream_of(b"x"))


def test_copies_that_another_process_writes_stay(store: tuple[RemoteStore, dict[str, bytes]]) -> None:
    remote, content = store
    remote.folder.mkdir()
    new, old = (remote.folder / f".a.{age}.tmp" for age in ("new", "old"))
    for path in (new, old):
        path.write_bytes(bytes(20_000))
    os.utime(old, (5, 5))
    content["a.jpg"] = bytes(400)
    remote.fetch(_stream_of(bytes(400)))
    assert new.exists() and not old.exists()


def test_a_range_that_a_file_does_not_have_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(Exception):
        status = 416

    class System:
        def cat_file(self, path: str, **keywords: object) -> bytes:
            asked.append(path)
            raise Answer

    asked: list[str] = []
    monkeypatch.setattr(stores, "_file_system", lambda url, process: (System(), "x"))
    with pytest.raises(OneProcessError, match=r"mem://x has fewer bytes in a\.tar than the manifest says: link"):
        read_remote("mem://x", "a.tar", start=5, end=9)
    assert asked == ["x/a.tar"]


@pytest.mark.parametrize("name", ["NoCredentialsError", "ProfileNotFound", "DefaultCredentialsError"])
def test_a_machine_without_login_is_named_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class System:
        def cat_file(self, path: str, **keywords: object) -> bytes:
            asked.append(path)
            raise type(name, (Exception,), {})("Unable to locate credentials")

    asked: list[str] = []
    monkeypatch.setattr(stores, "_file_system", lambda url, process: (System(), "x"))
    with pytest.raises(
        UserError, match=r"s3://x refuses a\.tar \(Unable to locate credentials\): check the address and"
    ):
        read_remote("s3://x", "a.tar", start=5, end=9)
    assert asked == ["x/a.tar"]


def test_verify_ends_with_the_store_that_refuses(served: tuple[str, type[_RangeHandler]], tmp_path: Path) -> None:
    url, handler = served
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=url, out=linked))
    handler.asked.clear()
    handler.failures_left, handler.failure = 10**6, 403
    with pytest.raises(UserError, match=r"refuses shards/.*: check the address and the credentials"):
        verify_dataset(VerifyOptions(folder=linked, workers=1))
    assert len(handler.asked) <= 2, "not one request for each file"


def test_link_refuses_copies_without_room_for_the_largest_file(
    served: tuple[str, type[_RangeHandler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LEAST_COPY_BYTES", 1)
    with pytest.raises(UserError, match=r"--copy-size is 1e-06GB, and the largest file of the dataset has .* GB: give"):
        link_dataset(LinkOptions(url=served[0], out=tmp_path / "linked", copy_size="1KB"))
    assert not (tmp_path / "linked" / MANIFEST_NAME).exists()


def test_features_are_read_again_wherever_the_same_clips_are(
    served: tuple[str, type[_RangeHandler]], toy_folder: Path, packed: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=served[0], out=linked))
    served[1].asked.clear()
    of_files, of_shards, of_store = (
        [video_digest(entry, "rgb") for entry in entries_of(Manifest.load(folder), range(4))]
        for folder in (toy_folder, packed, linked)
    )
    assert of_files == of_shards == of_store and len(set(of_files)) == 4 and all(of_files)
    assert not served[1].asked
    moved = shutil.copytree(toy_folder, tmp_path / "cut")
    entry = entries_of(Manifest.load(moved), [0])[0]
    entry.video.streams["rgb"].file(moved).write_bytes(b"cut")
    assert video_digest(entry, "rgb") == "" and video_digest(entry, "none") == ""


def test_inspect_of_a_linked_dataset_misses_no_file(
    served: tuple[str, type[_RangeHandler]], toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=served[0], out=linked))
    tables = []
    for folder in (toy_folder, linked):
        capsys.readouterr()
        print_streams(Manifest.load(folder))
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and "missing" not in tables[1]


def test_link_keeps_the_manifest_that_works(served: tuple[str, type[_RangeHandler]], tmp_path: Path) -> None:
    linked, other = tmp_path / "linked", tmp_path / "other"
    link_dataset(LinkOptions(url=served[0], out=linked))
    before = (linked / "manifest.arrow").read_bytes()
    other.mkdir()
    (other / "manifest.arrow").write_bytes(b"<html>log in</html>")
    with pytest.raises(UserError):
        link_dataset(LinkOptions(url=f"file://{other}", out=linked))
    assert (linked / "manifest.arrow").read_bytes() == before and Manifest.load(linked).videos[0].streams


def test_a_store_that_fails_is_asked_again_and_then_named(
    served: tuple[str, type[_RangeHandler]], tmp_path: Path
) -> None:
    url, handler = served
    linked = tmp_path / "linked"
    manifest = link_dataset(LinkOptions(url=url, out=linked))
    first, second = (manifest.videos[i].streams["rgb"] for i in (0, 1))
    handler.failures_left = 2
    assert locate(linked, first).path.stat().st_size == first.num_bytes
    handler.failures_left = 3
    with pytest.raises(UserError, match=f"{url} does not give {second.path} .*after 3 requests: start the same"):
        locate(linked, second)
    with pytest.raises(UserError, match=r"lacks shards/gone\.tar"):
        locate(linked, second.at("shards/gone.tar"))
    with pytest.raises(UserError, match="has other bytes in"):
        locate(linked, dataclasses.replace(second, sha256="0" * 64))


def test_a_store_that_refuses_and_one_without_ranges_are_named_at_once(
    served: tuple[str, type[_RangeHandler]], tmp_path: Path
) -> None:
    url, handler = served
    linked = tmp_path / "linked"
    manifest = link_dataset(LinkOptions(url=url, out=linked))
    stream = manifest.videos[1].streams["rgb"]
    handler.asked.clear()
    handler.failures_left, handler.failure = 1, 403
    with pytest.raises(UserError, match=f"{url} refuses {stream.path} .*credentials"):
        locate(linked, stream)
    handler.knows_ranges = False
    with pytest.raises(UserError, match=rf"for {stream.num_bytes} bytes with \d+: serve the shards with a web server"):
        locate(linked, stream)
    assert len(handler.asked) == 2


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_store_that_is_silent_is_left_in_time(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp" if protocol == "http" else "s3fs")
    monkeypatch.setattr("crossdistill.data.stores.PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr("crossdistill.data.stores.ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL_S3": address}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        url = f"{address}/videos" if protocol == "http" else "s3://silent/videos"
        started = time.monotonic()
        with pytest.raises(UserError, match=rf"{url} does not give shards/0\.tar \(.+\), after 2 requests"):
            read_remote(url, "shards/0.tar", start=0, end=1000)
        assert time.monotonic() - started < 10


@pytest.fixture
def bucket(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The packed dataset in a bucket of an S3 server."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    store.mkdir("videos")
    store.put(str(packed), "videos/toyactions", recursive=True)
    yield "s3://videos/toyactions"
    server.stop()
    find_store.cache_clear()


@pytest.fixture
def google_bucket(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The packed dataset in a bucket of Google's, and the (object, range) that were asked for."""
    if importlib.util.find_spec("gcsfs") is None:  # not imported here: it reads the environment when it is
        pytest.skip("could not import 'gcsfs'")
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    monkeypatch.setattr("crossdistill.data.stores.PAUSES_SECONDS", ())
    with gcs_server.serve(packed.parent, bucket="videos") as (address, asked):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield "gs://videos/toyactions", asked
    find_store.cache_clear()
    _file_system.cache_clear()


def test_google_bucket__is_read_by_range_and_once(
    google_bucket: tuple[str, list[tuple[str, str]]], toy_folder: Path, tmp_path: Path
) -> None:
    (url, asked), linked = google_bucket, tmp_path / "linked"
    manifest = link_dataset(LinkOptions(url=url, out=linked))
    assert asked == [("toyactions/manifest.arrow", "")]
    asked.clear()
    for _ in range(2):
        _assert_equal(_batch(linked), _batch(toy_folder))
    streams = [manifest.videos[i].streams[name] for i in (5, 0, 17, 3) for name in ("rgb", "flow")]
    wanted = [(f"toyactions/{s.path}", f"bytes={s.offset}-{s.offset + s.num_bytes - 1}") for s in streams]
    assert sorted(asked) == sorted(wanted), "the second time they are read from the copies"
    with pytest.raises(UserError, match=r"lacks shards/gone\.tar"):
        locate(linked, dataclasses.replace(streams[0], path="shards/gone.tar"))


@pytest.mark.parametrize("store", ["bucket", "google_bucket"])
def test_loader_processes_read_from_an_object_store(
    store: str, request: pytest.FixtureRequest, toy_folder: Path, tmp_path: Path
) -> None:
    given, linked = request.getfixturevalue(store), tmp_path / "linked"
    url = given if isinstance(given, str) else given[0]
    link_dataset(LinkOptions(url=url, out=linked))
    _batch(linked)  # this process has a connection, which its children must not use
    keys = [[SampleKey(i, epoch) for i in range(4 * epoch, 4 * epoch + 4)] for epoch in range(4)]
    loaders = (make_loader(_clips(linked), keys, num_workers=2), make_loader(_clips(toy_folder), keys, num_workers=0))
    for remote, local in zip(*loaders, strict=True):
        _assert_equal(remote, local)
    with pytest.raises(UserError, match=r"lacks manifest\.arrow"):
        link_dataset(LinkOptions(url=f"{url.partition(':')[0]}://videos/none", out=tmp_path / "none"))


def test_a_store_that_is_gone_ends_a_run_with_one_sentence(
    served: tuple[str, type[_RangeHandler]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = served
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=url, out=linked))
    handler.failures_left = 10**6
    arguments = ["train", "--supervised", "--student", "rgb_tiny3d_8", "--data", str(linked), "--epochs", "1"]
    with pytest.raises(SystemExit) as exit_:
        train_main([*arguments, "--out", str(tmp_path / "run"), "--workers", "1", "--student-size", "24"])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line.startswith(f"crossdistill: error: {url} does not give shards/")


def test_a_run_on_files_continues_on_shards_and_then_on_a_server_to_the_same_bits(
    served: tuple[str, type[_RangeHandler]],
    toy_folder: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linked, run, whole = (tmp_path / name for name in ("linked", "run", "whole"))
    link_dataset(LinkOptions(url=served[0], out=linked))
    options = ["--supervised", "--student", "rgb_tiny3d_8", "--student-frames", 4, "--student-size", 16, "--epochs", 2]
    options += ["--batch-size", 8, "--workers", 0, "--tracker", "none", "--knn-clips", 0, "--no-evaluate"]
    options += ["--precision", "fp32"]
    train([*options, "--data", toy_folder, "--out", whole])
    stops, finish = [2, 5], Monitor.finish_step

    def finish_step(self: Monitor, step: int, **state: float) -> None:
        finish(self, step, **state)  # type: ignore[arg-type]
        if step in stops:
            stops.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "finish_step", finish_step)
    for data, resume in ((toy_folder, []), (packed, ["--resume"])):
        with pytest.raises(SystemExit):
            train([*options, "--data", data, "--out", run, *resume])
    train([*options, "--data", linked, "--out", run, "--resume"])
    assert not stops and len(served[1].asked) > 8
    first, second = (load_file(folder / "student" / "student.safetensors") for folder in (whole, run))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_linked_dataset_is_verified_and_evaluated_as_the_files_are(
    served: tuple[str, type[_RangeHandler]], toy_folder: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    link_dataset(LinkOptions(url=served[0], out=linked))
    verify_dataset(VerifyOptions(folder=linked, workers=1))
    encoder = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    options = {"split": "1", "execution": Execution.choose(encoder), "accelerator": create_accelerator()}
    found = [
        evaluate_encoder(encoder, Manifest.load(folder), protocols=("knn",), ks=(1,), **options)  # type: ignore[arg-type]
        for folder in (toy_folder, linked)
    ]
    assert found[0].results["1-nn"] == found[1].results["1-nn"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data/ucf101"], "data/ucf101 is no address: give one such as s3://bucket/folder"),
        (["http://127.0.0.1:9/x", "--copy-size", "5MB"], "--copy-size is 5MB: give 100MB or more"),
        (["nothing://x/y"], "cannot be opened (Protocol not known: nothing): correct the address, or install what"),
        (["abfs://x/y"], "abfs://x/y cannot be opened (Install adlfs"),
    ],
)
def test_bad_links_are_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)  # as if it were not installed
    with pytest.raises(SystemExit) as exit_:
        main(["link", *arguments, "--out", str(tmp_path / "linked")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_link_does_not_replace_a_dataset(toy_folder: Path) -> None:
    with pytest.raises(UserError, match="holds a dataset: give another folder"):
        link_dataset(LinkOptions(url="http://127.0.0.1:9/x", out=toy_folder))


def test_all_stored_streams_can_be_packed() -> None:
    """A stream's name is part of its file's name in a shard, up to the first dot of which readers take the key."""
    assert not [modality for modality in MODALITIES.values() if "." in modality.stream]


def test_loader_processes_survive_one_signal_to_all_processes(toy_folder: Path) -> None:
    """torchrun and SLURM send SIGTERM to all; the run then finishes its step. The second one ends them."""
    batches = [[SampleKey(i, 0)] for i in range(12)]
    loader = iter(make_loader(_clips(toy_folder), batches, num_workers=1))
    next(loader)
    (worker,) = loader._workers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGTERM)
    assert len([batch for batch in loader if not batch.unreadable]) == 11 and worker.exitcode in (None, 0)
    loader = iter(make_loader(_clips(toy_folder), batches, num_workers=1))
    next(loader)
    (worker,) = loader._workers  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="killed by signal: Terminated"):
        for _ in range(2):
            os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.5)
