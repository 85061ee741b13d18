"""Agreement of two spaces against naive implementations and closed forms, and the command that reports it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.errors import UserError
from crossdistill.evaluation.information import Information, SharedInformation
from crossdistill.evaluation.protocols import agreement
from crossdistill.evaluation.protocols.agreement import (
    NeighbourClasses,
    chance_overlap,
    linear_cka,
    nearest_others,
    neighbour_classes,
    neighbour_overlap,
    share_of_common,
    shuffled_overlaps,
)
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.spread import FeatureSpread
from crossdistill.evaluation.teacher_agreement import AgreementReport, SpaceAgreement, conclude
from crossdistill.quantization.quantize import quantize

TEACHER = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32]
STUDENT = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32]


def spaces(num_clips=30, *, num_common=6):
    """Two spaces of 7 and 11 features that agree in part."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(num_clips, 7, generator=generator)
    b = torch.randn(num_clips, 11, generator=generator)
    b[:, :num_common] += 2 * a[:, :num_common]
    return a, b + 0.5  # not centred


def naive_others(features, k):
    rows = [row / row.norm() for row in features.double()]
    others = [[j for j in range(len(rows)) if j != i] for i in range(len(rows))]
    return [
        set(sorted(near, key=lambda j, row=row: -float(row @ rows[j]))[:k])
        for row, near in zip(rows, others, strict=True)
    ]


def naive_unbiased_hsic(a, b):
    """Sums over pairs and triples without diagonals, entry by entry, as Song et al. write them."""
    n = len(a)
    kernel_a, kernel_b = ([[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)] for x in (a, b))
    trace = sum(kernel_a[i][j] * kernel_b[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, kernel_a)) * sum(map(sum, kernel_b)) / ((n - 1) * (n - 2))
    chains = sum(sum(kernel_a[i][j] for i in range(n)) * sum(kernel_b[j][q] for q in range(n)) for j in range(n))
    return (trace + sums - 2 / (n - 2) * chains) / (n * (n - 3))


@pytest.mark.parametrize("k", [1, 4, 29])
def test_neighbour_overlap__equals_naive_implementation(k):
    a, b = spaces()
    near_a, near_b = naive_others(a, k), naive_others(b, k)
    expected = [len(one & other) / k for one, other in zip(near_a, near_b, strict=True)]
    assert neighbour_overlap(a, b, k).tolist() == pytest.approx(expected)


def test_neighbour_overlap__is_1_for_equal_spaces_and_chance_for_independent_ones():
    a, b = spaces(600, num_common=0)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0))).Q
    assert neighbour_overlap(a, 3 * a @ rotation, 10).mean() > 0.999
    chance = chance_overlap(600, 10)
    assert chance == 10 / 599
    assert neighbour_overlap(a, b, 10).mean().item() == pytest.approx(chance, abs=4 * math.sqrt(chance / 6000))


def test_nearest_others__never_holds_the_clip_itself_even_among_many_equal_ones():
    others = nearest_others(torch.ones(9, 3), 2)
    assert others.tolist() == [[1, 2], [0, 2], *([[0, 1]] * 7)]


def test_shuffled_overlaps__are_what_reordered_features_give():
    a, b = spaces()
    near_a, near_b = nearest_others(a, 5), nearest_others(b, 5)
    shuffled = shuffled_overlaps(near_a, near_b, num_shuffles=3, seed=1)
    generator = torch.Generator().manual_seed(1)
    for found in shuffled:
        reordered = torch.empty_like(b)
        reordered[torch.randperm(len(b), generator=generator)] = b
        assert found == neighbour_overlap(a, reordered, 5).mean()
    assert share_of_common(near_a, near_b).mean() > shuffled.max()


def test_linear_cka__equals_naive_implementation(monkeypatch):
    monkeypatch.setattr(agreement, "_COLUMNS_AT_ONCE", 4)
    a, b = spaces(14)
    x, y = a.double(), b.double()  # not centred: the estimate itself does not see a shift
    expected = naive_unbiased_hsic(x, y) / math.sqrt(naive_unbiased_hsic(x, x) * naive_unbiased_hsic(y, y))
    assert linear_cka(a, b) == pytest.approx(expected, rel=1e-9) and 0.1 < expected < 0.99


