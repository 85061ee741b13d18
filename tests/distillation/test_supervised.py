"""Training with labels against timm: mixed labels, smoothing, CutMix boxes, and the average of the weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossdistill.data.mix import cut_box, draw_labelled_mix
from crossdistill.distillation.supervised import Regularization, SupervisedTask
from crossdistill.distillation.weight_average import WeightAverage, decay_at
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.types import Mix, PairedBatch

timm_mixup = pytest.importorskip("timm.data.mixup")
NUM_CLASSES = 5


def make_task(seed=0, **options):
    torch.manual_seed(seed)
    encoder = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    execution = Execution.choose(encoder, device=torch.device("cpu"), precision="fp32", layout="no")
    return SupervisedTask(
        encoder=encoder, execution=execution, num_classes=NUM_CLASSES, regularization=Regularization(**options)
    )


def make_batch(num=6):
    generator = torch.Generator().manual_seed(3)
    clips = torch.randn(num, 3, 4, 16, 16, generator=generator)
    return PairedBatch(clips, (), torch.arange(num), torch.arange(num) % NUM_CLASSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_loss__equals_timms_mixup_and_soft_target_cross_entropy(smoothing, monkeypatch):
    """timm mixes with the reversed batch; its share is drawn by numpy, here fixed."""
    from timm.loss import SoftTargetCrossEntropy

    share, labels = 0.3, torch.tensor([0, 4, 2, 2])
    clips, logits = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randn(4, NUM_CLASSES, dtype=torch.float64)
    monkeypatch.setattr(np.random, "beta", lambda a, b: share)
    theirs = timm_mixup.Mixup(mixup_alpha=0.8, label_smoothing=smoothing, num_classes=NUM_CLASSES)
    their_clips, their_targets = theirs(clips.clone(), labels)
    mix = Mix(torch.tensor(share, dtype=torch.float64), torch.arange(3, -1, -1))
    torch.testing.assert_close(mix(clips), their_clips, rtol=0, atol=1e-15)
    targets = mix.interpolate(F.one_hot(labels, NUM_CLASSES).double())
    ours = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = SoftTargetCrossEntropy()(logits, their_targets.double())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)  # timm's targets are float32


def test_smoothed_loss__equals_timms():
    from timm.loss import LabelSmoothingCrossEntropy

    task, batch = make_task(label_smoothing=0.1), make_batch()
    logits = task.trainable(batch.student)["classifier"]
    torch.testing.assert_close(task(batch).loss, LabelSmoothingCrossEntropy(0.1)(logits, batch.labels))


def test_cutmix__box_share_and_clips_equal_timms(monkeypatch):
    share, centre = 0.6, (2, 11)
    clips, labels = torch.randn(4, 3, 12, 16), torch.arange(4)
    drawn = iter(centre)
    monkeypatch.setattr(np.random, "beta", lambda a, b: share)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: next(drawn))
    theirs = timm_mixup.Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=4)
    their_clips, their_targets = theirs(clips.clone(), labels)
    box = cut_box(share, height=12, width=16, centre_y=centre[0], centre_x=centre[1])
    left = 1 - (box.bottom - box.top) * (box.right - box.left) / (12 * 16)
    mix = Mix(torch.tensor(left, dtype=torch.float64), torch.arange(3, -1, -1), box)
    assert torch.equal(mix(clips), their_clips)
    torch.testing.assert_close(mix.interpolate(F.one_hot(labels, 4).float()), their_targets)


def test_cutmix__box_is_the_same_in_every_frame():
    clips = torch.stack([torch.full((3, 5, 8, 8), float(i)) for i in range(4)])
    torch.manual_seed(0)
    mix = draw_labelled_mix(4, mixup=0.0, cutmix=1.0, height=8, width=8)
    mixed = mix(clips)
    is_other = mixed != clips
    assert (is_other == is_other[:, :1, :1]).all()  # all channels and frames alike
    for i, partner in enumerate(mix.order.tolist()):
        if partner != i:
            assert is_other[i, 0, 0].float().mean() == pytest.approx(1 - float(mix.share))
            assert (mixed[i][is_other[i]] == partner).all()


def test_draws__follow_beta_and_take_turns():
    torch.manual_seed(0)
    mixes = [draw_labelled_mix(2, mixup=0.4, cutmix=1.0, height=32, width=32) for _ in range(2000)]
    plain = torch.stack([mix.share for mix in mixes if mix.box is None])
    assert len(plain) == pytest.approx(1000, abs=80)
    assert plain.mean() == pytest.approx(0.5, abs=0.04) and plain.var() == pytest.approx(1 / (4 * 1.8), abs=0.02)
    assert all(
        mix.box is None for mix in (draw_labelled_mix(2, mixup=1, cutmix=0, height=4, width=4) for _ in range(9))
    )


def test_task__mixes_clips_and_labels_alike_in_training_alone():
    task, plain, batch = make_task(mixup=0.8, cutmix=1.0), make_task(), make_batch()
    for seed in range(4):
        torch.manual_seed(seed)
        output = task.train()(batch)
        torch.manual_seed(seed)
        mix = draw_labelled_mix(6, mixup=0.8, cutmix=1.0, height=16, width=16)
        logits = plain.train().trainable(mix(batch.student))["classifier"]
        targets = mix.interpolate(F.one_hot(batch.labels, NUM_CLASSES).float())
        torch.testing.assert_close(output.loss, -(targets * logits.log_softmax(1)).sum(1).mean())
        torch.testing.assert_close(output.terms["accuracy"], targets[range(6), logits.argmax(1)].mean())
    expected = F.cross_entropy(plain.eval().trainable(batch.student)["classifier"], batch.labels)
    task.trainable.load_state_dict(plain.trainable.state_dict())
    torch.testing.assert_close(task.eval()(batch).loss, expected)


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_weight_average__equals_timms_model_ema(decay):
    from timm.utils import ModelEmaV3

    task, batch = make_task(), make_batch()
    optimizer = torch.optim.SGD(task.trainable.parameters(), lr=0.1)
    ours, theirs = WeightAverage(task.trainable, decay=decay), ModelEmaV3(task.trainable, decay=decay, use_warmup=True)
    for step in range(12):
        assert decay_at(step, decay) == pytest.approx(theirs.get_decay(step), abs=1e-15)
        optimizer.zero_grad()
        task.train()(batch).loss.backward()
        optimizer.step()
        ours.update(task.trainable)
        theirs.update(task.trainable, step=step)
    expected, found = theirs.module.state_dict(), ours.module.state_dict()
    assert list(expected) == list(found) and any("running_var" in name for name in found)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert not torch.equal(found["encoder.body.features.0.weight"], task.trainable.encoder.body.features[0].weight)


def step(task, optimizer, batch):
    optimizer.zero_grad()
    task.train()(batch).loss.backward()
    optimizer.step()
    task.after_step()


def test_task__saves_the_average_and_resumes_it():
    batch = make_batch()
    task = make_task(ema_decay=0.9)
    optimizer = torch.optim.SGD(task.trainable.parameters(), lr=0.1)
    for _ in range(5):
        step(task, optimizer, batch)
    again = make_task(seed=1, ema_decay=0.9)
    again.trainable.load_state_dict(task.trainable.state_dict())
    again.load_result_state(copy.deepcopy(task.result_state()))
    second = torch.optim.SGD(again.trainable.parameters(), lr=0.1)
    for _ in range(3):
        step(task, optimizer, batch)
        step(again, second, batch)
    for kind in (task, again):
        assert kind.evaluated is not kind.trainable.encoder
        kind.finish()
    first, other = task.trainable.state_dict(), again.trainable.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.items())
    assert torch.equal(first["encoder.body.features.0.weight"], task.evaluated.body.features[0].weight)
    task.after_step(has_moved=False)
    assert make_task().evaluated is not None and make_task().result_state() == {}
