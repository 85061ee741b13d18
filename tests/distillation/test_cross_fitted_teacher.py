"""Cross-fitted teachers: which network answers for which clip, and the rotation into one space, against naive twins."""

import numpy as np
import pytest
import scipy.linalg
import torch

import crossdistill
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.alignment import Alignment, fit_alignment, fit_alignments
from crossdistill.distillation.teachers import CrossFittedTeacher, FrozenTeacher
from crossdistill.distillation.terms import create_terms
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError

NUM_FOLDS = 3


@pytest.fixture(scope="module")
def clips(toy_folder):
    student, teacher = (
        crossdistill.create_encoder(f"{name}_tiny3d_8", num_frames=4, size_px=16) for name in ("flow", "rgb")
    )
    entries = crossdistill.entries_of(crossdistill.Manifest.load(toy_folder), range(12))
    return crossdistill.PairedClips(entries, student_view=student.view, teacher_views=[teacher.view])


def teacher_of(clips, *, is_aligned=True, with_classifier=True):
    """Three networks; clips 0 to 8 are of folds 1, 2, 3, 1, ..., and no network has seen the last three."""
    members = []
    for seed in range(NUM_FOLDS):
        torch.manual_seed(seed)
        encoder = crossdistill.create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
        if with_classifier:
            encoder.classifier = Classifier(torch.randn(5, encoder.embed_dim), torch.randn(5))
        members.append(FrozenTeacher(encoder, Execution.choose(encoder, precision="fp32")))
    dim = encoder.embed_dim
    maps = [
        Alignment(torch.randn(dim), torch.linalg.qr(torch.randn(dim, dim))[0], torch.randn(dim))
        for _ in range(NUM_FOLDS)
    ]
    folds = {entry.key: 1 + i % NUM_FOLDS for i, entry in enumerate(clips.entries[:9])}
    teacher = CrossFittedTeacher(members, folds, maps if is_aligned else None)
    assert teacher.select_clips(clips) is clips
    return teacher


def naive_targets(teacher, batch, row, *, with_tokens):
    """The targets of one clip: of the only network that may answer, or the mean of all."""
    sample = int(batch.sample_ids[row])
    may_answer = [sample % NUM_FOLDS] if sample < 9 else list(range(NUM_FOLDS))
    answers = []
    for number in may_answer:
        member = teacher.members[number]
        found = member.embed_view(batch.teachers[0].take(torch.tensor([row])), with_tokens=with_tokens)
        if teacher.alignments is not None:
            one = teacher.alignments[number]
            found["features"] = (found["features"] - one.mean) @ one.rotation + one.target_mean
        answers.append(found)
    return {name: torch.stack([answer[name][0] for answer in answers]).mean(dim=0) for name in answers[0]}


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("samples", [[0, 4, 10, 8, 1, 9, 3], [2, 5], [11]])
def test_embed__every_clip_has_the_answer_of_the_network_that_has_not_seen_it(clips, samples, is_aligned):
    teacher = teacher_of(clips, is_aligned=is_aligned)
    batch = clips.read_batch([SampleKey(i, 0) for i in samples])
    targets = teacher.embed(batch, with_tokens=True)
    assert targets.keys() == {"features", "logits", "tokens"}
    for row in range(len(samples)):
        for name, expected in naive_targets(teacher, batch, row, with_tokens=True).items():
            torch.testing.assert_close(targets[name][row], expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(targets["features"][0], teacher.members[2].embed(batch)["features"][0]) or samples[0] == 2


def test_networks__are_those_of_the_folds_in_order(clips):
    teacher = teacher_of(clips)
    assert teacher.networks == [member.encoder for member in teacher.members]
    assert teacher.identity == ["rgb_tiny3d_8", *(member.identity[1] for member in teacher.members)]
    assert len(set(teacher.identity)) == 1 + NUM_FOLDS


def test_mixed_clips_and_tokens_of_several_clips__are_refused(clips):
    teacher = teacher_of(clips, with_classifier=False)
    student = crossdistill.create_encoder("flow_tiny3d_8", num_frames=4, size_px=16)
    batch = clips.read_batch([SampleKey(i, 0) for i in range(6)])
    with pytest.raises(UserError, match="a mixed clip is of no fold"):
        crossdistill.Distiller(student=student, teachers=teacher, objective="simreg", mixes=True)(batch)
    with pytest.raises(UserError, match="token-matching compares tokens, and those of folds are in spaces of their"):
        teacher.require_fit(create_terms(["token-matching"]), student)
    with pytest.raises(UserError, match="came without a linear classifier"):
        teacher.require_fit(create_terms(["kd"]), student)
    teacher.require_fit(create_terms(["attention-transfer", "compress-1q", "simreg"]), student)


# The rotation.


def test_fit_alignment__is_the_plain_svd_and_no_rotation_is_nearer():
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6))
    fitted = fit_alignment(torch.tensor(features), torch.tensor(target))
    centred = features - features.mean(axis=0), target - target.mean(axis=0)
    expected, _ = scipy.linalg.orthogonal_procrustes(*centred)
    np.testing.assert_allclose(fitted.rotation.numpy(), expected, atol=2e-3)
    products = centred[0].T @ centred[1]
    left, _, right = np.linalg.svd(products + 1e-4 * np.linalg.norm(products) * np.eye(6))
    np.testing.assert_allclose(fitted.rotation.numpy(), left @ right, atol=1e-12)
    np.testing.assert_allclose((fitted.rotation.T @ fitted.rotation).numpy(), np.eye(6), atol=1e-12)
    mapped = fitted(torch.tensor(features)).numpy()
    np.testing.assert_allclose(mapped.mean(axis=0), target.mean(axis=0), atol=1e-12)
    error = np.square(mapped - target).sum()
    for seed in range(20):
        step = 0.1 * np.random.default_rng(seed).normal(size=(6, 6))
        near = expected @ scipy.linalg.expm(step - step.T)  # another rotation
        assert np.square(centred[0] @ near - centred[1]).sum() > error


