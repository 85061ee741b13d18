"""The EMA copy: its embeddings repeat, its BatchNorm and its ranges follow its own batches."""

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import crossdistill
from crossdistill.distillation.student_with_heads import MomentumCopy
from crossdistill.distillation.teachers import SelfTeacher
from crossdistill.encoders import create_encoder, wrap_module
from crossdistill.encoders.execution import Execution
from crossdistill.quantization.bits import BitWidths
from crossdistill.quantization.quantize import quantize
from crossdistill.quantization.ranges import RunningRange


class CachesInEval(nn.Linear):
    """Keeps a value in eval mode until ``train`` is called, as the attention of LeViT does."""

    kept = None

    def train(self, mode=True):
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, values):
        if self.training or self.kept is None:
            self.kept = self.weight.clone()
        return nn.functional.linear(values, self.kept)


class Attention(nn.MultiheadAttention):
    """Dropout as an argument of a function, not as a module."""

    def forward(self, values_btd):
        return super().forward(values_btd, values_btd, values_btd)[0].mean(dim=1)


def alexnet():
    return create_encoder("image_alexnet", size_px=64), (3, 64, 64)  # the paper's own student


def convnext():
    layers = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    body = nn.Sequential(ConvNeXt(layers, stochastic_depth_prob=0.9, layer_scale=1.0, num_classes=4))
    return wrap_module(body, 4), (3, 32, 32)


def attention():
    return wrap_module(Attention(8, 2, dropout=0.5, batch_first=True), 8), (5, 8)


@pytest.mark.parametrize("make", [alexnet, convnext, attention])
def test_copy__embeds_a_batch_twice_to_the_same(make):
    student, shape = make()
    torch.manual_seed(0)
    batch = torch.randn(4, *shape)
    with torch.no_grad():
        student.train()
        assert not torch.equal(student(batch), student(batch))  # dropout or stochastic depth is on
        copy = MomentumCopy(student, momentum=0.9).module
        assert torch.equal(copy(batch), copy(batch))
    assert all(part.training for part in student.modules())


def with_norm_and_dropout():
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    return wrap_module(body, 4)


def test_copy__normalises_by_its_own_batch():
    student = with_norm_and_dropout()
    copy = MomentumCopy(student, momentum=0.5)
    norm, values = copy.module.body[1], 3 + 5 * torch.randn(64, 6)
    seen = []
    norm.register_forward_hook(lambda *call: seen.append(call[2]))
    copy.module(values)
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    assert norm.running_mean.abs().max() > 0.1 and int(norm.num_batches_tracked) == 1


def test_copy__keeps_its_modes_when_the_student_is_prepared_and_trained():
    """A tokens head reads sizes in eval mode; afterwards the copy's BatchNorm still follows its batches."""
    student = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    teacher = SelfTeacher(student, Execution.choose(student, precision="fp32"), momentum=0.9)
    distiller = crossdistill.Distiller(
        student=student, teachers=teacher, objective=["token-matching", "simreg"], bank_size=8
    )
    distiller.train()
    distiller(torch.randn(4, 3, 4, 16, 16), sample_ids=torch.arange(4)).loss.backward()
    distiller.after_step()
    modes = {type(part): part.training for part in teacher.encoder.modules()}
    assert modes[nn.BatchNorm3d] and not modes[nn.Conv3d]
    assert all(part.training for part in student.modules())


def test_copy__forgets_what_its_modules_keep_in_eval_mode():
    student = wrap_module(CachesInEval(3, 3), 3)
    copy = MomentumCopy(student, momentum=0.0)
    copy.module(torch.ones(1, 3))
    with torch.no_grad():
        student.body.weight.fill_(2.0)
    copy.update(student, gather=lambda tensor: tensor)
    assert copy.module(torch.ones(1, 3)).unique().tolist() == [6.0]


def test_copy__of_a_quantised_student_moves_its_ranges_and_its_norms():
    pytest.importorskip("brevitas")
    student = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    quantize(student, BitWidths(4, 8))
    copy, clip = MomentumCopy(student, momentum=0.9).module, torch.randn(2, 3, 4, 16, 16)
    expected = student.train()(clip)  # a copy that starts equal embeds as the student does in train mode
    torch.testing.assert_close(copy(clip), expected)
    ranges = [part for part in copy.modules() if isinstance(part, RunningRange)]
    assert ranges and all(int(part.num_batches) == 1 for part in ranges)
    norms = [part for part in copy.modules() if isinstance(part, nn.BatchNorm3d)]
    assert norms and all(int(part.num_batches_tracked) == 1 for part in norms)