def test_linear_cka__ignores_rotation_scale_and_shift_but_no_other_map():
    a, b = spaces()
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(11, 11, generator=generator, dtype=torch.float64)).Q
    plain = linear_cka(a, b)
    assert linear_cka(a, 5 * b.double() @ rotation - 40) == pytest.approx(plain, rel=1e-9)
    assert linear_cka(b, b.double() @ rotation) == pytest.approx(1)
    assert abs(linear_cka(a, b * torch.arange(1, 12)) - plain) > 0.01


def test_linear_cka__is_near_0_for_unrelated_spaces_of_more_features_than_clips():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 400, generator=generator).double() for _ in range(2))
    x, y = a - a.mean(0), b - b.mean(0)
    biased = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())  # with diagonals
    assert abs(linear_cka(a, b)) < 0.1 and biased > 0.8


@pytest.mark.parametrize("space", [torch.full((10, 3), 0.3), torch.eye(10)], ids=["one point", "equally far"])
def test_linear_cka__is_0_for_a_space_without_structure(space):
    assert linear_cka(space, spaces(10)[0]) == 0.0
    assert linear_cka(space, space) == 0.0


def test_neighbour_classes__equals_naive_implementation_across_groups():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(10)
    groups = torch.arange(40) // 4 + 10 * labels  # groups end with their class
    features = torch.randn(40, 5, generator=generator) + 2 * torch.eye(5)[labels]
    labels[-3:], groups[-3:] = 4, 99  # a class of one group cannot be right
    unit = features / features.norm(dim=1, keepdim=True)
    hits, chances = [], []
    for i in range(37):
        allowed = [j for j in range(40) if groups[j] != groups[i]]
        hits.append(labels[max(allowed, key=lambda j, i=i: float(unit[i] @ unit[j]))] == labels[i])
        chances.append(sum(int(labels[j] == labels[i]) for j in allowed) / len(allowed))
    found = neighbour_classes(features, labels, groups)
    assert found == NeighbourClasses(pytest.approx(sum(hits) / 37), pytest.approx(sum(chances) / 37), num_clips=37)
    assert found.chance < found.accuracy < 1
    assert neighbour_classes(features[:8], torch.arange(8), torch.arange(8)) is None


def test_wrong_spaces__are_named():
    a, b = spaces()
    for figure in (lambda x, y: neighbour_overlap(x, y, 3), linear_cka):
        with pytest.raises(UserError, match="30 and 29 clips"):
            figure(a, b[1:])
        with pytest.raises(UserError, match="NaN"):
            figure(a, b * math.nan)
    with pytest.raises(UserError, match="give at least 31"):
        neighbour_overlap(a, b, 30)
    with pytest.raises(UserError, match="at least 4 clips"):
        linear_cka(a[:3], b[:3])


# The command.


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Options of a teacher that was never trained."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), path)
    return [*TEACHER, "--teacher-weights", path]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, toy_folder, teacher):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fixed = ["--epochs", 1, "--batch-size", 8, "--bank-size", 24, "--workers", 0, "--tracker", "none", "--knn-clips", 0]
    options = (*fixed, *teacher, *STUDENT, "--data", toy_folder, "--out", folder, "--no-evaluate")
    cli(["train", *map(str, options)])
    return folder


def agree(*options):
    cli(["agreement", *map(str, options), "--workers", "0"])


def figures(tmp_path, *options):
    path = tmp_path / "figures.json"
    agree(*options, "--json", path)
    return json.loads(path.read_text())


def test_command__before_a_training(toy_folder, teacher, tmp_path, capsys):
    found = figures(tmp_path, *teacher, *STUDENT, "--data", toy_folder, "--clips", 20, "--k", 5)
    output = capsys.readouterr().out
    assert (found["num_clips"], found["k"], found["chance"]) == (20, 5, 5 / 19)
    assert found["sample"] == "split 1, train part" and found["unreadable"] == {}
    assert set(found["agreements"]) == {Role.RANDOM} and found["classes"] == [] and found["gain"] is None
    assert 0 <= found["agreements"][Role.RANDOM]["overlap"] <= 1 and found["agreements"][Role.RANDOM]["cka"] < 1
    assert 0 <= found["teacher_1nn"]["accuracy"] <= 1
    assert "20 clips embedded, 0 could not be read" in output and "CKA" in output
    assert all(sentence in output for sentence in found["conclusions"])
    assert "rest on 20 clips" in found["conclusions"][-1]


