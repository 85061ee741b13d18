"""Training loops of one's own: plain tensors, any DataLoader, any module on both sides."""

import copy

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

import crossdistill as cd


def network(width, num_outputs):
    """A small network of pictures, as people write them."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, num_outputs),
    )


def distil(loader, **options):
    """The loop of docs/tutorials/own_training_loop.md: nothing of it is ours but ``cd.Distiller``."""
    torch.manual_seed(0)
    teacher, student = network(16, 32), network(4, 16)
    before = copy.deepcopy(teacher.state_dict())
    distiller = cd.Distiller(student=student, teachers=teacher, student_dim=16, teacher_dim=32, bank_size=64, **options)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        for images, _ in loader:
            output = distiller(images)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            distiller.after_step()
            losses.append(output.loss.item())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student(images).shape == (len(images), 16)
    return distiller, losses


def test_objective__names_beside_terms_are_refused():
    with pytest.raises(cd.UserError, match="objective mixes terms with the names simreg: give names alone"):
        distil([], objective=[*cd.create_terms(["infonce"]), "simreg"])


def test_random_tensors__train_a_plain_module():
    torch.manual_seed(1)
    pairs = TensorDataset(torch.randn(64, 3, 16, 16), torch.zeros(64))
    distiller, losses = distil(DataLoader(pairs, batch_size=16, shuffle=True), objective="simreg")
    assert losses[-1] < 0.7 * losses[0]
    assert distiller.bank_fill is None
    distiller, losses = distil(DataLoader(pairs, batch_size=16, shuffle=True))
    assert distiller.bank_fill == 1.0 and all(torch.tensor(losses).isfinite())


@pytest.mark.parametrize("kind", ["FakeData", "ImageFolder"])
def test_datasets_of_torchvision__train_a_plain_module(kind, tmp_path):
    to_tensor = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])
    if kind == "FakeData":
        pictures = datasets.FakeData(32, image_size=(3, 20, 20), num_classes=2, transform=to_tensor)
    else:
        for i in range(8):
            (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (30 * i, 10, 200 - 20 * i)).save(tmp_path / f"class{i % 2}" / f"{i}.png")
        pictures = datasets.ImageFolder(tmp_path, transform=to_tensor)
    distiller, losses = distil(DataLoader(pictures, batch_size=8), objective=["compress-2q", "simreg"])
    assert len(losses) == 6 * len(pictures) // 8 and all(torch.tensor(losses).isfinite())
    assert distiller.momentum_copy is not None


def test_state__comes_back_with_banks_and_momentum_copy():
    torch.manual_seed(2)
    loader = DataLoader(TensorDataset(torch.randn(32, 3, 16, 16), torch.zeros(32)), batch_size=8)
    trained, _ = distil(loader, objective="compress-2q")
    fresh = cd.Distiller(
        student=network(4, 16),
        teachers=[teacher.encoder for teacher in trained.teachers],
        student_dim=16,
        objective="compress-2q",
        bank_size=64,
    )
    fresh.load_state_dict(trained.state_dict())
    bank, expected = fresh.comparisons[0].bank, trained.comparisons[0].bank
    assert torch.equal(bank.teacher_anchors, expected.teacher_anchors) and fresh.bank_fill == trained.bank_fill
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(fresh(images).loss, trained(images).loss)


def test_sides__may_see_different_tensors_and_samples_may_be_named():
    torch.manual_seed(3)
    student, teacher = nn.Linear(5, 4), nn.Linear(7, 4)
    distiller = cd.Distiller(
        student=student, teachers=teacher, student_dim=4, teacher_dim=4, objective="infonce", bank_size=8
    )
    ids = torch.arange(4)
    for _ in range(2):  # in the second epoch the bank holds the samples themselves
        output = distiller(torch.randn(4, 5), torch.randn(4, 7), sample_ids=ids)
        distiller.after_step()
    assert output.loss.isfinite() and distiller.comparisons[0].bank.is_own(ids).any(dim=1).all()


def test_parameters__are_those_of_the_student_and_its_heads():
    distiller = cd.Distiller(
        student=nn.Linear(3, 2),
        teachers=nn.Linear(3, 2),
        student_dim=2,
        teacher_dim=2,
        objective=["compress-2q", "mse"],
    )
    trained = {id(parameter) for parameter in distiller.parameters()}
    assert trained == {id(parameter) for parameter in distiller.trainable.parameters()}
    assert all(parameter.requires_grad for parameter in distiller.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_dim": 2}, "embed_dim"),
        ({"student_dim": 3, "teacher_dim": 2, "objective": "simrge"}, "unknown objective 'simrge'.*simreg"),
        ({"student_dim": 3, "teacher_dim": 2, "objective": "kd"}, "classifier"),
        ({"student_dim": 3, "teacher_dim": 2, "objective": "token-matching"}, "token"),
    ],
)
def test_wrong_arguments__are_one_sentence(options, message):
    with pytest.raises(cd.UserError, match=message):
        cd.Distiller(student=nn.Linear(5, 3), teachers=nn.Linear(5, 2), **options)


def test_wrong_dimension__is_named_at_the_first_batch():
    distiller = cd.Distiller(
        student=nn.Linear(5, 3), teachers=nn.Linear(5, 2), student_dim=4, teacher_dim=2, objective="mse"
    )
    with pytest.raises(cd.UserError, match="4"):
        distiller(torch.randn(2, 5))


def test_stored_embeddings__are_a_teacher_without_weights():
    """``nn.Identity`` passes on embeddings that were computed before, and the loss is that of the live teacher."""
    torch.manual_seed(0)
    teacher, images = nn.Linear(5, 2), torch.randn(6, 5)
    student = nn.Linear(5, 3)
    losses = []
    for given, seen in ((teacher, images), (nn.Identity(), teacher(images).detach())):
        torch.manual_seed(1)
        distiller = cd.Distiller(student=student, teachers=given, student_dim=3, teacher_dim=2, objective="simreg")
        losses.append(distiller(images, seen).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0] > 0


def test_stored_integers_and_floats__are_never_taken_for_each_other():
    """A View of floats was divided by 255 like stored bytes, and bytes without a View were not normalised at all."""
    student, teacher = (cd.create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16) for _ in range(2))
    distiller = cd.Distiller(student=student, teachers=teacher, objective="cosine")
    bytes_, ones = torch.randint(0, 256, (4, 3, 4, 16, 16), dtype=torch.uint8), torch.ones(4, 3)
    floats = (bytes_ / 255 - 0.45) / 0.225
    assert torch.allclose(distiller(pair(cd.View(bytes_, ones))).loss, distiller(floats).loss, atol=1e-4)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        with pytest.raises(cd.UserError, match=f"a View holds stored integers .*, not {dtype}: give normalised"):
            cd.View(floats.to(dtype), ones)
    with pytest.raises(cd.UserError, match=r"takes normalised floats, not torch\.uint8: put stored integers"):
        distiller(bytes_)


def pair(view):
    ids = torch.arange(len(view.values))
    return cd.PairedBatch(student=view, teachers=(view,), sample_ids=ids, labels=torch.full_like(ids, -1))
