"""DecodedVideos: the same clips from memory, up to a size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from crossdistill.data import clip_reader, dataset, decoded
from crossdistill.data.dataset import PairedClips, entries_of, make_loader
from crossdistill.data.decoded import DecodedVideos
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey, TrainingBatches
from crossdistill.data.transforms import Augmentation
from crossdistill.encoders import create_encoder
from crossdistill.errors import UnreadableVideoError
from crossdistill.recipes.config import from_dict
from crossdistill.recipes.data import select_training_clips
from crossdistill.recipes.identity import identity

NUM_VIDEOS = 6


@pytest.fixture
def decoded_frames(monkeypatch):
    """Frames that were decoded from files, call by call."""
    calls, read = [], decoded.read_pictures

    def counted(root, stream, frames, **options):
        calls.append(len(frames))
        return read(root, stream, frames, **options)

    for module in (decoded, clip_reader):
        monkeypatch.setattr(module, "read_pictures", counted)
    return calls


def clips_of(folder, **options):
    manifest = Manifest.load(folder)
    views = [
        create_encoder(f"{name}_r3d10", num_frames=4, stride=1, size_px=32).view for name in ("flow", "rgb", "depth")
    ]
    return PairedClips(
        entries_of(manifest, range(NUM_VIDEOS)),
        student_view=views[0],
        teacher_views=views[1:],
        augmentation=Augmentation(),
        seed=3,
        **options,
    )


def batches_of(clips, *, num_workers=0, num_epochs=3):
    batches = TrainingBatches(num_samples=len(clips), batch_size=2, num_epochs=num_epochs, seed=5)
    return list(make_loader(clips, batches, num_workers=num_workers))


def all_frames(folder, name):
    manifest = Manifest.load(folder)
    return [manifest.videos[i].streams[name] for i in range(NUM_VIDEOS)]


@pytest.mark.parametrize("max_bytes", [10**9, 120_000, 0])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_clips__are_the_same_to_the_bit(toy_folder, max_bytes, num_workers):
    expected = batches_of(clips_of(toy_folder))
    found = batches_of(clips_of(toy_folder, decoded=DecodedVideos(max_bytes)), num_workers=num_workers)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.sample_keys, theirs.sample_keys)
        for one, other in zip((ours.student, *ours.teachers), (theirs.student, *theirs.teachers), strict=True):
            assert torch.equal(one.values, other.values) and torch.equal(one.channel_scale, other.channel_scale)


def test_videos__are_decoded_once(toy_folder, decoded_frames):
    batches_of(clips_of(toy_folder, decoded=DecodedVideos(10**9)))
    whole = [stream.num_frames for name in ("flow", "rgb", "depth") for stream in all_frames(toy_folder, name)]
    # One frame of each stream says how large it is. The other two epochs decode nothing.
    assert sorted(decoded_frames) == sorted([*whole, *[1] * len(whole)])


def test_size__is_kept_and_the_rest_is_decoded_each_time(toy_folder, decoded_frames):
    stream = all_frames(toy_folder, "rgb")[0]
    one = stream.num_frames * stream.width_px * stream.height_px * 3
    store = DecodedVideos(2 * one)
    for epoch in range(2):
        for index in range(NUM_VIDEOS):
            clips_of(toy_folder, decoded=store)[SampleKey(index, epoch)]
    assert 0 < store.num_bytes <= store.max_bytes
    again = len(decoded_frames)
    clips_of(toy_folder, decoded=store)[SampleKey(NUM_VIDEOS - 1, 2)]  # its streams came last and had no room
    assert 4 in decoded_frames[again:] and 1 not in decoded_frames[again:]


def test_kept_frames__cannot_be_changed(toy_folder):
    manifest = Manifest.load(toy_folder)
    frames = DecodedVideos(10**9).read_pictures(manifest.root, manifest.videos[0].streams["rgb"], [2, 0, 2])
    with pytest.raises(ValueError, match="read-only"):
        frames[0][0, 0, 0] = 1


def test_segments__that_start_together_are_told_apart(toy_folder):
    manifest, store = Manifest.load(toy_folder), DecodedVideos(10**9)
    stream = manifest.videos[0].streams["rgb"]
    for num_frames in (3, 6):
        part = replace(stream, pts=stream.pts[:num_frames], is_segment=True)
        assert len(store.read_pictures(manifest.root, part, [0, num_frames - 1])) == 2


def test_damaged_video__gives_the_frames_that_can_be_decoded(toy_folder, monkeypatch):
    """It is not kept: a clip of its start is read as without the store, and one of its lost end fails alike."""
    read = decoded.read_pictures

    def read_start(root, stream, frames, **options):
        if max(frames) > 4:
            raise UnreadableVideoError("the end is lost")
        return read(root, stream, frames, **options)

    monkeypatch.setattr(decoded, "read_pictures", read_start)
    manifest = Manifest.load(toy_folder)
    stream, store = manifest.videos[0].streams["rgb"], DecodedVideos(10**9)
    for _ in range(2):
        frames = store.read_pictures(manifest.root, stream, [0, 4])
        for found, expected in zip(frames, read(manifest.root, stream, [0, 4]), strict=True):
            np.testing.assert_array_equal(found, expected)
        with pytest.raises(UnreadableVideoError, match="the end is lost"):
            store.read_pictures(manifest.root, stream, [0, 5])
    assert store.num_bytes == 0


def test_files_of_kept_videos__are_not_fetched_again(toy_folder, monkeypatch):
    wanted = []
    monkeypatch.setattr(dataset, "find_store", lambda root: object())
    monkeypatch.setattr(dataset, "read_ahead", lambda streams: wanted.append([stream.path for _, stream in streams]))
    clips = clips_of(toy_folder, decoded=DecodedVideos(10**9))
    for epoch in range(2):
        clips.read_batch([SampleKey(0, epoch), SampleKey(1, epoch)])
    assert [len(paths) for paths in wanted] == [6, 0]


def test_workers__share_the_size():
    store = DecodedVideos(1000)
    store.share_among(3)
    assert store.max_bytes == 333


def test_option__makes_the_store_and_is_no_part_of_the_run(toy_folder):
    config, plain = (from_dict({"machine": {"keep_decoded_gb": gb}}, source="test") for gb in (0.5, 0.0))
    view = create_encoder("rgb_r3d10").view
    options = {"student_view": view, "teacher_views": [], "uses_labels": True, "accelerator": Accelerator()}
    manifest = Manifest.load(toy_folder)
    assert select_training_clips(config, [manifest], **options).decoded.max_bytes == 500_000_000
    assert select_training_clips(plain, [manifest], **options).decoded is None
    assert identity(config) == identity(plain)
