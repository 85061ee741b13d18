"""ClipReader: centres, frames and cuts equal those of reading each clip alone."""

import dataclasses

import numpy as np
import pytest

from crossdistill.data.clip_reader import ClipReader
from crossdistill.data.decode import read_pictures
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import video_loop
from crossdistill.data.transforms import Crop, centre_crop, cut_view
from crossdistill.encoders import create_encoder

CROPS = [centre_crop(width_px=160, height_px=120), Crop(0.1, 0.2, 0.5, 0.6, is_mirrored=True)]


def reader_of(toy_folder, *names, short_clips="repeat", **changes):
    manifest = Manifest.load(toy_folder)
    views = [dataclasses.replace(create_encoder(name).view, **changes) for name in names]
    return ClipReader(manifest.root, manifest.videos[0].streams, views, short_clips)


def test_spread_centres__reach_from_the_first_clip_that_fits_to_the_last(toy_folder):
    reader = reader_of(toy_folder, "rgb_r3d10", num_frames=4, stride=1)
    centres = reader.spread_centres(3)
    (stream,) = reader.view_streams
    times, half_seconds = stream.times_seconds, 1.5 * (stream.times_seconds[1] - stream.times_seconds[0])
    assert centres == pytest.approx(
        [times[0] + half_seconds, (times[0] + times[-1]) / 2, times[-1] - half_seconds], abs=1e-3
    )
    assert reader.spread_centres(1) == centres[1:2]


@pytest.mark.parametrize("short_clips", ["repeat", "loop"])
def test_read__equals_reading_and_cutting_each_clip_alone(toy_folder, short_clips):
    reader = reader_of(toy_folder, "rgb_r3d10", "flow_r3d10", "image_resnet18", short_clips=short_clips)
    centres = reader.spread_centres(2)
    crops = [CROPS, CROPS[:1], CROPS[1:]]  # the first and the last view share a stream
    for position, (view, found) in enumerate(zip(reader.views, reader.read(centres, crops), strict=True)):
        name = view.kind.stream
        stream = reader.streams[name]
        expected = []
        for centre in centres:
            pictures = read_pictures(reader.root, stream, reader.frames(position, centre), stream_name=name)
            expected += [cut_view(pictures, crop, modality=view.kind, size_px=view.size_px) for crop in crops[position]]
        assert len(found) == len(expected) == 2 * len(crops[position])
        for ours, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.stack(ours.frames), np.stack(alone.frames))
            np.testing.assert_array_equal(ours.channel_scale, alone.channel_scale)


def test_read__does_not_decode_a_view_without_crops(toy_folder):
    reader = reader_of(toy_folder, "rgb_r3d10", "flow_r3d10")
    absent = {**reader.streams, "flow": reader.streams["flow"].at("absent.mp4")}
    student, teacher = dataclasses.replace(reader, streams=absent).read(reader.spread_centres(1), [CROPS, []])
    assert len(student) == 2 and teacher == []


def test_loop__all_clips_of_a_short_video_have_one_centre(toy_folder):
    reader = reader_of(toy_folder, "rgb_r3d10", short_clips="loop", num_frames=1000, stride=1)
    loop = video_loop(reader.view_streams, reader.views)
    assert reader.spread_centres(3) == [loop.centre_seconds] * 3
    (stream,) = reader.view_streams
    assert reader.frames(0, loop.centre_seconds) == [i % stream.num_frames for i in range(1000)]


def test_picture_size__is_that_of_the_first_view_that_is_a_picture(toy_folder):
    reader = reader_of(toy_folder, "rgb_r3d10")
    (stream,) = reader.view_streams
    skeleton = dataclasses.replace(stream, width_px=1, height_px=20)
    joints = create_encoder("skeleton_r3d10").view
    with_joints = dataclasses.replace(
        reader, streams={**reader.streams, "skeleton": skeleton}, views=[joints, *reader.views]
    )
    assert with_joints.picture_size_px == (stream.width_px, stream.height_px)
    assert dataclasses.replace(with_joints, views=[joints]).picture_size_px == (1, 20)
