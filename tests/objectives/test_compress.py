"""The CompRess loss against values of the authors' code, a plain implementation and a naive NumPy version."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossdistill.objectives import MemoryBank, compress_loss, create_objective
from crossdistill.types import Anchors

GOLDEN = json.loads((Path(__file__).parent / "golden" / "compress_loss.json").read_text())


def plain_loss(student, teacher, student_anchors, teacher_anchors, temperature):
    """The formula of the paper, differentiated by autograd."""
    logits_t = F.normalize(teacher, dim=1) @ teacher_anchors.T / temperature
    logits_s = F.normalize(student, dim=1) @ student_anchors.T / temperature
    return F.kl_div(logits_s.log_softmax(1), logits_t.softmax(1), reduction="batchmean")


def numpy_loss(student, teacher, student_anchors, teacher_anchors, temperature):
    """One sample and one anchor at a time."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = s / np.sqrt((s * s).sum()), t / np.sqrt((t * t).sum())
        weights_t = [np.exp(t @ a / temperature) for a in teacher_anchors]
        weights_s = [np.exp(s @ a / temperature) for a in student_anchors]
        for wt, ws in zip(weights_t, weights_s, strict=True):
            p, q = wt / sum(weights_t), ws / sum(weights_s)
            total += p * (np.log(p) - np.log(q))
    return total / len(student)


