"""Function matching: student and teachers see the same mix of clips."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import crossdistill
from crossdistill.data.mix import draw_mix
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.teachers import Teacher
from crossdistill.errors import UserError
from crossdistill.types import Mix


def naive_mix(clips, share, order):
    return torch.stack([share * clips[i] + (1 - share) * clips[order[i]] for i in range(len(clips))])


def test_mix__equals_naive_version():
    torch.manual_seed(0)
    clips, mix = torch.randn(5, 3, 2, 4, 4), draw_mix(5)
    torch.testing.assert_close(mix(clips), naive_mix(clips, float(mix.share), mix.order.tolist()))
    assert sorted(mix.order.tolist()) == [0, 1, 2, 3, 4] and 0 <= mix.share <= 1


def test_draw_mix__covers_the_shares_and_repeats_with_the_seed():
    torch.manual_seed(3)
    drawn = [draw_mix(4) for _ in range(400)]
    shares = torch.stack([mix.share for mix in drawn])
    assert shares.mean() == pytest.approx(0.5, abs=0.05) and shares.var() == pytest.approx(1 / 12, abs=0.01)
    torch.manual_seed(3)
    again = [draw_mix(4) for _ in range(400)]
    assert all(
        torch.equal(a.share, b.share) and torch.equal(a.order, b.order) for a, b in zip(drawn, again, strict=True)
    )


class Recorder(nn.Module):
    """A network that remembers what it was given."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.seen = encoder, []

    def forward(self, clips):
        self.seen.append(clips.detach().clone())
        return self.encoder(clips)


@pytest.fixture
def pair(toy_folder):
    torch.manual_seed(0)
    student, teacher = (
        crossdistill.create_encoder(f"{modality}_tiny3d_8", num_frames=4, size_px=16) for modality in ("flow", "rgb")
    )
    clips = crossdistill.PairedClips(
        crossdistill.entries_of(crossdistill.Manifest.load(toy_folder), range(6)),
        student_view=student.view,
        teacher_views=[teacher.view],
    )
    return student, teacher, clips.read_batch([SampleKey(i, 0) for i in range(6)])


def test_distiller__mixes_normalised_clips_of_two_modalities_alike(pair):
    student, teacher, batch = pair
    bodies = [Recorder(encoder.body) for encoder in (student, teacher)]
    student.body, teacher.body = bodies
    distiller = crossdistill.Distiller(
        student=student, teachers=teacher, objective=["compress-2q", "simreg"], bank_size=12, mixes=True
    )
    for body in bodies:
        body.seen.clear()
    momentum_body = distiller.momentum_copy.module.encoder.body
    torch.manual_seed(5)
    distiller(batch)
    distiller.after_step()
    torch.manual_seed(5)
    mix = draw_mix(6)
    assert float(mix.share) not in (0.0, 1.0) and mix.order.tolist() != list(range(6))
    for body, view, encoder in ((bodies[0], batch.student, student), (bodies[1], batch.teachers[0], teacher)):
        (seen,) = body.seen
        expected = naive_mix(normalise(view, encoder.view), float(mix.share), mix.order.tolist())
        torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(momentum_body.seen[-1], bodies[0].seen[0])  # the student's anchors, too
    with torch.no_grad():
        anchors = torch.nn.functional.normalize(teacher(bodies[1].seen[0]), dim=1)
    bank = distiller.comparisons[0].bank
    torch.testing.assert_close(bank.teacher_anchors, anchors)


def test_distiller__evaluates_and_by_default_trains_without_mixing(pair):
    student, teacher, batch = pair
    student.body = Recorder(student.body)
    for options, is_training in (({"mixes": True}, False), ({}, True)):
        distiller = crossdistill.Distiller(student=student, teachers=teacher, objective="simreg", **options)
        student.body.seen.clear()
        distiller.train(is_training)(batch)
        torch.testing.assert_close(student.body.seen[0], normalise(batch.student, student.view))


def test_distiller__mixes_plain_tensors():
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 5)
    distiller = crossdistill.Distiller(
        student=student, teachers=teacher, student_dim=3, teacher_dim=5, objective="mse", mixes=True
    )
    inputs = torch.randn(6, 4)
    torch.manual_seed(1)
    found = distiller(inputs)
    torch.manual_seed(1)
    mixed = draw_mix(6)(inputs)
    head = distiller.trainable.heads["mse"]
    torch.testing.assert_close(found.loss, (head(student(mixed)) - teacher(mixed)).square().mean())


class StoredTeacher(Teacher):
    """As a cache: it sees names of clips alone."""

    sees_clips = False

    def __init__(self, encoder):
        self.encoder, self.identity = encoder, ["stored"]

    def embed(self, batch, *, with_tokens=False):
        raise AssertionError


def test_distiller__refuses_to_mix_what_cannot_be_mixed(pair):
    student, teacher, _ = pair
    with pytest.raises(UserError, match="a mixed clip is no mix of cached embeddings"):
        crossdistill.Distiller(student=student, teachers=StoredTeacher(teacher), objective="simreg", mixes=True)
    with pytest.raises(UserError, match="no label of its own, and cross-entropy needs one"):
        crossdistill.Distiller(
            student=student, teachers=teacher, objective=["simreg", "cross-entropy"], num_classes=2, mixes=True
        )


def test_mix__of_a_batch_moves_with_it_to_another_device(pair):
    *_, batch = pair
    mixed = replace(batch, mix=Mix(torch.tensor(0.5), torch.arange(6)))
    assert mixed.to(torch.device("cpu")).mix is mixed.mix
