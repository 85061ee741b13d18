"""Families of perturbations against naive twins, their determinism, and where they are refused."""

import hashlib
import io
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from crossdistill.data.dataset import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey, clip_frames
from crossdistill.errors import UserError
from crossdistill.evaluation.perturbations import FAMILIES, SEVERITIES, Perturbation, choose_families
from crossdistill.evaluation.perturbations.blur import disk, path
from crossdistill.evaluation.settings import ProtocolSettings
from crossdistill.evaluation.views import MultiViewClips, TestViews
from crossdistill.types import ViewSpec

VIEW = ViewSpec("rgb", num_frames=4, stride=2, size_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PICTURE_FAMILIES = [name for name, family in FAMILIES.items() if family.pictures is not None]


def clip(*, height=48, width=64, num_frames=5, seed=0):
    """A smooth moving picture in [20, 235]: no noise of its own."""
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([np.sin(x / 9 + t / 3), np.cos(y / 7 - t / 4), np.sin((x + y) / 11 + t)], axis=-1)
        for t in range(num_frames)
    ]
    return np.rint(127.5 + 107 * np.stack(frames)).astype(np.uint8)


def changed(name, severity, frames=None, *, video="v", number=0):
    frames = clip() if frames is None else frames
    return np.stack(Perturbation(name, severity, "toy").of_video(video).pictures(number, list(frames)))


def steps(name, severity, num_frames, *, video="v"):
    return Perturbation(name, severity, "toy").of_video(video).steps(0, num_frames)


def generator_of(name, severity):
    """The generator that the module's text promises: dataset, video, perturbation and number of the clip."""
    text = f"toy\nv\n{name}-{severity}\n0"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


@pytest.mark.parametrize("name", PICTURE_FAMILIES)
def test_pictures__keep_their_form_change_more_with_severity_and_repeat_to_the_bit(name):
    for height, width in ((48, 64), (45, 63)):  # codecs need even sides
        frames = clip(height=height, width=width)
        found = [changed(name, severity, frames) for severity in SEVERITIES]
        assert all(each.shape == frames.shape and each.dtype == np.uint8 for each in found)
        distances = [np.abs(each.astype(float) - frames).mean() for each in found]
        assert 0 < distances[0] < distances[2] < distances[4], distances
    again = changed(name, 3, frames)
    assert np.array_equal(again, found[2]) and np.array_equal(frames, clip(height=45, width=63)), "in place"
    is_drawn = not np.array_equal(changed(name, 3, frames, video="other"), found[2])
    fixed = {"defocus-blur", "zoom-blur", "jpeg", "h264", "mpeg2", "brightness", "contrast", "static-rotation"}
    assert is_drawn == (name not in fixed)
    assert np.array_equal(changed(name, 3, frames, number=1), found[2]) == (name in fixed)


def test_noise__equals_naive_twins():
    frames, strength = clip(), 0.12
    normal = generator_of("gaussian-noise", 2).standard_normal(frames.shape, dtype=np.float32)
    naive = np.clip(np.round(frames / 255 * 255 + normal.astype(float) * strength * 255), 0, 255)
    assert np.abs(changed("gaussian-noise", 2) - naive).max() <= 1  # float32 there
    assert (changed("gaussian-noise", 2) - naive).mean() == pytest.approx(0, abs=1e-3)
    normal = generator_of("speckle-noise", 2).standard_normal(frames.shape, dtype=np.float32)
    naive = np.clip(np.round(frames * (1 + 0.2 * normal.astype(float))), 0, 255)
    assert np.abs(changed("speckle-noise", 2) - naive).max() <= 1
    photons = generator_of("shot-noise", 2).poisson(frames / 255 * 100)
    assert np.abs(changed("shot-noise", 2) - np.clip(np.round(photons / 100 * 255), 0, 255)).max() <= 1
    draw = generator_of("impulse-noise", 5).random(frames.shape, dtype=np.float32)
    found = changed("impulse-noise", 5)
    for index in np.ndindex(2, 5, 7, 3):
        expected = 0 if draw[index] < 0.135 else 255 if draw[index] >= 0.865 else frames[index]
        assert found[index] == expected
    assert (found != frames).mean() == pytest.approx(0.27, abs=0.02)


def test_shot_noise__has_the_variance_of_a_poisson_distribution():
    grey = np.full((4, 64, 64, 3), 102, np.uint8)
    found = changed("shot-noise", 5, grey).astype(float) / 255  # 15 photons for white: 6 here
    assert found.mean() == pytest.approx(0.4, abs=0.005) and found.var() == pytest.approx(6 / 15**2, rel=0.05)