def make_inputs(*, batch, anchors, student_dim, teacher_dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, teacher = draw(batch, student_dim), 3 * draw(batch, teacher_dim)
    student_anchors = F.normalize(draw(anchors, student_dim), dim=1)
    teacher_anchors = F.normalize(draw(anchors, teacher_dim), dim=1)
    return [x.to(dtype) for x in (student, teacher, student_anchors, teacher_anchors)]


@pytest.mark.parametrize("chunk_size", [3, 1000])
@pytest.mark.parametrize("case", sorted(GOLDEN["cases"]))
def test_compress_loss__matches_authors_code_over_five_steps(case, chunk_size):
    reference = GOLDEN["cases"][case]
    teacher_bank = torch.tensor(reference["teacher_bank"], dtype=torch.float64)
    has_own_bank = "student_bank" in reference
    student_bank = torch.tensor(reference["student_bank"], dtype=torch.float64) if has_own_bank else None
    bank = MemoryBank(
        size=len(teacher_bank),
        teacher_dim=teacher_bank.shape[1],
        student_dim=student_bank.shape[1] if has_own_bank else None,
        dtype=torch.float64,
    )
    state = bank.state_dict()
    state["teacher"] = teacher_bank
    state["sample_ids"] = torch.full((len(teacher_bank),), -1)
    state["position"] = torch.tensor([0, len(teacher_bank)])
    if has_own_bank:
        state["student"] = student_bank
    bank.load_state_dict(state)
    for step in reference["steps"]:
        student = torch.tensor(step["student"], dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor(step["teacher"], dtype=torch.float64)
        loss = compress_loss(
            student=student,
            teacher=teacher,
            student_anchors=bank.student_anchors,
            teacher_anchors=bank.teacher_anchors,
            temperature=GOLDEN["temperature"],
            chunk_size=chunk_size,
        )
        loss.backward()
        assert loss.item() == pytest.approx(step["loss"], abs=1e-6)
        expected = torch.tensor(step["grad_student"], dtype=torch.float64)
        torch.testing.assert_close(student.grad, expected, atol=1e-6, rtol=0)
        keys = torch.tensor(step.get("student_key", step["student"]), dtype=torch.float64)
        ids = torch.arange(len(teacher))
        bank.enqueue(Anchors(teacher=teacher, student=keys if has_own_bank else None, sample_ids=ids))
    after = torch.tensor(reference["teacher_bank_after"], dtype=torch.float64)
    torch.testing.assert_close(bank.teacher_anchors, after, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("batch", "anchors", "student_dim", "teacher_dim", "chunk_size"),
    [
        (1, 50, 8, 8, 16),  # one sample; the last chunk is smaller
        (7, 50, 5, 12, 16),  # different dimensions
        (7, 48, 12, 5, 16),  # chunks of equal size
        (3, 1, 4, 4, 16),  # one anchor: the loss is zero
        (32, 1000, 64, 128, None),
    ],
)
def test_compress_loss__value_and_gradient_equal_plain_implementation(
    batch, anchors, student_dim, teacher_dim, chunk_size
):
    inputs = make_inputs(batch=batch, anchors=anchors, student_dim=student_dim, teacher_dim=teacher_dim)
    student, teacher, student_anchors, teacher_anchors = inputs
    streamed, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = compress_loss(
        student=streamed,
        teacher=teacher,
        student_anchors=student_anchors,
        teacher_anchors=teacher_anchors,
        temperature=0.04,
        chunk_size=chunk_size,
    )
    expected = plain_loss(plain, teacher, student_anchors, teacher_anchors, 0.04)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streamed.grad, plain.grad, atol=1e-5, rtol=1e-5)


def test_compress_loss__equals_naive_numpy_version():
    inputs = make_inputs(batch=4, anchors=9, student_dim=3, teacher_dim=6, dtype=torch.float64)
    student, teacher, student_anchors, teacher_anchors = inputs
    loss = compress_loss(
        student=student,
        teacher=teacher,
        student_anchors=student_anchors,
        teacher_anchors=teacher_anchors,
        temperature=0.2,
        chunk_size=4,
    )
    assert loss.item() == pytest.approx(numpy_loss(*(x.numpy() for x in inputs), 0.2), abs=1e-12)


def test_compress_loss__gradient_equals_finite_differences():
    inputs = make_inputs(batch=3, anchors=11, student_dim=4, teacher_dim=5, dtype=torch.float64)
    student, teacher, student_anchors, teacher_anchors = inputs

    def loss_of(student):
        return compress_loss(
            student=student,
            teacher=teacher,
            student_anchors=student_anchors,
            teacher_anchors=teacher_anchors,
            temperature=0.1,
            chunk_size=4,
        )

    assert torch.autograd.gradcheck(loss_of, student.requires_grad_())


def test_compress_loss__is_zero_if_student_equals_teacher():
    student, _, anchors, _ = make_inputs(batch=5, anchors=20, student_dim=6, teacher_dim=6, dtype=torch.float64)
    student.requires_grad_()
    loss = compress_loss(
        student=student, teacher=student, student_anchors=anchors, teacher_anchors=anchors, temperature=0.04
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_compress_loss__is_finite_at_very_low_temperature():
    inputs = make_inputs(batch=5, anchors=40, student_dim=6, teacher_dim=6)
    student, teacher, student_anchors, teacher_anchors = inputs
    student.requires_grad_()
    loss = compress_loss(
        student=student,
        teacher=teacher,
        student_anchors=student_anchors,
        teacher_anchors=teacher_anchors,
        temperature=0.001,
        chunk_size=7,
    )
    loss.backward()
    expected = plain_loss(
        student.detach().double(), teacher.double(), student_anchors.double(), teacher_anchors.double(), 0.001
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("variant", ["compress-1q", "compress-2q", "compress-2q-live"])
@pytest.mark.parametrize("num_filled", [0, 1, 5, 8, 11])
def test_objectives__ignore_unfilled_anchors(variant, num_filled):
    """A partly filled bank gives the same loss as a bank of only the filled anchors."""
    student_dim, teacher_dim = (4, 6)
    student, teacher, anchors_s, anchors_t = make_inputs(
        batch=3, anchors=num_filled, student_dim=student_dim, teacher_dim=teacher_dim, seed=num_filled
    )
    objective = create_objective(variant, temperature=0.04)
    uses_teacher_anchors = objective.student_anchors == "teacher"
    if uses_teacher_anchors:  # its linear head outputs the teacher's dimension
        student = F.pad(student, (0, teacher_dim - student_dim), value=0.3)
    bank = MemoryBank(size=8, teacher_dim=teacher_dim, student_dim=None if uses_teacher_anchors else student_dim)
    for i in range(num_filled):  # the cursor wraps if num_filled exceeds the size
        row = slice(i, i + 1)
        own = None if uses_teacher_anchors else anchors_s[row]
        bank.enqueue(Anchors(teacher=anchors_t[row], student=own, sample_ids=torch.tensor([i])))
    student.requires_grad_()
    output = objective(student=student, teacher=teacher, bank=bank)
    output.loss.backward()
    if num_filled == 0:
        assert output.loss.item() == 0 and not student.grad.any()
        return
    kept = slice(max(0, num_filled - 8), None)
    expected = plain_loss(
        student.detach(),
        teacher,
        (anchors_t if uses_teacher_anchors else anchors_s)[kept],
        anchors_t[kept],
        0.04,
    )
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert sorted(bank.sample_ids.tolist()) == list(range(num_filled))[kept]


def test_objectives__leave_the_bank_unchanged():
    student, teacher, anchors_s, anchors_t = make_inputs(batch=3, anchors=5, student_dim=4, teacher_dim=6)
    bank = MemoryBank(size=8, teacher_dim=6, student_dim=4)
    bank.enqueue(Anchors(teacher=anchors_t, student=anchors_s, sample_ids=torch.arange(5)))
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    output = create_objective("compress-2q", temperature=0.04)(
        student=student.requires_grad_(), teacher=teacher, bank=bank
    )
    output.loss.backward()
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_teacher_temperature__changes_only_the_teachers_distribution():
    """Value against the formula, gradient against finite differences; equal temperatures give the usual loss."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    anchors = F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=1)

    def loss(s, chunk_size=3, **temperatures):
        sides = {"student_anchors": anchors, "teacher_anchors": anchors}
        return compress_loss(student=s, teacher=teacher, **sides, chunk_size=chunk_size, **temperatures)

    log_p_t = (F.normalize(teacher, dim=1) @ anchors.T / 0.05).log_softmax(dim=1)
    log_p_s = (F.normalize(student, dim=1) @ anchors.T / 0.2).log_softmax(dim=1)
    expected = F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")
    torch.testing.assert_close(loss(student, temperature=0.2, teacher_temperature=0.05), expected)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, temperature=0.2, teacher_temperature=0.05), (student,))
    torch.testing.assert_close(loss(student, temperature=0.2, teacher_temperature=0.2), loss(student, temperature=0.2))
