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
    bank = MemoryBank(size=5, teacher_dim=2, student_dim=3)
    bank.enqueue(batch([1, 2, 3, 4, 5]))
    state = bank.state_dict()
    with pytest.raises(UserError, match="--bank-size"):
        MemoryBank(size=4, teacher_dim=2, student_dim=3).load_state_dict(state)
    with pytest.raises(UserError, match="student"):
        MemoryBank(size=5, teacher_dim=2, student_dim=None).load_state_dict(state)


def filled(size, *batches):
    bank = MemoryBank(size=size, teacher_dim=2, student_dim=3)
    for ids in batches:
        bank.enqueue(batch(ids))
    return bank


def rows_of_all(bank):
    """The state as version 0.1 wrote it: all rows of the bank, and a position without its size."""
    sides = {"teacher": bank._teacher, "student": bank._student, "sample_ids": bank._sample_ids}
    return {**sides, "position": torch.tensor([bank.cursor, bank.num_valid])}


@pytest.mark.parametrize("batches", [[[1, 2]], [[1, 2, 3], [4, 5, 6, 7]]])
def test_bank__state_holds_filled_rows_alone_and_continues_as_that_of_all_rows(batches):
    bank = filled(5, *batches)
    state = bank.state_dict()
    num_filled = min(5, sum(map(len, batches)))
    assert {name: len(value) for name, value in state.items() if name != "position"} == dict.fromkeys(
        ("teacher", "student", "sample_ids"), num_filled
    )
    again, former = filled(5, [9, 9, 9, 9, 9]), filled(5)
    again.load_state_dict(state)
    former.load_state_dict(rows_of_all(bank))
    for each in (bank, again, former):
        each.enqueue(batch([10, 11, 12, 13]))
        each.enqueue(batch([14]))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, former.state_dict()[name])


@pytest.mark.parametrize("state_of", [rows_of_all, MemoryBank.state_dict])
def test_bank__larger_one_that_was_never_full_fits_and_a_full_one_does_not(state_of):
    smaller = MemoryBank(size=4, teacher_dim=2, student_dim=3)
    smaller.load_state_dict(state_of(filled(9, [1, 2], [3, 4])))
    assert smaller.sample_ids.tolist() == [1, 2, 3, 4] and smaller.fill == 1
    smaller.enqueue(batch([5]))
    assert smaller.sample_ids.tolist() == [5, 2, 3, 4]
    for other in (filled(9, [1, 2, 3, 4, 5]), filled(5, [1, 2, 3], [4, 5, 6])):
        with pytest.raises(UserError, match="in 'size': resume with the --objective, --bank-size"):
            MemoryBank(size=4, teacher_dim=2, student_dim=3).load_state_dict(state_of(other))


@pytest.mark.parametrize("state_of", [rows_of_all, MemoryBank.state_dict])
def test_bank__full_one_grows_and_keeps_its_order(state_of):
    larger = MemoryBank(size=9, teacher_dim=2, student_dim=3)
    larger.load_state_dict(state_of(filled(5, [1, 2, 3], [4, 5, 6, 7])))
    assert larger.sample_ids.tolist() == [3, 4, 5, 6, 7]  # the oldest first
    larger.enqueue(batch([8, 9, 10, 11]))
    larger.enqueue(batch([12]))
    assert larger.sample_ids.tolist() == [12, 4, 5, 6, 7, 8, 9, 10, 11]
    expected = filled(9, [3], [4, 5, 6, 7], [8, 9, 10, 11], [12])
    for name, value in expected.state_dict().items():
        assert torch.equal(value, larger.state_dict()[name]), name


def test_bank__rejects_size_zero():
    with pytest.raises(UserError, match="--bank-size"):
        MemoryBank(size=0, teacher_dim=2, student_dim=None)
