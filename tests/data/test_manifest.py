"""The manifest: round trip, columns, other processes, atomic writes, former versions and error messages."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from manifest_lines import to_lines
from torch.utils.data import DataLoader, Dataset

from crossdistill.data import held_out, video_table
from crossdistill.data.entries import entries_of
from crossdistill.data.held_out import folds_of, is_held_out
from crossdistill.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    Stream,
    Video,
    decode_steps,
    encode_steps,
    require_unique_names,
)
from crossdistill.data.video_table import FORMAT_VERSION
from crossdistill.errors import UserError, friendly_errors

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
FORMER_DATA = PROJECT_FOLDER / "tests" / "former_version" / "data"
LINES_NAME = "manifest.jsonl"


def example(root: Path, num_videos: int = 4) -> Manifest:
    rng = np.random.default_rng(0)
    videos = []
    for i in range(num_videos):
        pts = np.cumsum(rng.integers(1, 900, 30))
        stream = Stream(f"rgb/{i}.mp4", 64, 48, Fraction(1001, 30000), pts, np.array([0, 16]), is_seekable=i % 2 == 0)
        part = {"1": "train" if i % 2 else "test"}
        videos.append(Video(f"v{i}", label=i % 2, group=f"g{i:02d}", splits=part, streams={"rgb": stream}))
    videos.append(Video("gone", splits={"1": "test", "2": "train"}, status="skipped", reason="missing"))
    return Manifest(root, "example", ("a", "ü b"), tuple(videos), flip_keeps_label=False, facts={"size": 1})


def assert_same(left: Manifest, right: Manifest) -> None:
    for name in ("root", "dataset", "classes", "flip_keeps_label", "facts"):
        assert getattr(left, name) == getattr(right, name)
    assert [video.to_json() for video in left.videos] == [video.to_json() for video in right.videos]
    for a, b in zip(left.videos, right.videos, strict=True):
        for name, stream in a.streams.items():
            np.testing.assert_array_equal(stream.pts, b.streams[name].pts)
            np.testing.assert_array_equal(stream.keyframes, b.streams[name].keyframes)
            assert stream.time_base == b.streams[name].time_base


@pytest.mark.parametrize("seed", range(20))
def test_encode_steps__round_trip(seed):
    rng = np.random.default_rng(seed)
    steps = np.repeat(rng.integers(1, 5 * 10**9, 6), rng.integers(1, 40, 6))
    values = rng.integers(-(10**9), 10**9) + np.cumsum(steps)
    coded = encode_steps(values.tolist())
    assert all(type(number) is int for number in coded)
    assert len(coded) <= 1 + 2 * 6
    np.testing.assert_array_equal(decode_steps(json.loads(json.dumps(coded))), values)


@pytest.mark.parametrize(
    ("values", "coded"),
    [([], []), ([5], [5]), ([0, 3], [0, 3, 1]), ([0, 3, 6, 9], [0, 3, 3]), ([0, 3, 6, 7], [0, 3, 2, 1, 1])],
)
def test_encode_steps__examples(values, coded):
    assert encode_steps(values) == coded
    assert decode_steps(coded).tolist() == values
    assert decode_steps(coded).dtype == np.int64


def test_constant_rate__takes_a_few_bytes():
    assert len(json.dumps(encode_steps(list(range(0, 512 * 100_000, 512))))) < 25


def test_save_and_load__equal(tmp_path):
    manifest = example(tmp_path)
    manifest.save()
    assert_same(Manifest.load(tmp_path), manifest)
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    Manifest.load(str(tmp_path)).save()
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


def test_select__returns_part_with_unusable_videos(tmp_path):
    manifest = example(tmp_path)
    assert manifest.splits == ("1", "2")
    assert manifest.streams == ("rgb",)
    assert manifest.select(split="1", part="train") == [1, 3]
    assert manifest.select(split="1", part="test") == [0, 2, 4]
    assert not manifest.videos[4].is_usable
    assert manifest.select(split="2", part="test") == []


def test_select__unknown_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no split '7': choose one of 1, 2"):
        example(tmp_path).select(split="7", part="train")


def people(root: Path, *, num_people: int = 4) -> Manifest:
    """Eight videos of each person, four of each class; the last person tests in split 1."""
    videos = [
        Video(f"v{p}{i}", label=i % 2, group=f"s{p}", splits={"1": "test" if p == num_people - 1 else "train"})
        for p in range(num_people)
        for i in range(8)
    ]
    return Manifest(root, "people", ("a", "b"), tuple(videos))


def test_select__holds_out_training_people_and_never_the_test_people(tmp_path):
    manifest = people(tmp_path, num_people=5)
    test = set(manifest.select(split="1", part="test"))
    for split, held in (("1@s1", {"s1"}), ("1@s0+s2", {"s0", "s2"}), ("1@25%", None), ("1@1%", None)):
        parts = {part: manifest.select(split=split, part=part) for part in ("train", "test")}
        shown = {part: {manifest.videos[i].group for i in chosen} for part, chosen in parts.items()}
        assert not shown["train"] & shown["test"] and len(shown["test"]) == len(held or {0})
        assert held is None or shown["test"] == held
        assert sorted([*parts["train"], *parts["test"]]) == manifest.select(split="1", part="train")
        assert not test & {*parts["train"], *parts["test"]}
        assert manifest.has_split(split) and manifest.select(split=split, part="validation") == []


def test_select__holds_out_a_share_of_each_class_without_groups(tmp_path):
    manifest = people(tmp_path)
    videos = tuple(replace(video, group=None) for video in manifest.videos)
    held = replace(manifest, videos=videos).select(split="1@25%", part="test")
    assert [sum(videos[i].label == label for i in held) for label in (0, 1)] == [3, 3]


def test_select__a_video_without_a_group_is_a_group_of_its_own(tmp_path):
    manifest = people(tmp_path)
    videos = tuple(replace(video, group=None) if i == 0 else video for i, video in enumerate(manifest.videos))
    held = set(replace(manifest, videos=videos).select(split="1@25%", part="test"))
    assert held in ({0}, set(range(1, 8)), set(range(8, 16)), set(range(16, 24)))


def test_select__folds_share_the_training_people_and_each_has_every_class(tmp_path):
    manifest = people(tmp_path, num_people=8)
    for whole, num_folds in (("1", 3), ("1@s1", 2), ("1", 7)):
        train = manifest.select(split=whole, part="train")
        groups = []
        for number in range(1, num_folds + 1):
            split = f"{whole}@{number}of{num_folds}"
            held, rest = (manifest.select(split=split, part=part) for part in ("test", "train"))
            assert manifest.has_split(split) and sorted([*held, *rest]) == train and held
            groups.append({manifest.videos[i].group for i in held})
            assert not groups[-1] & {manifest.videos[i].group for i in rest}
        assert sum(map(len, groups)) == len(set.union(*groups))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert not manifest.has_split("2@1of3") and not manifest.has_split("1of3")


@pytest.mark.parametrize("seed", range(5))
def test_folds_of__without_groups_differ_by_one_clip_of_a_class(seed):
    labels = np.random.default_rng(seed).integers(0, 4, size=50).tolist()
    folds = folds_of(labels, [None] * 50, num_folds=3, split="1")
    for label in range(4):
        counts = [sum(f == fold and c == label for f, c in zip(folds, labels, strict=True)) for fold in (1, 2, 3)]
        assert max(counts) - min(counts) <= 1
    assert folds == folds_of(labels, [None] * 50, num_folds=3, split="another name")


def test_folds_of__large_groups_and_rare_classes_are_spread():
    """One person has half of the clips, and only two people show the rare class."""
    groups = ["a"] * 12 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4 + ["e"] * 2 + ["f"] * 2
    labels = [0] * 24 + [1] * 4
    folds = dict(zip(groups, folds_of(labels, groups, num_folds=2, split="1"), strict=True))
    assert folds["e"] != folds["f"], "the rare class is in both"
    assert [folds[name] == folds["a"] for name in "bcd"] == [False] * 3


def test_select__a_split_of_that_very_name_comes_first(tmp_path):
    manifest = people(tmp_path)
    first = replace(manifest.videos[0], splits={"1": "train", "1@s1": "test"})
    both = replace(manifest, videos=(first, *manifest.videos[1:]))
    assert both.select(split="1@s1", part="test") == [0]


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("1@s9", r"holds out 's9', which is no group .*: give a share such as 25%, or groups \(s0, s1, s2\) joined"),
        ("1@s0+s3", "holds out 's3', which is no group of its training videos"),  # s3 is a test person
        ("1@0%", "give more than 0% and less than 100%"),
        ("1@100%", "give more than 0% and less than 100%"),
        ("1@4of3", "holds out fold 4: choose fold 1 to 3"),
        ("1@1of4", "asks for 4 folds, and there are 3 training groups: choose 2 to 3 folds"),
        ("1@1of1", "asks for 1 fold, and there are 3 training groups"),
        ("1@s0+s1+s2", "holds out all of its training videos"),
        ("2@s0", "has no split '2@s0': choose one of 1"),
        ("@s0", "has no split '@s0': choose one of 1"),
    ],
)
def test_select__says_what_can_be_held_out(tmp_path, split, sentence):
    with pytest.raises(UserError, match=sentence):
        people(tmp_path).select(split=split, part="train")


def test_held_out__is_found_once_for_both_parts(tmp_path, monkeypatch):
    manifest, found = people(tmp_path), []
    monkeypatch.setattr(
        held_out, "is_held_out", lambda *given, **more: found.append(given) or is_held_out(*given, **more)
    )
    for part in ("train", "test", "train"):
        manifest.select(split="1@25%", part=part)
    ((labels, groups, share),) = found
    trained = [video for video in manifest.videos if video.splits.get("1") == "train"]
    assert (labels, groups, share) == ([v.label for v in trained], [v.group for v in trained], "25%")
    manifest.select(split="1@2of3", part="train")
    assert len(found) == 2


def test_require_stream__error_names_option(tmp_path):
    manifest = example(tmp_path)
    manifest.require_stream("rgb", wanted_by="x")
    with pytest.raises(UserError, match=r"flow_r3d18 needs the stream 'flow'.*only rgb.*--modalities flow"):
        manifest.require_stream("flow", wanted_by="flow_r3d18")


def test_load__missing_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a prepared dataset \(no manifest\.arrow\): make one with"):
        Manifest.load(tmp_path)


def test_load__empty_file_is_refused(tmp_path):
    (tmp_path / MANIFEST_NAME).touch()
    with pytest.raises(UserError, match=r"manifest\.arrow is empty: give the command"):
        Manifest.load(tmp_path)


def test_load__other_file_is_refused(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is damaged or cut short"):
        Manifest.load(tmp_path)
    with pa.OSFile(str(tmp_path / MANIFEST_NAME), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(UserError, match="is not a manifest of crossdistill"):
        Manifest.load(tmp_path)


def test_load__newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video_table, "FORMAT_VERSION", 99)
    example(tmp_path).save()
    monkeypatch.undo()
    with pytest.raises(UserError, match=rf"format version 99, this crossdistill reads up to {FORMAT_VERSION}"):
        Manifest.load(tmp_path)


def test_load__file_cut_anywhere_is_refused(tmp_path):
    path = example(tmp_path).save()
    content = path.read_bytes()
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="is damaged or cut short") as error:
            Manifest.load(tmp_path)
        assert "\n" not in str(error.value)


def damage_names(root: Path) -> None:
    """Write a manifest in which the second name begins far outside of the file."""
    path = example(root).save()
    content = bytearray(path.read_bytes())
    place = content.index(b"v0v1v2v3gone")  # the names; before them is where each of them begins
    begins = content.rindex(np.array([0, 2, 4, 6, 8, 12], dtype=np.int32).tobytes(), 0, place)
    content[begins + 4 : begins + 8] = np.int32(10**9).tobytes()
    path.write_bytes(content)


def test_damaged_names_of_fields__are_one_sentence(tmp_path):
    path = example(tmp_path).save()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"keyframes", b"keyfrxmes"))
    assert path.read_bytes() != content
    with pytest.raises(UserError, match=r"manifest\.arrow is damaged"):
        list(Manifest.load(tmp_path).videos)


def test_damaged_values__are_one_sentence(tmp_path, monkeypatch):
    """A time base of 1/0, for example."""
    example(tmp_path).save()
    monkeypatch.setattr(Stream, "from_json", lambda row: Fraction(1, 0))
    with pytest.raises(UserError, match=r"manifest\.arrow is damaged .*Fraction\(1, 0\)"):
        list(Manifest.load(tmp_path).videos)


def test_damaged_offsets__are_an_error_and_no_crash(tmp_path):
    damage_names(tmp_path)
    manifest = Manifest.load(tmp_path)
    assert manifest.select(split="1", part="train") == [1, 3]  # reads no name
    for read in (lambda: manifest.videos[1], lambda: manifest.find("v2")):
        with pytest.raises(UserError, match=r"manifest\.arrow is damaged or cut short .*: give the command"):
            read()


def test_damage__found_by_a_worker_is_one_sentence(tmp_path, capsys):
    damage_names(tmp_path)
    loader = DataLoader(Names(entries_of(Manifest.load(tmp_path), range(4))), num_workers=1)
    with pytest.raises(SystemExit):
        friendly_errors(lambda: list(loader))()
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"crossdistill: error: {tmp_path / MANIFEST_NAME} is damaged or cut short")
    assert "\n" not in said and said.endswith("keeps finished videos")


# Columns: each answer against that of a loop over the videos.


def odd_manifest(root: Path, num_videos: int, seed: int) -> Manifest:
    """Videos that lack a label, a group, splits, streams; both kinds of stream; large and odd numbers."""
    rng = np.random.default_rng(seed)

    def stream(name: str, i: int) -> Stream:
        is_video = bool(rng.random() < 0.8)
        pts = np.cumsum(rng.integers(1, 10 ** int(rng.integers(1, 11)), int(rng.integers(1, 40))))
        return Stream(
            f"{name}/ä {i}.mp4",
            *map(int, rng.integers(1, 4000, 2)),
            Fraction(int(rng.integers(1, 2000)), int(rng.integers(1, 2**31))),
            pts if is_video else np.zeros(1, np.int64),
            np.flatnonzero(rng.random(len(pts)) < 0.3),
            is_seekable=bool(rng.random() < 0.5),
            is_plain=bool(rng.random() < 0.5),
            num_bytes=int(rng.integers(0, 2**40)),
            sha256=rng.bytes(32).hex() if rng.random() < 0.5 else "",
            stored_as="video" if is_video else "jpeg",
            offset=0 if is_video else int(rng.integers(0, 2**40)),
        )

    videos = []
    for i in range(num_videos):
        parts = {split: str(rng.choice(["train", "test", "val"])) for split in ("1", "zwei.2") if rng.random() < 0.7}
        status = str(rng.choice(["ok", "repaired", "skipped"], p=[0.6, 0.2, 0.2]))
        names = [name for name in ("rgb", "flow", "depth") if name == "flow" or rng.random() < 0.8]
        label = int(rng.integers(0, 3)) if rng.random() < 0.8 else None
        streams = {name: stream(name, i) for name in names} if status != "skipped" else {}
        reason = "" if status == "ok" else f"because: {i}"
        group = f"g{i % 4}" if rng.random() < 0.8 else None
        videos.append(Video(f"v{i} ü", label, group, parts, status, reason, streams))
    return Manifest(root, "odd", ("a", "b", "c"), tuple(videos), facts={"size": 1, "recipe": {"keep_original": True}})


def naive_digest(manifest: Manifest) -> str:
    """The digest of version 0.2, written down again: caches and runs on disk hold it."""
    digest = hashlib.sha256(json.dumps([manifest.dataset, manifest.classes, manifest.flip_keeps_label]).encode())
    for video in manifest.videos:
        streams = {}
        for name, stream in sorted(video.streams.items()):
            file = stream.sha256 or [stream.num_bytes, stream.width_px, stream.height_px]
            streams[name] = [file, str(stream.time_base), hashlib.sha256(stream.pts.tobytes()).hexdigest()]
        facts = [video.name, video.label, sorted(video.splits.items()), video.is_usable, streams]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("num_videos", [0, 1, 7, 8, 20])
def test_columns__answer_as_a_loop_over_the_videos(tmp_path, monkeypatch, num_videos):
    monkeypatch.setattr(video_table, "ROWS_PER_BATCH", 4)
    made = odd_manifest(tmp_path, num_videos, seed=num_videos)
    made.save()
    loaded = Manifest.load(tmp_path)
    assert_same(loaded, made)
    assert [video.to_json() for video in loaded.videos[::-2]] == [v.to_json() for v in made.videos[::-2]]
    for manifest in (made, loaded):
        videos = made.videos
        assert manifest.splits == tuple(sorted({split for video in videos for split in video.splits}))
        for split in manifest.splits:
            for part in ("train", "test", "val", "other"):
                expected = [i for i, video in enumerate(videos) if video.splits.get(split) == part]
                assert manifest.select(split=split, part=part) == expected
        usable = [set(video.streams) for video in videos if video.is_usable]
        assert manifest.streams == (tuple(sorted(set.intersection(*usable))) if usable else ())
        assert manifest.is_usable.tolist() == [video.is_usable for video in videos]
        assert manifest.table.labels.tolist() == [-1 if video.label is None else video.label for video in videos]
        assert manifest.without_split.tolist() == [i for i, video in enumerate(videos) if not video.splits]
        assert manifest.table.has_any_stream.tolist() == [bool(video.streams) for video in videos]
        assert manifest.content_digest == naive_digest(made)
        assert [manifest.find(video.name) for video in videos] == list(range(num_videos))
        found = {name: manifest.table.stream_numbers(name, "num_frames").tolist() for name in manifest.streams}
        for name, numbers in found.items():
            assert numbers == [video.streams[name].num_frames if name in video.streams else 0 for video in videos]


def test_noun__is_that_of_the_first_stream(tmp_path):
    manifests = [odd_manifest(tmp_path, 5, seed) for seed in range(20)]
    for manifest in manifests:
        streams = (stream for video in manifest.videos for _, stream in sorted(video.streams.items()))
        assert manifest.noun == ("videos" if next((stream.is_video for stream in streams), True) else "pictures")
    assert {manifest.noun for manifest in manifests} == {"videos", "pictures"}


@pytest.mark.parametrize(("largest", "num_bits"), [(2**15 - 1, 16), (2**15, 32), (2**31 - 1, 32), (2**31, 64)])
def test_save__takes_as_many_bits_as_the_timestamps_need(tmp_path, largest, num_bits):
    stream = Stream("a.mp4", 4, 4, Fraction(1, 1000), np.array([0, largest]), np.array([0]))
    made = Manifest(tmp_path, "one", (), (Video("a", streams={"rgb": stream}),))
    made.save()
    assert Manifest.load(tmp_path).table.layout.num_bits == num_bits
    assert_same(Manifest.load(tmp_path), made)


def test_content_digest__follows_a_changed_header(tmp_path):
    example(tmp_path).save()
    other = replace(Manifest.load(tmp_path), dataset="other")
    assert other.content_digest == naive_digest(other) != Manifest.load(tmp_path).content_digest


def test_content_digest__is_that_of_former_versions():
    assert Manifest.load(FORMER_DATA).content_digest == "d00957d94a03764a"  # computed by version 0.2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "fine"}, "KeyError: 'fine'"),
        ({"label": "a"}, "ArrowInvalid"),
        ({"label": 2**40}, "ArrowInvalid"),
        ({"name": None, "streams": None}, "'NoneType' object has no attribute"),
    ],
)
def test_save__refuses_an_invalid_video(tmp_path, changes, said):
    with pytest.raises((UserError, AttributeError), match=said):
        Manifest(tmp_path, "x", (), (replace(Video("a"), **changes),)).save()
    assert not list(tmp_path.iterdir())


def test_videos__outside_of_the_folder_are_refused_one_by_one_too(tmp_path, monkeypatch):
    """The sum at the end of a file that somebody else wrote may be wrong."""
    stream = Stream("../a.mp4", 4, 4, Fraction(1), np.arange(2), np.array([0]))
    monkeypatch.setattr(video_table, "find_outside", lambda *_, **__: None)
    Manifest(tmp_path, "x", (), (Video("a", streams={"rgb": stream}),)).save()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"manifest\.arrow names the file \.\./a\.mp4 outside the dataset"):
        Manifest.load(tmp_path).videos[0]


# Memory, and other processes.


def test_load__maps_the_file_and_copies_nothing(tmp_path):
    example(tmp_path, num_videos=2000).save()
    before = pa.total_allocated_bytes()
    manifest = Manifest.load(tmp_path)
    assert sum(video.label or 0 for video in manifest.videos) == 1000
    # Dictionaries of a few words are unpacked; a row in private memory takes hundreds of bytes.
    assert pa.total_allocated_bytes() - before < 2000


def test_pickle__names_the_file_and_not_its_rows(tmp_path):
    example(tmp_path, num_videos=500).save()
    manifest = Manifest.load(tmp_path)
    assert manifest.select(split="1", part="train") and manifest.streams
    content = pickle.dumps(replace(manifest))
    assert len(content) < 1000
    assert_same(pickle.loads(content), manifest)
    made = example(tmp_path, num_videos=3)
    assert made.table.labels.tolist() == [0, 1, 0, -1]
    assert pickle.loads(pickle.dumps(made.table)).labels.tolist() == [0, 1, 0, -1]


def test_file__stays_valid_while_another_takes_its_place(tmp_path):
    example(tmp_path).save()
    manifest = Manifest.load(tmp_path)
    content = pickle.dumps(manifest)
    example(tmp_path, num_videos=9).save()
    assert_same(manifest, example(tmp_path))
    with pytest.raises(UserError, match=r"manifest\.arrow was written again while a run read it: start the run again"):
        pickle.loads(content)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers__read_the_same_videos(tmp_path, start_method):
    made = example(tmp_path, num_videos=50)
    made.save()
    entries = entries_of(Manifest.load(tmp_path), range(51))
    loader = DataLoader(Names(entries), batch_size=10, num_workers=2, multiprocessing_context=start_method)
    assert [name for names in loader for name in names] == [video.name for video in made.videos]


class Names(Dataset):
    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, i):
        return self.entries[i].video.name


# Lines of JSON, which former versions wrote.


def test_lines__are_read_and_written_as_former_versions_did(tmp_path):
    former = (FORMER_DATA / LINES_NAME).read_text()
    manifest = Manifest.load(FORMER_DATA)
    assert "".join(f"{line}\n" for line in manifest.lines()) == former
    replace(manifest, root=tmp_path).save()
    assert "".join(f"{line}\n" for line in Manifest.load(tmp_path).lines()) == former


def test_lines__are_read_without_what_early_versions_lack(tmp_path):
    def change(header, rows):
        for row in rows:
            for stream in row["streams"].values():
                del stream["num_bytes"], stream["sha256"]

    made = example(tmp_path)
    made.save()
    to_lines(tmp_path, change)
    assert_same(Manifest.load(tmp_path), made)


def test_lines__error_numbers_damaged_line(tmp_path):
    example(tmp_path).save()
    path = to_lines(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][: len(lines[2]) // 2]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.jsonl line 3 is damaged .*: prepare the dataset again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ('{"a": 1}\n', "is not a manifest of crossdistill"),
        ('{"format": "crossdistill-manifest", "version": 99}\n', "format version 99, this crossdistill reads up to 1"),
        ('{"format": "crossdistill-manifest", "version": 1}\n', "is damaged .KeyError: 'dataset'"),
    ],
)
def test_lines__other_files_are_refused(tmp_path, content, sentence):
    (tmp_path / LINES_NAME).write_text(content)
    with pytest.raises(UserError, match=sentence):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [({"label": "a"}, "ArrowInvalid"), ({"status": "?"}, "KeyError"), ({"streams": 3}, "AttributeError")],
)
def test_lines__invalid_rows_are_refused(tmp_path, row, said):
    example(tmp_path).save()
    to_lines(tmp_path, lambda _, rows: rows[1].update(row))
    with pytest.raises(UserError, match=rf"manifest\.jsonl is damaged.*{said}.*: give the command"):
        Manifest.load(tmp_path)


def test_save__removes_the_former_manifest(tmp_path):
    example(tmp_path).save()
    to_lines(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LINES_NAME]
    Manifest.load(tmp_path).save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_NAME]


def test_load__of_both_formats_takes_the_table_unless_the_lines_are_newer(tmp_path):
    example(tmp_path, num_videos=9).save()
    table = (tmp_path / MANIFEST_NAME).read_bytes()
    to_lines(tmp_path)
    (tmp_path / MANIFEST_NAME).write_bytes(table)
    os.utime(tmp_path / LINES_NAME, (10, 10))
    assert len(Manifest.load(tmp_path).videos) == 10
    os.utime(tmp_path / MANIFEST_NAME, (5, 5))
    with pytest.raises(
        UserError, match=r"a newer manifest\.jsonl, which .*: take the newer one with .* convert .*, or"
    ):
        Manifest.load(tmp_path)


def test_require_unique_names__error_names_duplicate(tmp_path):
    require_unique_names(["x", "y"])
    with pytest.raises(UserError, match="two videos are named 'x'"):
        require_unique_names(["x", "y", "x"])


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from crossdistill.data.manifest import Manifest, Video
root = Path(sys.argv[1])
number = 0
while True:
    number += 1
    videos = tuple(Video(f"video {i} of {number}", reason="x" * 500) for i in range(2000))
    Manifest(root, "loop", (), videos, facts={"number": number}).save()
"""


def test_save__survives_being_killed(tmp_path):
    for delay_seconds in (0.0, 0.013, 0.029):
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], cwd=PROJECT_FOLDER)
        try:
            while not list(tmp_path.glob(f".{MANIFEST_NAME}.*.tmp")):
                assert process.poll() is None
                time.sleep(0.001)  # wait until it has started to write
            while not (tmp_path / MANIFEST_NAME).exists():
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(delay_seconds)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        manifest = Manifest.load(tmp_path)
        assert len(manifest.videos) == 2000
        assert {video.name.split(" of ")[1] for video in manifest.videos} == {str(manifest.facts["number"])}