def test_command__a_network_agrees_with_itself(toy_folder, teacher, tmp_path):
    """Teacher and student see one moment and one crop: equal networks give equal features."""
    _, name, *view, _, weights = teacher
    student = ["--student", name, "--student-weights", weights, *(str(o).replace("teacher", "student") for o in view)]
    found = figures(tmp_path, *teacher, *student, "--data", toy_folder)
    assert found["agreements"][Role.TRAINED]["overlap"] == 1
    assert found["agreements"][Role.TRAINED]["cka"] == pytest.approx(1)
    assert found["agreements"][Role.RANDOM]["overlap"] < 1
    assert found["gain"][0] == pytest.approx(1 - found["agreements"][Role.RANDOM]["overlap"])
    assert any("is not known" in sentence for sentence in found["conclusions"])


def test_command__says_what_the_pair_shares_beside_overlap_and_cka(toy_folder, teacher, tmp_path, capsys):
    found = figures(tmp_path, *teacher, *STUDENT, "--data", toy_folder)
    assert set(found["information"]) == {Role.RANDOM} and found["num_clips"] == 36
    one = found["information"][Role.RANDOM]
    assert one["num_components"] == 1 and one["with_labels"] is None  # 3 clips of a class
    shared = one["with_teacher"]
    assert abs(shared["nats"]) < 1 and shared["standard_error"] > 0 and shared["highest_shuffled"] < 1
    output = capsys.readouterr().out
    assert "mutual information by linear models on held-out clips; components of each embedding: 1" in output
    assert sum("Teacher and untrained student share" in sentence for sentence in found["conclusions"]) == 1


def test_to_frame__has_a_row_for_each_student():
    pytest.importorskip("pandas")
    frame = report(trained=0.4, gain=(0.1, 0.03), information={Role.RANDOM: shares(1.0, 0.4)}).to_frame()
    assert frame["role"].tolist() == [Role.RANDOM.value, Role.TRAINED.value]
    assert frame["overlap"].tolist() == [0.3, 0.4] and frame["with_teacher.nats"].tolist()[0] == 1.0
    assert frame["with_labels.nats"].tolist()[0] == 0.4 and frame["with_labels.nats"].isna().tolist() == [False, True]


def test_command__of_a_trained_run(run_folder, toy_folder, teacher, tmp_path, capsys):
    found = figures(tmp_path, *teacher, "--student", run_folder, "--data", toy_folder)
    assert found["student"] == "flow_tiny3d_8" and found["sample"] == "split 1, test part"
    assert found["origin"] is None
    overlaps = [one["overlaps"][Role.TRAINED] for one in found["classes"]]
    assert len(overlaps) == 12 and overlaps == sorted(overlaps, reverse=True)
    for role in (Role.RANDOM, Role.TRAINED):  # classes are parts of the whole
        by_class = sum(one["overlaps"][role] * one["num_clips"] for one in found["classes"]) / found["num_clips"]
        assert by_class == pytest.approx(found["agreements"][role]["overlap"])
    gain = found["agreements"][Role.TRAINED]["overlap"] - found["agreements"][Role.RANDOM]["overlap"]
    assert found["gain"][0] == pytest.approx(gain, abs=1e-12)
    assert found["classes"][-1]["name"] in capsys.readouterr().out
    same = figures(tmp_path, *teacher, "--student", run_folder / "student", "--data", toy_folder)
    assert same == found