def test_blur__kernels_are_naive_disks_and_lines():
    weights = disk(3.4)
    naive = np.zeros_like(weights)
    for i, j in np.ndindex(naive.shape):
        distance = ((i - 4) ** 2 + (j - 4) ** 2) ** 0.5
        naive[i, j] = min(1.0, max(0.0, 3.4 + 0.5 - distance))
    np.testing.assert_allclose(weights, naive / naive.sum(), atol=1e-7)
    along = path(3.0, 0.0)
    middle = len(along) // 2
    gaussian = np.exp(-0.5 * (np.arange(7) / 3) ** 2)
    np.testing.assert_allclose(along[middle, middle : middle + 7], gaussian / gaussian.sum(), atol=1e-7)
    assert along.sum() == pytest.approx(1, abs=1e-6) and (along > 0).sum() == 7
    frames = clip(height=224, width=224, num_frames=1)
    found, kernel = changed("defocus-blur", 1, frames), disk(3.0)
    for y, x in ((50, 60), (100, 7), (200, 200)):
        around = frames[0, y - 3 : y + 4, x - 3 : x + 4].astype(float)
        assert np.abs(found[0, y, x] - (around * kernel[..., None]).sum((0, 1))).max() <= 0.51
    blurred = changed("zoom-blur", 5, frames)
    assert np.abs(blurred[0, 112, 112].astype(int) - frames[0, 112, 112]).max() <= 12  # the centre stays


def test_jpeg__is_that_of_pillow():
    frames, quality = clip(), FAMILIES["jpeg"].strengths[2]
    for frame, found in zip(frames, changed("jpeg", 3), strict=True):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=int(quality))
        theirs = np.asarray(Image.open(file)).astype(int)
        assert np.abs(found - theirs).mean() < 1  # colours are rounded differently


def test_h264__is_a_real_stream_of_the_constant_rate_factor(monkeypatch):
    files = []

    class Kept(io.BytesIO):
        def __init__(self):
            super().__init__()
            files.append(self)

    from crossdistill.evaluation.perturbations import compression

    monkeypatch.setattr(compression.io, "BytesIO", Kept)
    for severity in SEVERITIES:
        changed("h264", severity)
        changed("mpeg2", severity)
    sizes = [len(file.getvalue()) for file in files]
    assert sizes[::2] == sorted(sizes[::2], reverse=True) and sizes[1::2] == sorted(sizes[1::2], reverse=True)
    assert b"crf=27.0" in files[0].getvalue() and b"crf=51.0" in files[8].getvalue()  # x264 writes its options
    files[1].seek(0)
    with av.open(files[1]) as container:
        assert container.streams.video[0].codec_context.name == "mpeg2video"


def test_light__equals_naive_twins():
    frames = clip()
    frames[0, 0, 0] = 0
    found = changed("brightness", 2, frames)
    hsv = cv2.cvtColor((frames[0] / 255).astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.2, 1)
    theirs = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    assert np.abs(found[0] - theirs).max() <= 0.6
    found, mean = changed("contrast", 1, frames), frames.reshape(-1, 3).mean(0)
    assert np.abs(found - (mean + 0.4 * (frames - mean))).max() <= 0.51


