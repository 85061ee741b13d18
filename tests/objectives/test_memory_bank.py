"""The memory bank: alignment of both sides, wrap-around, masking, state."""

import pytest
import torch
import torch.nn.functional as F

from crossdistill.errors import UserError
from crossdistill.objectives import MemoryBank
from crossdistill.types import Anchors


def batch(ids):
    """Anchors whose angle encodes the sample id, in 2D for the teacher and in 3D for the student."""
    ids = torch.tensor(ids)
    angle = ids * 0.1
    teacher = 5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    student = 7 * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    return Anchors(teacher=teacher, student=student, sample_ids=ids)


def naive_queue(batches, size):
    """The last ``size`` samples in the order of a ring buffer."""
    slots, cursor = {}, 0
    for ids in batches:
        for sample in ids[-size:]:
            slots[cursor % size] = sample
            cursor += 1
    return [slots[i] for i in sorted(slots)]


@pytest.mark.parametrize(
    "batches",
    [[[1, 2]], [[1, 2, 3], [4, 5, 6]], [[1, 2, 3]] * 4 + [[9]], [[1], [2, 3, 4, 5, 6, 7, 8]], [[*range(10, 22)]]],
)
def test_bank__is_a_ring_buffer_with_aligned_sides(batches):
    bank = MemoryBank(size=5, teacher_dim=2, student_dim=3)
    for ids in batches:
        bank.enqueue(batch(ids))
    expected = naive_queue(batches, 5)
    assert bank.sample_ids.tolist() == expected
    assert bank.num_valid == len(expected) == len(bank.teacher_anchors) == len(bank.student_anchors)
    assert bank.fill == len(expected) / 5
    stored = batch(expected)
    torch.testing.assert_close(bank.teacher_anchors, F.normalize(stored.teacher, dim=1))
    torch.testing.assert_close(bank.student_anchors, F.normalize(stored.student, dim=1))


def test_bank__bf16_storage_is_close_to_float32():
    bank = MemoryBank(size=5, teacher_dim=2, student_dim=None, dtype=torch.bfloat16)
    bank.enqueue(batch([1, 2, 3]))
    assert bank.teacher_anchors.dtype == torch.bfloat16
    torch.testing.assert_close(bank.teacher_anchors.float(), F.normalize(batch([1, 2, 3]).teacher), atol=5e-3, rtol=0)


def test_bank__without_student_side_returns_teacher_anchors():
    bank = MemoryBank(size=5, teacher_dim=2, student_dim=None)
    bank.enqueue(batch([1, 2, 3]))
    assert bank.student_anchors.data_ptr() == bank.teacher_anchors.data_ptr()


def test_bank__restored_state_continues_identically():
    one, other = (MemoryBank(size=5, teacher_dim=2, student_dim=3) for _ in range(2))
    one.enqueue(batch([1, 2, 3]))
    one.enqueue(batch([4, 5, 6, 7]))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    for bank in (one, other):
        bank.enqueue(batch([8, 9]))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_bank__rejects_state_of_another_size_or_side():
    state = MemoryBank(size=5, teacher_dim=2, student_dim=3).state_dict()
    with pytest.raises(UserError, match="--bank-size"):
        MemoryBank(size=6, teacher_dim=2, student_dim=3).load_state_dict(state)
    with pytest.raises(UserError, match="student"):
        MemoryBank(size=5, teacher_dim=2, student_dim=None).load_state_dict(state)


def test_bank__rejects_size_zero():
    with pytest.raises(UserError, match="--bank-size"):
        MemoryBank(size=0, teacher_dim=2, student_dim=None)