def test_fit_alignment__directions_without_clips_stay_as_they_are():
    """Five clips span four directions of eight, and rounding must not decide about the others."""
    torch.manual_seed(0)
    features = torch.cat([torch.randn(5, 4), torch.zeros(5, 4)], dim=1).double()
    target = torch.cat([features[:, :4] @ torch.linalg.qr(torch.randn(4, 4).double())[0], torch.zeros(5, 4)], dim=1)
    rotation = fit_alignment(features, target).rotation
    torch.testing.assert_close(rotation[4:, 4:], torch.eye(4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(rotation[:4, 4:], torch.zeros(4, 4).double(), atol=1e-9, rtol=0)
    noise = 1e-8 * torch.randn(5, 8)
    torch.testing.assert_close(fit_alignment(features + noise, target).rotation, rotation, atol=1e-3, rtol=0)


def test_fit_alignments__undo_rotations_and_shifts():
    torch.manual_seed(0)
    first = torch.randn(30, 5)
    turned = [torch.linalg.qr(torch.randn(5, 5))[0] for _ in range(2)]
    features = [first, *((first @ turn + shift) for turn, shift in zip(turned, (2.0, -3.0), strict=True))]
    folds_n = torch.arange(30) % 3 + 1
    alignments = fit_alignments(features, folds_n)
    for alignment, own in zip(alignments, features, strict=True):
        torch.testing.assert_close(alignment.to(torch.device("cpu"))(own), first, atol=1e-3, rtol=1e-3)
    assert torch.equal(alignments[0].to(torch.device("cpu"))(first), first)


def test_fit_alignments__clips_of_a_fold_take_no_part_in_its_own_map():
    torch.manual_seed(0)
    features, folds_n = [torch.randn(30, 4) for _ in range(3)], torch.arange(30) % 4  # 0: of no fold
    before = fit_alignments(features, folds_n)
    changed = [features[0].clone(), *features[1:]]
    changed[0][folds_n == 2] += torch.randn(4)
    after = fit_alignments(changed, folds_n)
    assert torch.equal(before[1].rotation, after[1].rotation) and torch.equal(before[1].mean, after[1].mean)
    assert not torch.equal(before[2].rotation, after[2].rotation)
    naive = fit_alignment(features[2][folds_n != 3], features[0][folds_n != 3])
    assert torch.equal(before[2].rotation, naive.rotation)