def test_camera__turns_shifts_and_covers():
    frames = clip(height=64, width=64)
    turned = changed("static-rotation", 5, frames)
    assert np.array_equal(turned, np.rot90(frames, axes=(1, 2)))
    angles = generator_of("rotation", 1).uniform(-7, 7, 5)
    own = changed("rotation", 1, frames)
    for t, angle in enumerate(angles):
        theirs = np.asarray(Image.fromarray(frames[t]).rotate(angle, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(own[t, 16:48, 16:48] - theirs[16:48, 16:48]).max() <= 8
    shifts = np.rint(generator_of("translation", 3).uniform(-3 / 32, 3 / 32, (5, 2)) * 64).astype(int)
    moved = changed("translation", 3, frames)
    for t, (x, y) in enumerate(shifts.tolist()):
        assert np.array_equal(moved[t, 20, 30], frames[t, 20 - y, 30 - x])
        assert max(abs(x), abs(y)) <= 6
    covered = changed("occlusion", 3, frames)
    grey = (covered == 127).all((0, 3))
    assert grey.mean() == pytest.approx(0.2, abs=0.02)
    rows, columns = np.where(grey.any(1))[0], np.where(grey.any(0))[0]
    assert grey.sum() == len(rows) * len(columns)  # one box
    assert np.array_equal(covered[:, ~grey], frames[:, ~grey])


def test_time__moments_are_what_their_names_say():
    assert steps("reversal", 1, 6).tolist() == [5, 4, 3, 2, 1, 0]
    assert steps("sampling-rate", 1, 4).tolist() == [-1.5, 0.5, 2.5, 4.5]
    assert steps("reversal", 2, 4).tolist() == [4.5, 2.5, 0.5, -1.5]
    kept = steps("freeze", 1, 20)
    assert len(set(kept)) == 8 and (np.diff(kept) >= 0).all() and set(kept) <= set(range(20))
    assert len(set(steps("freeze", 5, 20))) == 1
    for t, moment in enumerate(kept):  # the last kept frame so far
        assert moment == max([k for k in set(kept) if k <= t], default=min(kept))
    dropped = steps("frame-drop", 4, 20)
    assert (np.diff(dropped) >= 1).all() and dropped[-1] - dropped[0] <= 39 and np.diff(dropped).max() > 1
    shaken = steps("jitter", 2, 20) - np.arange(20)
    assert 0.5 < np.abs(shaken).max() <= 1
    for severity, length in zip(SEVERITIES, (2, 4, 8, 12, 16), strict=True):
        order = steps("jumble", severity, 16).astype(int)
        assert sorted(order) == list(range(16)) and not np.array_equal(order, range(16))
        assert all(t // length == moment // length for t, moment in enumerate(order))
    assert all(steps("jumble", 5, 2, video=f"v{i}").tolist() == [1, 0] for i in range(8))
    assert steps("jpeg", 1, 6) is None and changed("freeze", 1) is not None


def test_clip_frames__takes_the_frames_nearest_to_the_moments(toy_folder):
    stream = Manifest.load(toy_folder).videos[0].streams["rgb"]  # 8 frames
    plain = clip_frames(stream, VIEW, 0.22)
    assert clip_frames(stream, VIEW, 0.22, steps=np.array([3.0, 2, 1, 0])).tolist() == plain[::-1].tolist()
    moments = np.array([-9.0, 0.5, 1.5, 99])
    naive = [min(max(round(plain[0] + 2 * m), 0), 7) for m in moments]
    assert clip_frames(stream, VIEW, 0.22, steps=moments).tolist() == naive


def test_views__are_cut_from_perturbed_pictures(toy_folder):
    """Perturbed before the crops: a naive twin decodes, perturbs and crops; each clip of a video has its own draws."""
    manifest = Manifest.load(toy_folder)
    entries, keys = entries_of(manifest, range(3)), [SampleKey(1, 0)]
    view = replace(VIEW, num_frames=3, stride=1)

    def read(name=None, severity=1, views=TestViews()):  # noqa: B008 - frozen
        made = None if name is None else Perturbation(name, severity, manifest.dataset)
        return MultiViewClips(entries, view=view, views=views, perturbation=made).read_batch(keys).student.values

    plain = read().permute(0, 2, 3, 4, 1).numpy()[0]  # 32 px, square: neither cut nor resized
    own = Perturbation("impulse-noise", 4, manifest.dataset).of_video(entries[1].video.name)
    naive = np.stack(own.pictures(0, list(plain)))
    assert np.array_equal(read("impulse-noise", 4).permute(0, 2, 3, 4, 1).numpy()[0], naive)
    assert np.array_equal(read("reversal", 1)[0].numpy(), read()[0].flip(1).numpy())
    two = read("impulse-noise", 4, TestViews(2, 1))
    clean = read(views=TestViews(2, 1))
    masks = (two != clean)[:, :, :, :, :]
    assert not np.array_equal(masks[0].numpy(), masks[1].numpy())


def test_families__are_left_out_or_refused_where_they_make_no_sense():
    whole, reasons = choose_families(VIEW, (), wanted_by="rgb_net")
    assert whole == list(FAMILIES) and reasons == {}
    depth = ViewSpec("depth", 4, 2, 32, mean=(0.5,), std=(0.5,))
    chosen, reasons = choose_families(depth, (), wanted_by="depth_net")
    assert chosen == [name for name in FAMILIES if name not in PICTURE_FAMILIES] and set(reasons) == set(
        PICTURE_FAMILIES
    )
    picture = ViewSpec("image", 1, 1, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert choose_families(picture, (), wanted_by="image_net")[0] == PICTURE_FAMILIES
    flow = ViewSpec("flow", 4, 2, 32, mean=(0.0,) * 2, std=(2.0,) * 2)
    with pytest.raises(UserError, match="no family of perturbations makes sense for the flow clips of flow_net"):
        choose_families(flow, (), wanted_by="flow_net")
    with pytest.raises(
        UserError, match=r"--families jpeg cannot perturb the clips of depth_net: .* depth is none; rem"
    ):
        choose_families(depth, ("freeze", "jpeg"), wanted_by="depth_net")


def test_settings__of_perturbations_are_checked():
    for options, said in (
        ({"families": ("gausian-noise",)}, "gausian-noise"),
        ({"severities": (0, 3)}, "--severities 0 3: choose from 1 to 5"),
        ({"severities": ()}, "--severities is empty: choose from 1 to 5"),
        ({"families": ("jpeg", "jpeg")}, "--families jpeg jpeg: name each once"),
    ):
        with pytest.raises(UserError, match=said):
            ProtocolSettings(**options)
