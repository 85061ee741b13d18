"""Segments of long videos: their frames, what shares their file, and EPIC-KITCHENS-100, whose clips are segments."""

from __future__ import annotations

import dataclasses
import json
import tarfile

import numpy as np
import pytest
from in_process import train
from video_files import moving_frames, write_video

from crossdistill.data.decode import index_any_video, index_video, read_frames
from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.sampling import centre_range_seconds, clip_frames
from crossdistill.encoders.architecture import make_view
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.datasets import epic_kitchens
from data_prep.merge import MergeOptions, merge_parts
from data_prep.pack import PackOptions, pack_dataset
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.segments import cut
from data_prep.pipeline.tasks import Segment
from data_prep.recipe import Outcome
from data_prep.verify import StreamChecks, _check_in_child

HEADER = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,verb_class,noun,noun_class"
ROWS = {
    "EPIC_100_train.csv": [
        'P01_01_0,P01,P01_01,00:00:00.40,00:00:01.20,"open door, then look",open,1,door,0',
        "P01_01_1,P01,P01_01,00:00:01.00,00:00:02.00,take cup,take,0,cup,1",
        "P01_02_0,P01,P01_02,00:00:00.00,00:00:01.00,take door,take,0,door,0",
    ],
    "EPIC_100_validation.csv": [
        "P02_01_0,P02,P02_01,00:00:01.50,00:00:04.00,open cup,open,1,cup,1",
        "P02_01_1,P02,P02_01,00:00:09.00,00:00:10.00,open cup,open,1,cup,1",
        "P02_01_2,P02,P02_01,00:00:00.00,00:00:00.20,take cup,take,0,cup,1",
    ],
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Two long videos of 2.4 s with 25 frames per second and keyframes every 12 frames, and lists with made rows."""
    folder = tmp_path_factory.mktemp("epic")
    lists = folder / "annotations"
    lists.mkdir()
    for name, rows in ROWS.items():
        (lists / name).write_text("\n".join([HEADER, *rows]) + "\n")
    (lists / "EPIC_100_verb_classes.csv").write_text(
        'id,key,instances,category\n0,take,"[""take"", ""grab""]",x\n1,open,[],x\n'
    )
    (lists / "EPIC_100_noun_classes.csv").write_text("id,key,instances,category\n0,door,[],x\n1,cup,[],x\n")
    for seed, name in enumerate(("P01/videos/P01_01.MP4", "P02/videos/P02_01.MP4")):
        frames = moving_frames(60, seed=seed, step_xy=(2, 1))
        made = write_video(folder / "videos" / f"{name[:-4]}.mp4", frames, options={"g": "12"})
        made.rename(folder / "videos" / name)
    return folder


def options_for(kitchen, out, **changes):
    options = {"modalities": ("rgb", "flow"), "workers": 1, "max_bad": 0.9, **changes}
    return epic_kitchens.EpicKitchensOptions(
        videos=kitchen / "videos", annotations=kitchen / "annotations", out=out, **options
    )


@pytest.fixture(scope="module")
def prepared(kitchen, tmp_path_factory):
    return epic_kitchens.prepare(options_for(kitchen, tmp_path_factory.mktemp("out") / "epic"))


def test_stream_segment__has_the_frames_of_its_times_and_decodes_them_exactly(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_frames(60, step_xy=(2, 1)), options={"g": "12"})
    whole = index_video(path)
    everything = read_frames(tmp_path, whole, range(60))
    for start, stop in [(0.0, 2.4), (0.4, 1.2), (0.48, 0.52), (1.0, 9.0), (2.36, 2.4)]:
        part = whole.segment(start, stop)
        naive = [i for i, t in enumerate(whole.times_seconds) if start - 1e-6 <= t < stop - 1e-6]
        assert part.pts.tolist() == whole.pts[naive].tolist() and part.is_segment
        assert set(whole.keyframes[np.isin(whole.keyframes, naive)] - naive[0]) <= set(part.keyframes.tolist())
        for decoder in ("pyav", "decord"):
            frames = read_frames(tmp_path, part, range(part.num_frames), decoder=decoder)
            assert np.array_equal(frames, everything[naive])
        assert type(part).from_json(json.loads(json.dumps(part.to_json()))).to_json() == part.to_json()
    assert whole.segment(5.0, 6.0).num_frames == 0


def test_stream_segment__of_a_file_that_cannot_be_sought(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_frames(30), options={"g": "12"})
    whole = dataclasses.replace(index_any_video(path)[0], is_seekable=False)
    part = whole.segment(0.5, 0.9)
    assert np.array_equal(read_frames(tmp_path, part, range(10)), read_frames(tmp_path, whole, range(13, 23)))


def test_clips__stay_inside_the_segment(prepared):
    stream = prepared.videos[0].streams["rgb"]
    view = make_view("rgb", 8, 2, 32)
    earliest, latest = centre_range_seconds([stream], [view])
    assert 0.4 <= earliest <= latest < 1.2
    for centre in np.linspace(earliest, latest, 5):
        times = stream.times_seconds[clip_frames(stream, view, float(centre))]
        assert times.min() >= 0.4 - 1e-6 and times.max() < 1.2
    long_view = make_view("rgb", 16, 4, 32)  # longer than the segment: its own frames repeat, none beside it is seen
    times = stream.times_seconds[clip_frames(stream, long_view, 0.8)]
    assert times.min() >= 0.4 - 1e-6 and times.max() < 1.2


def test_epic__prepares_each_long_video_once_and_says_what_became_of_each_segment(prepared):
    assert sorted(p.name for p in (prepared.root / "rgb").rglob("*.mp4")) == ["P01_01.mp4", "P02_01.mp4"]
    rows = {video.name: (video.status, video.label, video.splits, video.group) for video in prepared.videos}
    assert rows == {
        "P01_01_0": ("ok", 1, {"1": "train"}, "P01"),
        "P01_01_1": ("ok", 0, {"1": "train"}, "P01"),
        "P01_02_0": ("skipped", 0, {"1": "train"}, "P01"),
        "P02_01_0": ("repaired", 1, {"1": "test"}, "P02"),
        "P02_01_1": ("skipped", 1, {"1": "test"}, "P02"),
        "P02_01_2": ("skipped", 0, {"1": "test"}, "P02"),
    }
    reasons = [video.reason for video in prepared.videos]
    assert reasons == [
        "",
        "",
        "missing",
        "ends early: the segment is from 1.5 s to 4 s, and P02_01 ends after 2.40 s",
        "outside its video: the segment is from 9 s to 10 s, and P02_01 ends after 2.40 s",
        "too short: 5 frames, fewer than 8",
    ]
    first = prepared.videos[0]
    assert [(name, s.num_frames) for name, s in first.streams.items()] == [("flow", 20), ("rgb", 20)]
    assert {s.path for s in first.streams.values()} == {"flow/P01/P01_01.mp4", "rgb/P01/P01_01.mp4"}
    assert Manifest.load(prepared.root).videos[0].to_json() == first.to_json()


def test_epic__is_made_again_in_no_time_and_resumed_from_the_journal_alone(kitchen, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.root.rglob("*.mp4")}
    content = (prepared.root / "manifest.arrow").read_bytes()
    (prepared.root / "manifest.arrow").unlink()  # as after a kill
    epic_kitchens.prepare(options_for(kitchen, prepared.root))
    assert "2 of 2 videos are already prepared" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.root.rglob("*.mp4")} == before
    assert (prepared.root / "manifest.arrow").read_bytes() == content


def test_epic__keeps_originals_and_reads_actions(kitchen, tmp_path):
    options = options_for(kitchen, tmp_path / "out", keep_original=True, modalities=("rgb",), label="action")
    manifest = epic_kitchens.prepare(options)
    assert manifest.classes == ("take door", "take cup", "open door", "open cup")
    stream = manifest.videos[0].streams["rgb"]
    assert stream.path == str((kitchen / "videos/P01/videos/P01_01.MP4").resolve())
    whole = index_any_video(kitchen / "videos/P01/videos/P01_01.MP4")[0]
    expected = read_frames(kitchen / "videos/P01/videos", whole, range(10, 30))
    assert np.array_equal(read_frames(manifest.root, stream, range(20)), expected)


def test_epic__trains_on_segments(prepared, tmp_path):
    options = ["--supervised", "--student", "rgb_tiny3d_8", "--student-frames", 4, "--student-size", 16]
    options += ["--data", prepared.root, "--epochs", 1, "--batch-size", 2, "--workers", 0, "--tracker", "none"]
    train([*options, "--knn-clips", 0, "--no-evaluate", "--precision", "fp32", "--out", tmp_path / "run"])
    assert json.loads((tmp_path / "run/student/student.json").read_text())["training"]["num_clips"] == 2


def test_verify__decodes_a_shared_file_once_and_finds_a_changed_one(prepared, tmp_path, capsys):
    checks = StreamChecks(prepared)
    assert sorted(check.path for check in checks) == [
        "flow/P01/P01_01.mp4", "flow/P02/P02_01.mp4", "rgb/P01/P01_01.mp4", "rgb/P02/P02_01.mp4",
    ]  # fmt: skip
    assert [len(check.segments) for check in checks if "P01" in check.path] == [2, 2]
    main(["verify", str(prepared.root), "--workers", "1"])
    videos = [video.to_json() for video in prepared.videos]
    videos[1]["streams"]["rgb"]["pts"][0] += 1
    dataclasses.replace(prepared, videos=[Video.from_json(row) for row in videos]).save("moved.arrow")
    (check,) = [c for c in StreamChecks(Manifest.load(prepared.root, "moved.arrow")) if c.path == "rgb/P01/P01_01.mp4"]
    for finding in (check.find(), _check_in_child(check, time_limit_seconds=60)):
        assert finding.kind in ("frames differ", "timestamps differ")
    (prepared.root / "moved.arrow").unlink()


def test_pack__stores_a_long_video_once(prepared, tmp_path, capsys):
    packed = pack_dataset(PackOptions(folder=prepared.root, out=tmp_path / "packed"))
    with tarfile.open(tmp_path / "packed/shards/000000.tar") as shard:
        names = [name for name in shard.getnames() if name.endswith(".mp4")]
    assert names == ["00000000.flow.mp4", "00000000.rgb.mp4", "00000003.flow.mp4", "00000003.rgb.mp4"]
    for own, in_shard in zip(prepared.videos, packed.videos, strict=True):
        for name, stream in own.streams.items():
            frames = range(stream.num_frames)
            expected = read_frames(prepared.root, stream, frames, stream_name=name)
            found = read_frames(packed.root, in_shard.streams[name], frames, stream_name=name)
            assert np.array_equal(found, expected)
    assert packed.content_digest == prepared.content_digest
    main(["verify", str(packed.root), "--workers", "1"])


def test_sizes__count_a_shared_file_once(prepared, capsys):
    main(["inspect", str(prepared.root), "--clips", "1"])
    printed = capsys.readouterr().out
    num_bytes = sum(path.stat().st_size for path in (prepared.root / "rgb").rglob("*.mp4"))
    assert f"{num_bytes / 1e6:.1f}" in printed
    row = next(line for line in printed.splitlines() if line.startswith("files"))
    assert row.split()[1:] == ["2", "2"]


def files_of(folder):
    """Return the content of all files but journals and manifests of parts."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "-of-" not in path.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if not p.name.startswith("journal")}


@pytest.fixture(scope="module")
def alternating(kitchen, tmp_path_factory):
    """The same videos with lists in which the segments of a video are not beside each other."""
    folder = tmp_path_factory.mktemp("alternating")
    (folder / "videos").symlink_to(kitchen / "videos")
    (folder / "annotations").mkdir()
    for path in (kitchen / "annotations").iterdir():
        rows = path.read_text().splitlines()
        if path.name == "EPIC_100_train.csv":
            rows.insert(2, "P02_01_9,P02,P02_01,00:00:00.00,00:00:01.00,take cup,take,0,cup,1")
        (folder / "annotations" / path.name).write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("num_parts", "segments"), [(2, [[0, 2, 3], [1, 4, 5, 6]]), (4, [[0, 2], [1, 4, 5, 6], [3], []])]
)
def test_shards__have_whole_long_videos_and_merge_to_the_unsharded_run(alternating, tmp_path, num_parts, segments):
    whole = epic_kitchens.prepare(options_for(alternating, tmp_path / "whole"))
    out = tmp_path / "parts"
    for i in range(num_parts, 0, -1):  # the last part first
        part = epic_kitchens.prepare(options_for(alternating, out, shard=f"{i}/{num_parts}", max_bad=1.0))
        assert [video.name for video in part.videos] == [whole.videos[k].name for k in segments[i - 1]]
    assert not (out / "manifest.arrow").exists()
    main(["merge", str(out)])
    assert files_of(out) == files_of(whole.root)
    # The merged dataset is resumed, and a part too.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    epic_kitchens.prepare(options_for(alternating, out))
    epic_kitchens.prepare(options_for(alternating, out, shard=f"1/{num_parts}"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before
    assert files_of(out) == files_of(whole.root)


def test_merge__refuses_parts_of_different_lists_of_segments(kitchen, alternating, tmp_path):
    for i, given in enumerate((kitchen, alternating), start=1):
        epic_kitchens.prepare(options_for(given, tmp_path, shard=f"{i}/2", max_bad=1.0, modalities=("rgb",)))
    with pytest.raises(UserError, match=r"different lists: together they do not have each of 9 segments once; prepare"):
        merge_parts(MergeOptions(folder=tmp_path))


def test_segment__that_ends_before_it_starts_is_one_sentence(kitchen, tmp_path):
    path = kitchen / "videos/P01/videos/P01_01.MP4"
    source = SourceVideo("a", {"rgb": path}, segment=Segment("P01_01", 2.0, 1.0))
    with pytest.raises(UserError, match=r"the segment a is from 2 s to 1 s of P01_01: give a start of 0 or more and a"):
        prepare_videos("own", [source], classes=(), options=PrepareOptions(out=tmp_path / "out"))


def test_cut__keeps_the_reason_of_the_long_video():
    assert cut(Outcome("skipped", "empty"), Segment("v", 0, 1), min_frames=8) == Outcome("skipped", "empty")


TRAIN = "EPIC_100_train.csv"
TIMES = "00:00:01,00:00:02"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (TRAIN, f"x,P01,P01_01,{TIMES},n,take,7,cup,1", r"line 5 has the class 7, which is not in EPIC_100_verb"),
        (TRAIN, f"x,P01,P01_01,{TIMES},n,take,0,cup,9", r"line 5 has the class 9, which is not in EPIC_100_noun"),
        (TRAIN, f"x,P01,P01_01,{TIMES},n,take,a,cup,1", r"line 5 has 'a' in the column verb_class, where a number"),
        (TRAIN, "x,P01,P01_01,1.5,00:00:02,n,take,0,cup,1", r"line 5 has the time '1.5' in start_timestamp: expected"),
        (TRAIN, "x,P01,P01_01,00:00:02,00:00:02,n,take,0,cup,1", r"line 5 has a segment from 00:00:02 to 00:00:02"),
        (TRAIN, "x,P01", r"line 5 has '' in the column video_id: download the list again"),
        (
            TRAIN,
            f"P02_01_0,P01,P01_01,{TIMES},n,take,0,cup,1",
            r"validation.csv line 2 names the segment P02_01_0 again",
        ),
        ("EPIC_100_verb_classes.csv", "5,cut,[],x", r"verb_classes.csv line 4 is class 5, 'cut': expected class 2"),
    ],
)
def test_epic__damaged_lists_are_one_sentence(kitchen, tmp_path, name, line, message):
    for path in (kitchen / "annotations").iterdir():
        (tmp_path / path.name).write_text(path.read_text() + (f"{line}\n" if path.name == name else ""))
    with pytest.raises(UserError, match=message):
        epic_kitchens.read_lists(tmp_path, label="verb")


def test_epic__missing_lists_and_videos_are_one_sentence(kitchen, tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*EPIC_100_verb_classes.csv: give the folder of EPIC"):
        epic_kitchens.read_lists(tmp_path, label="verb")
    for name in ("EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"):
        (tmp_path / name).write_text((kitchen / "annotations" / name).read_text())
    with pytest.raises(UserError, match=r"contains no list of segments: expected for example EPIC_100_train.csv"):
        epic_kitchens.read_lists(tmp_path, label="verb")
    options = dataclasses.replace(options_for(kitchen, tmp_path / "out"), videos=kitchen / "annotations")
    with pytest.raises(
        UserError, match=r"contain none of the 3 videos that the lists .* expected for example P01_01.MP4"
    ):
        epic_kitchens.prepare(options)


def test_epic__test_segments_without_labels_are_training_data(kitchen, tmp_path):
    for path in (kitchen / "annotations").iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp"
    (tmp_path / "EPIC_100_test_timestamps.csv").write_text(f"{header}\nP03_01_0,P03,P03_01,00:00:00,00:00:01\n")
    *_, last = epic_kitchens.read_lists(tmp_path, label="noun")[1]
    assert (last.name, last.part, last.classes) == ("P03_01_0", None, None)