def test_command__compares_a_quantised_student_with_an_untrained_one_of_the_same_bits(toy_folder, teacher, tmp_path):
    pytest.importorskip("brevitas")
    torch.manual_seed(5)
    student = create_encoder("flow_tiny3d_8", num_frames=4, size_px=32)
    save_student(quantize(student, "w2a2"), tmp_path / "student", facts={})
    rest = [*teacher, "--data", toy_folder]
    before, coarse = (figures(tmp_path, *rest, *STUDENT, *options) for options in ((), ("--bits", "w2a2")))
    named = figures(tmp_path, *rest, *STUDENT, "--student-weights", tmp_path / "student", "--bits", "w2a2")
    folder = figures(tmp_path, *rest, "--student", tmp_path / "student", "--part", "test")
    assert coarse["agreements"][Role.RANDOM] != before["agreements"][Role.RANDOM]
    assert named["agreements"] == folder["agreements"] and set(named["agreements"]) == {Role.RANDOM, Role.TRAINED}
    both = figures(tmp_path, *rest, "--student", tmp_path / "student", "--part", "train")
    assert both["agreements"][Role.RANDOM] == coarse["agreements"][Role.RANDOM]


def test_command__names_another_origin(run_folder, toy_folder, teacher, tmp_path):
    weights = tmp_path / "other.safetensors"
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), weights)
    found = figures(tmp_path, *teacher[:-1], weights, "--student", run_folder, "--data", toy_folder)
    assert found["origin"].startswith("This student learned from rgb_tiny3d_8 with other weights")
    assert found["origin"] in found["conclusions"]


def test_command__image_teacher_of_clips_without_labels_or_splits(toy_folder, tmp_path):
    folder = tmp_path / "unlabelled"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    videos = tuple(replace(video, label=None, splits={}, group=None) for video in manifest.videos)
    (folder / videos[3].streams["flow"].path).unlink()
    replace(manifest, classes=(), videos=videos).save()
    torch.manual_seed(0)
    weights = tmp_path / "image.safetensors"
    save_file(create_encoder("image_mobilenet_v3_small").body.state_dict(), weights)
    teacher = ["--teacher", "image_mobilenet_v3_small", "--teacher-weights", weights, "--teacher-size", 32]
    found = figures(tmp_path, *teacher, *STUDENT, "--data", folder, "--clips", 24)
    assert found["num_clips"] + len(found["unreadable"]) == 24 and len(found["unreadable"]) == 1
    assert found["sample"] == "no splits" and found["teacher_1nn"] is None
    assert len(found["nearest"]) == 3 and set(found["spreads"]) == {Role.TEACHER, Role.RANDOM}
    videos = [name for pair in found["nearest"] for name in pair]
    assert "only your eye can say" in found["conclusions"][0] and all(
        name in found["conclusions"][0] for name in videos
    )


def wrong(capsys, *options):
    with pytest.raises(SystemExit) as exit_info:
        agree(*options)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and len(error.strip().splitlines()) == 1, error
    return error


def test_command__one_sentence_for_each_mistake(run_folder, toy_folder, teacher, tmp_path, capsys):
    data = ["--data", toy_folder]
    assert "prepare it again with --modalities depth" in wrong(
        capsys, *teacher, "--student", "depth_tiny3d_8", "--data", without(toy_folder, "depth", tmp_path / "no_depth")
    )
    depth_teacher = ["--teacher", "depth_tiny3d_8", "--teacher-weights", depth_weights(tmp_path)]
    assert "depth_tiny3d_8 needs the stream 'depth'" in wrong(
        capsys, *depth_teacher, *STUDENT, "--data", tmp_path / "no_depth"
    )
    assert "--k 40 needs 42" in wrong(capsys, *teacher, *STUDENT, *data, "--k", 40)
    assert "--clips is 5: give 12 (k + 2" in wrong(capsys, *teacher, *STUDENT, *data, "--clips", 5)
    assert "has no split" in wrong(capsys, *teacher, *STUDENT, *data, "--split", 9)
    assert "no known weights for the teacher" in wrong(capsys, *TEACHER, *STUDENT, *data)
    assert "remove --student-weights" in wrong(capsys, *teacher, "--student", run_folder, *data, "--student-frames", 4)
    assert "remove --student-weights" in wrong(capsys, *teacher, "--student", run_folder, *data, "--bits", "w4a8")
    assert "--teacher self starts as the student" in wrong(capsys, "--teacher", "self", *STUDENT, *data)
    assert "there is no student in" in wrong(capsys, *teacher, "--student", tmp_path / "no_run", *data)
    assert "unknown encoder 'flo_r3d18'" in wrong(capsys, *teacher, "--student", "flo_r3d18", *data)


