"""The manifest: round trip, size, atomic writes and error messages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from crossdistill.data.held_out import folds_of
from crossdistill.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    Stream,
    Video,
    decode_steps,
    encode_steps,
    require_unique_names,
)
from crossdistill.errors import UserError

PROJECT_FOLDER = Path(__file__).resolve().parents[2]


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


def test_require_stream__error_names_option(tmp_path):
    manifest = example(tmp_path)
    manifest.require_stream("rgb", wanted_by="x")
    with pytest.raises(UserError, match=r"flow_r3d18 needs the stream 'flow'.*only rgb.*--modalities flow"):
        manifest.require_stream("flow", wanted_by="flow_r3d18")


def test_load__missing_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a prepared dataset \(no manifest\.jsonl\): make one with"):
        Manifest.load(tmp_path)


def test_load__error_numbers_damaged_line(tmp_path):
    path = example(tmp_path).save()
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][: len(lines[2]) // 2]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.jsonl line 3 is damaged .*: prepare the dataset again"):
        Manifest.load(tmp_path)


def test_load__empty_file_is_refused(tmp_path):
    (tmp_path / MANIFEST_NAME).touch()
    with pytest.raises(UserError, match="is empty"):
        Manifest.load(tmp_path)


def test_load__other_file_is_refused(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is not a manifest of crossdistill"):
        Manifest.load(tmp_path)


def test_load__newer_version_is_refused(tmp_path):
    path = example(tmp_path).save()
    path.write_text(path.read_text(encoding="utf-8").replace(f'"version": {FORMAT_VERSION}', '"version": 99', 1))
    with pytest.raises(UserError, match=rf"format version 99, this crossdistill reads up to {FORMAT_VERSION}"):
        Manifest.load(tmp_path)


def test_require_unique_names__error_names_duplicate(tmp_path):
    require_unique_names(example(tmp_path).videos)
    with pytest.raises(UserError, match="two videos are named 'x'"):
        require_unique_names([Video("x"), Video("y"), Video("x")])


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
