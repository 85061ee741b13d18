"""PairedClips: all views show one moment and one crop, with any number of workers."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from crossdistill.data.dataset import DRAWN_IN_A_ROW, PairedClips, collate, entries_of, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey, TrainingBatches
from crossdistill.data.transforms import Augmentation, normalise
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.evaluate import evaluate_encoder
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.recipes.config import from_dict
from crossdistill.recipes.data import select_training_clips
from crossdistill.recipes.identity import identity


def view_of(name, num_frames=4, size_px=32):
    return create_encoder(name, num_frames=num_frames, stride=1, size_px=size_px).view


def paired(toy_folder, student="flow_r3d10", teacher="rgb_r3d10", **options):
    manifest = Manifest.load(toy_folder)
    options = {"augmentation": Augmentation(), "seed": 3, **options}
    return PairedClips(
        entries_of(manifest, range(len(manifest.videos))),
        student_view=view_of(student),
        teacher_views=[] if teacher is None else [view_of(teacher)],
        **options,
    )


def all_batches(dataset, num_workers):
    batches = TrainingBatches(num_samples=len(dataset), batch_size=8, num_epochs=1, seed=5)
    return list(make_loader(dataset, batches, num_workers=num_workers))


def test_batches__are_the_same_with_any_number_of_workers(toy_folder):
    runs = [all_batches(paired(toy_folder), num_workers) for num_workers in (0, 1, 2)]
    assert len(runs[0]) == 9
    for batches in zip(*runs, strict=True):
        for other in batches[1:]:
            assert torch.equal(batches[0].sample_ids, other.sample_ids)
            assert torch.equal(batches[0].student.values, other.student.values)
            assert torch.equal(batches[0].teachers[0].values, other.teachers[0].values)


def test_batches__shapes_and_types(toy_folder):
    batch = collate([paired(toy_folder, student="depth_r3d10")[SampleKey(i, 0)] for i in range(5)], num_items=5)
    assert batch.student.values.shape == (5, 1, 4, 32, 32) and batch.student.values.dtype == torch.uint16
    assert batch.teachers[0].values.shape == (5, 3, 4, 32, 32) and batch.teachers[0].values.dtype == torch.uint8
    assert batch.sample_ids.tolist() == list(range(5)) and len(batch) == 5
    assert "uint16[5, 1, 4, 32, 32]" in repr(batch.student)


def test_samples__depend_on_seed_and_epoch(toy_folder):
    dataset, other = paired(toy_folder), paired(toy_folder, seed=4)
    first = dataset[SampleKey(0, 0)].views[0].values
    assert torch.equal(first, paired(toy_folder)[SampleKey(0, 0)].views[0].values)
    assert not torch.equal(first, dataset[SampleKey(0, 1)].views[0].values)
    assert not torch.equal(first, other[SampleKey(0, 0)].views[0].values)


def test_views_of_same_encoder__are_equal(toy_folder):
    """With the same encoder on both sides, moment, crop and mirroring agree, so the tensors are equal."""
    dataset = paired(toy_folder, student="rgb_r3d10", teacher="rgb_r3d10")
    for i in range(10):
        student, teacher = dataset[SampleKey(i, 1)].views
        assert torch.equal(student.values, teacher.values)


def test_flow_and_colour__show_the_same_motion(toy_folder):
    """RGB warped along its paired flow predicts the next frame better than unwarped RGB."""
    dataset = paired(toy_folder, augmentation=Augmentation(area_min=0.5))
    flow_view, rgb_view = view_of("flow_r3d10"), view_of("rgb_r3d10")
    still = 0.0
    moved = {1: 0.0, -1: 0.0}  # along the flow, and against it
    for i in range(len(dataset)):
        batch = collate([dataset[SampleKey(i, 0)]], num_items=1)
        flow = normalise(batch.student, flow_view)[0] * 2.0  # back to pixels: the deviation is 2
        rgb = normalise(batch.teachers[0], rgb_view)[0]
        now, following = rgb[:, 1], rgb[:, 2]
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        for sign in moved:
            places = [(x + sign * flow[0, 1]) / 15.5 - 1, (y + sign * flow[1, 1]) / 15.5 - 1]
            grid = torch.stack(places, dim=-1)[None]
            warped = torch.nn.functional.grid_sample(following[None], grid, align_corners=True, padding_mode="border")
            moved[sign] += (warped[0] - now).abs().mean().item()
        still += (following - now).abs().mean().item()
    assert moved[1] < 0.95 * still < 0.95 * moved[-1]


def test_centre_views__do_not_depend_on_the_epoch(toy_folder):
    dataset = paired(toy_folder, augmentation=None)
    one, other = (dataset[SampleKey(7, epoch)].views for epoch in (0, 9))
    assert all(torch.equal(a.values, b.values) for a, b in zip(one, other, strict=True))


@pytest.fixture
def damaged_folder(toy_folder, tmp_path):
    """A dataset in which two RGB files of split 1 are damaged: one is truncated and one is missing."""
    folder = tmp_path / "damaged"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    first, second = (manifest.videos[i] for i in manifest.select(split="1", part="train")[:2])
    path = folder / first.streams["rgb"].path
    path.write_bytes(path.read_bytes()[:200])
    (folder / second.streams["rgb"].path).unlink()
    return folder, {f"{folder}/{first.name}", f"{folder}/{second.name}"}


def test_unreadable__training_replaces_and_reports(damaged_folder):
    folder, broken = damaged_folder
    dataset = paired(folder, replace_unreadable=True)
    batches = all_batches(dataset, num_workers=0)
    assert all(len(batch) == 8 for batch in batches)
    assert {name for batch in batches for name, _ in batch.unreadable} == broken


def test_batch__has_what_each_sample_has_alone(damaged_folder):
    folder, broken = damaged_folder
    dataset = paired(folder, replace_unreadable=True)
    keys = [SampleKey(i % len(dataset), epoch=i % 3) for i in range(2 * DRAWN_IN_A_ROW + 5)]
    batch, alone = dataset.read_batch(keys), collate([dataset[key] for key in keys], num_items=len(keys))
    assert {name for name, _ in batch.unreadable} == broken and batch.unreadable == alone.unreadable
    assert len(batch) == len(keys) and torch.equal(batch.sample_keys, alone.sample_keys)
    assert torch.equal(batch.student.values, alone.student.values)
    assert torch.equal(batch.student.channel_scale, alone.student.channel_scale)
    assert torch.equal(batch.teachers[0].values, alone.teachers[0].values)


def test_unreadable__evaluation_skips_and_reports(damaged_folder):
    folder, broken = damaged_folder
    dataset = paired(folder, student="rgb_r3d10", teacher=None, augmentation=None)
    keys = [[SampleKey(i, 0) for i in range(len(dataset))]]
    (batch,) = make_loader(dataset, keys, num_workers=0)
    assert len(batch) == len(dataset) - 2 and {name for name, _ in batch.unreadable} == broken
    assert {dataset.entries[i].key for i in batch.sample_ids}.isdisjoint(broken)
    only_broken = [i for i, entry in enumerate(dataset.entries) if entry.key in broken]
    (empty,) = make_loader(dataset, [[SampleKey(i, 0) for i in only_broken]], num_workers=0)
    assert len(empty) == 0 and len(empty.unreadable) == 2


def test_dataset__without_entries_is_refused():
    with pytest.raises(UserError, match="no clips"):
        PairedClips([], student_view=view_of("rgb_r3d10"))


# Clips that are longer than their video, which has 8 frames of RGB and 7 of flow.


def long_views(toy_folder, **options):
    manifest = Manifest.load(toy_folder)
    return PairedClips(
        entries_of(manifest, range(3)),
        student_view=view_of("flow_r3d10", num_frames=10, size_px=16),
        teacher_views=[view_of("rgb_r3d10", num_frames=10, size_px=16)],
        **options,
    )


def test_short_clips__repeat_is_default_and_repeats_end_frames(toy_folder):
    flow = long_views(toy_folder)[SampleKey(0, 0)].views[0].values  # 7 frames in 10 places
    assert torch.equal(flow[:, 0], flow[:, 1]) and torch.equal(flow[:, -2], flow[:, -1])
    assert not torch.equal(flow[:, 4], flow[:, 5])


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_short_clips__loop_restarts_both_views_at_the_same_moment(toy_folder, augmentation):
    dataset = long_views(toy_folder, short_clips="loop", augmentation=augmentation)
    for i in range(3):
        student, teacher = dataset[SampleKey(i, 0)].views
        for values in (student.values, teacher.values):
            assert torch.equal(values[:, 7:], values[:, :3])
            assert not torch.equal(values[:, 6], values[:, 0])


def test_short_clips__error_is_raised_before_reading(toy_folder):
    with pytest.raises(UserError, match=r"3 of 3 videos are shorter.*has 7 frames \(0\.\d+ s\) where 10 flow frames"):
        long_views(toy_folder, short_clips="error")
    assert len(paired(toy_folder, short_clips="error")) == len(Manifest.load(toy_folder).videos)


def test_short_clips__evaluation_follows_policy(toy_folder):
    encoder = create_encoder("rgb_r3d10", num_frames=12, stride=1, size_px=16)
    options = {
        "split": "1",
        "execution": Execution.choose(encoder, device=torch.device("cpu"), precision="fp32", layout="no"),
        "accelerator": Accelerator(mixed_precision="no"),
        "protocols": ("knn",),
        "ks": (1,),
    }
    error, loop = (ReadSettings(max_clips=12, num_workers=0, short_clips=rule) for rule in ("error", "loop"))
    manifest = Manifest.load(toy_folder)
    with pytest.raises(UserError, match=r"24 of 24 videos are shorter.*has 8 frames .* need 12 "):
        evaluate_encoder(encoder, manifest, reading=error, **options)
    evaluation = evaluate_encoder(encoder, manifest, reading=loop, **options)
    assert evaluation.num_test == 12 and not evaluation.unreadable


def test_short_clips__training_checks_videos_of_its_evaluation(toy_folder):
    """A test video that is too short stops the run before training, unless the run does not evaluate."""
    manifest = Manifest.load(toy_folder)
    last = manifest.select(split="1", part="test")[-1]
    video = manifest.videos[last]
    cut = {name: replace(stream, pts=stream.pts[:3]) for name, stream in video.streams.items()}
    videos = list(manifest.videos)
    videos[last] = replace(video, streams=cut)
    config = from_dict({"data": {"short_clips": "error"}}, source="test")
    views = {"student_view": view_of("flow_r3d10"), "teacher_views": [view_of("rgb_r3d10")]}
    options = {**views, "uses_labels": False, "accelerator": Accelerator(mixed_precision="no")}
    assert select_training_clips(config, [manifest], **options).short_clips == "error"
    with pytest.raises(UserError, match=f"1 of {len(videos)} videos .*{video.name}, has 3 frames"):
        select_training_clips(config, [replace(manifest, videos=videos)], **options)
    silent = replace(config, machine=replace(config.machine, evaluate=False, knn_clips=0))
    assert len(select_training_clips(silent, [replace(manifest, videos=videos)], **options)) > 0
    repeating = from_dict({}, source="test")
    assert identity(config)["data"]["short_clips"] != identity(repeating)["data"]["short_clips"]


def test_mirroring__applies_to_both_views_or_none(toy_folder):
    """In both views, the mirrored sample is the mirror image of the other one."""
    plain = paired(
        toy_folder, augmentation=Augmentation(area_min=1.0, ratio_min=1.0, ratio_max=1.0, mirror_probability=0)
    )
    mirrored = paired(
        toy_folder, augmentation=Augmentation(area_min=1.0, ratio_min=1.0, ratio_max=1.0, mirror_probability=1)
    )
    for i in range(6):
        flow, rgb = (view.values for view in plain[SampleKey(i, 0)].views)
        flow_m, rgb_m = (view.values for view in mirrored[SampleKey(i, 0)].views)
        assert torch.equal(rgb_m, rgb.flip(-1))
        assert np.array_equal(flow_m[0].numpy(), 256 - flow[0].flip(-1).numpy().astype(int))
        assert torch.equal(flow_m[1], flow[1].flip(-1))
