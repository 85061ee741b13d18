"""RandAugment and TrivialAugment of clips: one geometry over time, draws that depend on the sample alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from crossdistill.data.clip_policy import ClipPolicy
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Augmentation, CutClip
from crossdistill.encoders import create_encoder

VIEW = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=32).view


def still_clip(num_frames=5):
    """A clip whose frames are all one picture: after one operation for all frames they still are."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return CutClip([picture.copy() for _ in range(num_frames)], np.ones(3, dtype=np.float32))


@pytest.mark.parametrize("policy", [ClipPolicy("rand", VIEW, 3, 20), ClipPolicy("trivial", VIEW)])
def test_policy__changes_all_frames_alike(policy):
    clip, num_changed = still_clip(), 0
    for seed in range(60):
        changed = policy(clip, seed=seed)
        first = changed.frames[0]
        assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and len(changed.frames) == 5
        assert all(np.array_equal(frame, first) for frame in changed.frames)
        num_changed += not np.array_equal(first, clip.frames[0])
    assert num_changed > 40


def test_policy__is_torchvisions_on_the_whole_clip_and_keeps_the_generator():
    clip = still_clip()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    found = ClipPolicy("rand", VIEW, 2, 9)(clip, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    transform = v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR, fill=[115, 115, 115])
    expected = transform(torch.from_numpy(np.stack(clip.frames)).permute(0, 3, 1, 2))
    assert torch.equal(torch.from_numpy(np.stack(found.frames)).permute(0, 3, 1, 2), expected)


def test_policy__magnitude_decides_how_much_changes():
    clip = still_clip()

    def change(magnitude):
        policy = ClipPolicy("rand", VIEW, 1, magnitude)
        changed = [policy(clip, seed=seed).frames[0].astype(int) - clip.frames[0] for seed in range(80)]
        return float(np.abs(changed).mean())

    assert change(0) < change(28)


def test_clips__are_changed_by_sample_and_epoch_in_training_alone(toy_folder):
    entries = entries_of(Manifest.load(toy_folder), range(4))

    def clips(policy, **options):
        return PairedClips(entries, student_view=VIEW, augmentation=Augmentation(), policy=policy, **options)

    policy = ClipPolicy("rand", VIEW, 3, 20)
    keys = [SampleKey(i, epoch) for epoch in range(3) for i in range(4)]
    changed, plain = clips(policy), clips(None)
    batch, again, bare = (each.read_batch(keys).student.values for each in (changed, clips(policy), plain))
    assert torch.equal(batch, again)
    assert torch.equal(batch[5], changed.read_batch([keys[5]]).student.values[0])  # whatever else is in the batch
    assert sum(not torch.equal(a, b) for a, b in zip(batch, bare, strict=True)) > 8
    middle = [each.in_the_middle().read_batch(keys).student.values for each in (changed, plain)]
    assert torch.equal(*middle)