def without(folder: Path, stream: str, copy: Path) -> Path:
    """A dataset that never had a stream."""
    shutil.copytree(folder, copy)
    manifest = Manifest.load(copy)
    videos = tuple(
        replace(video, streams={name: one for name, one in video.streams.items() if name != stream})
        for video in manifest.videos
    )
    replace(manifest, videos=videos).save()
    return copy


def depth_weights(folder: Path) -> Path:
    path = folder / "depth.safetensors"
    save_file(create_encoder("depth_tiny3d_8").body.state_dict(), path)
    return path


def shares(with_teacher, with_labels, *, error=0.1):
    """What a student shares; the difference has the standard error ``error``."""
    labels = None if with_labels is None else Information(with_labels, 0.1, 0.0)
    difference = None if with_labels is None else (with_teacher - with_labels, error)
    return SharedInformation(8, Information(with_teacher, 0.1, highest_shuffled=0.05), labels, difference)


def report(
    *, accuracy=0.5, fresh=0.3, trained=None, cka=0.2, gain=None, effective_rank=9.0, information=None, origin=None
):
    agreements = {Role.RANDOM: SpaceAgreement(fresh, highest_shuffled_overlap=0.15, cka=cka)}
    if trained is not None:
        agreements[Role.TRAINED] = SpaceAgreement(trained, highest_shuffled_overlap=0.15, cka=0.5)
    return AgreementReport(
        teacher="t",
        student="s",
        dataset="d",
        sample="",
        num_clips=100,
        unreadable={},
        k=10,
        chance=0.1,
        agreements=agreements,
        classes=(),
        teacher_1nn=None if accuracy is None else NeighbourClasses(accuracy, chance=0.1, num_clips=100),
        leaves_group_out=False,
        gain=gain,
        spreads={Role.TEACHER: FeatureSpread(effective_rank, highest_rank=20, uniformity=-1.0)},
        nearest=(("a.mp4", "b.mp4"),),
        origin=origin,
        information=information or {},
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"accuracy": 0.18}, "little to teach about these classes"),
        ({"accuracy": 0.20}, "say something about these classes"),
        ({"accuracy": None}, "It finds nearest: a.mp4 to b.mp4. Open these videos"),
        ({"accuracy": None, "effective_rank": 1.5}, "hardly tells these clips apart"),
        ({"fresh": 0.15}, "speaks neither for the pair nor against it"),
        ({"fresh": 0.16}, "has to beat this figure"),
        ({"cka": 0.09}, "hardly anything of the teacher's"),
        ({"cka": 0.3}, "a part of the teacher's"),
        ({"cka": 0.6}, "much of the teacher's"),
        ({"trained": 0.4, "gain": (0.1, 0.03)}, "towards the teacher."),
        ({"trained": 0.4, "gain": (0.1, 0.04)}, "shows no gain"),
        ({"trained": 0.2, "gain": (-0.1, 0.03)}, "away from this teacher"),
        ({"information": {Role.RANDOM: shares(1.0, 0.7)}}, "1.00 ± 0.20 nats, and the untrained student says 0.70"),
        ({"information": {Role.RANDOM: shares(1.0, 0.7)}}, "more with the teacher speaks for the pair"),
        ({"information": {Role.RANDOM: shares(0.7, 1.0)}}, "less with the teacher speaks against the pair"),
        (
            {"information": {Role.RANDOM: shares(0.7, 1.0, error=0.2)}},
            "no difference, which speaks neither for the pair",
        ),
        ({"information": {Role.RANDOM: shares(0.7, None)}}, "needs labelled clips"),
        ({"information": {Role.RANDOM: shares(0.05, 0.7)}}, "no more than random pairings"),
        (
            {
                "trained": 0.4,
                "gain": (0.1, 0.03),
                "origin": "This student learned from labels.",
                "information": {Role.RANDOM: shares(0.0, 0.0), Role.TRAINED: shares(2.0, 1.0)},
            },
            "the trained student says 1.00",
        ),
        ({"trained": 0.14, "fresh": 0.01, "gain": (0.13, 0.01)}, "not clearly above"),
    ],
)
def test_conclusions__say_what_the_figures_allow(values, sentence):
    said = conclude(report(**values))
    assert sum(sentence in one for one in said) == 1 and "rest on 100 clips" in said[-1]
