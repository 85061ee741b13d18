"""Crops, resizing and mirroring of all streams, and normalisation."""

import numpy as np
import pytest
import torch

from crossdistill.data.streams import quantise_flow
from crossdistill.data.transforms import Augmentation, Crop, centre_crop, cut_view, normalise
from crossdistill.modalities import DEPTH, FLOW, MODALITIES, RGB
from crossdistill.types import View, ViewSpec

WHOLE = Crop(0, 0, 1, 1)
MIRRORED = Crop(0, 0, 1, 1, is_mirrored=True)


def spec(modality, size_px=8, **changes):
    kind = MODALITIES[modality]
    statistics = {"mean": (0.0,) * kind.channels, "std": (1.0,) * kind.channels, **changes}
    return ViewSpec(modality, 2, 1, size_px, **statistics)


def to_floats(frames_thwc, crop, modality, size_px):
    clip = cut_view(frames_thwc, crop, modality=MODALITIES[modality], size_px=size_px)
    view = View(clip.values[None], torch.from_numpy(clip.channel_scale)[None])
    return normalise(view, spec(modality, size_px))[0]


def test_mirroring__negates_x_of_flow_and_nothing_else():
    generator = np.random.default_rng(0)
    flow = quantise_flow(generator.uniform(-20, 20, (2, 8, 8, 2)).astype(np.float32))
    plain, mirrored = (to_floats(flow, crop, "flow", 8) for crop in (WHOLE, MIRRORED))
    torch.testing.assert_close(mirrored[0], -plain[0].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[1], plain[1].flip(-1), atol=0, rtol=0)
    colour = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    plain, mirrored = (to_floats(colour, crop, "rgb", 8) for crop in (WHOLE, MIRRORED))
    torch.testing.assert_close(mirrored, plain.flip(-1), atol=0, rtol=0)


def test_resizing__scales_each_component_of_flow_along_its_axis():
    flow = np.empty((2, 16, 32, 2), dtype=np.float32)
    flow[..., 0], flow[..., 1] = 4.0, -2.0
    floats = to_floats(quantise_flow(flow), WHOLE, "flow", 8)
    torch.testing.assert_close(floats[0], torch.full((2, 8, 8), 4.0 * 8 / 32), atol=0.02, rtol=0)
    torch.testing.assert_close(floats[1], torch.full((2, 8, 8), -2.0 * 8 / 16), atol=0.04, rtol=0)


def test_flow__equals_displacement_after_crop_and_mirror():
    """A dot moves in the view by the view's flow."""
    size, start, move = 64, np.asarray([20, 30]), np.asarray([6, -4])
    frames = np.zeros((2, size, size, 3), dtype=np.uint8)
    frames[0, start[1], start[0]] = 255
    frames[1, start[1] + move[1], start[0] + move[0]] = 255
    flow = quantise_flow(np.broadcast_to(move.astype(np.float32), (2, size, size, 2)))
    crop = Crop(0.125, 0.25, 0.5, 0.5, is_mirrored=True)
    dots = to_floats(frames, crop, "rgb", 128)[0]
    centres = [np.argwhere(dot.numpy() > 0.9 * dot.max().item()).mean(axis=0)[::-1] for dot in dots]
    said = to_floats(flow, crop, "flow", 128)[:, 0, 0, 0]
    np.testing.assert_allclose(centres[1] - centres[0], said.numpy(), atol=0.4)
    assert said[0] < 0, "the dot moves right, its mirror image moves left"


def test_crop__selects_same_part_at_different_sizes():
    small = np.tile(np.arange(40, dtype=np.uint8)[None, None, :, None], (1, 20, 1, 3)) * 5
    large = np.repeat(np.repeat(small, 4, axis=1), 4, axis=2)
    crop = Crop(0.25, 0.1, 0.4, 0.5)
    views = [cut_view(frames, crop, modality=RGB, size_px=8).values.int() for frames in (small, large)]
    assert (views[0] - views[1]).abs().max() <= 5  # one column of the small stream


def test_depth__resizing_never_mixes_with_missing_measurements():
    depth = np.zeros((1, 8, 8, 1), dtype=np.uint16)
    depth[:, :, 4:] = 2000
    values = cut_view(depth, WHOLE, modality=DEPTH, size_px=5).values
    assert set(np.unique(values).tolist()) == {0, 2000}
    assert values.dtype == torch.uint16


def test_depth__becomes_disparity_with_one_scale_per_clip():
    depth = np.zeros((2, 8, 8, 1), dtype=np.uint16)
    depth[0, :, :4], depth[1, :, :4] = 1000, 4000
    floats = to_floats(depth, WHOLE, "depth", 8)
    assert floats[0, 0, 0, 0] == pytest.approx(1.0) and floats[0, 1, 0, 0] == pytest.approx(0.25)
    assert floats[0, :, :, 4:].abs().max() == 0


def test_normalise__uses_mean_and_deviation_of_the_view():
    values = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    view = View(values, torch.ones(1, 3))
    floats = normalise(view, spec("rgb", mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.5)))
    torch.testing.assert_close(floats.flatten(), torch.tensor([1.0, 1.0, 1.4]))


def test_normalise__clips_of_a_batch_are_independent():
    depth = torch.tensor([1000, 500], dtype=torch.uint16).view(2, 1, 1, 1, 1)
    floats = normalise(View(depth, torch.ones(2, 1)), spec("depth"))
    torch.testing.assert_close(floats.flatten(), torch.ones(2))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (320, 240), (240, 320)])
def test_augmentation__crops_have_requested_area_and_ratio(width, height):
    generator = np.random.default_rng(0)
    crops = [Augmentation(area_min=0.2).draw(generator, width_px=width, height_px=height) for _ in range(500)]
    areas = np.asarray([crop.width * crop.height for crop in crops])
    ratios = np.asarray([crop.width * width / (crop.height * height) for crop in crops])
    assert areas.min() >= 0.2 - 1e-6 and areas.max() <= 1 and areas.std() > 0.15
    assert ratios.min() >= 0.74 and ratios.max() <= 1.34 and ratios.std() > 0.1
    assert all(
        c.left >= 0 and c.top >= 0 and c.left + c.width <= 1 + 1e-9 and c.top + c.height <= 1 + 1e-9 for c in crops
    )
    assert 0.4 < np.mean([crop.is_mirrored for crop in crops]) < 0.6


def test_centre_crop__is_the_largest_centred_square():
    crop = centre_crop(width_px=320, height_px=240)
    assert crop == Crop(0.125, 0, 0.75, 1)


def test_flow_modality__inverts_quantisation():
    flow = np.linspace(-20, 20, 101, dtype=np.float32)
    coded = quantise_flow(flow)
    assert np.abs(coded * FLOW.value_scale + FLOW.value_offset - flow).max() <= 10 / 127 + 1e-6
