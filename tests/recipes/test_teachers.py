"""Several teachers, the student's own past, rounds of self-distillation, and labels beside a teacher."""

import dataclasses
import json
import math
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_process import train as main
from manifest_lines import to_lines
from safetensors.torch import load_file

import crossdistill
from crossdistill.data.distort import _blur, _change_colours, distort
from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Augmentation
from crossdistill.distillation.student_with_heads import MomentumCopy
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.objectives import OBJECTIVES
from crossdistill.recipes import checks
from crossdistill.recipes.config import parse
from crossdistill.recipes.context import Batches, BatchParts
from crossdistill.recipes.teachers import teacher_sources

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    *("--student", "depth_tiny3d_8", "--student-frames", 4, "--student-size", 16, "--epochs", 1, "--batch-size", 8),
    *("--bank-size", 40, "--workers", 0, "--tracker", "none", "--knn-clips", 0, "--log-every-steps", 1, "--lr", 0.002),
]
# A run of fewer epochs could not fill this bank, which would be lowered.
HUGE_BANK = ["--bank-size", 10**12, "--epochs", 10**12]
TWO = ["--teacher", "rgb_tiny3d_8", "flow_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 16]


def train(*options):
    main([str(option) for option in (*TINY, *options)])


@pytest.fixture
def assert_refused(capsys):
    """Runs what is to end with one sentence, and looks for it."""

    def check(run, sentence):
        with pytest.raises(SystemExit):
            run()
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert re.search(sentence, " ".join(error.split())), error

    return check


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "student" / "student.safetensors")


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory):
    """Options of two teachers whose weights are in files."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("rgb_tiny3d_8", "flow_tiny3d_8")):
        torch.manual_seed(seed)
        teacher = crossdistill.create_encoder(name, num_frames=4, size_px=16)
        crossdistill.save_student(teacher, folder / name / "student", facts={})
    return [*TWO, "--teacher-weights", folder / "rgb_tiny3d_8", folder / "flow_tiny3d_8"]


def pair_of_teachers(terms, toy_folder, **options):
    torch.manual_seed(0)
    names = ("depth_tiny3d_8", "rgb_tiny3d_8", "flow_tiny3d_8")
    student, *teachers = (crossdistill.create_encoder(name, num_frames=4, size_px=16) for name in names)
    clips = crossdistill.PairedClips(
        crossdistill.entries_of(crossdistill.Manifest.load(toy_folder), range(8)),
        student_view=student.view,
        teacher_views=[teacher.view for teacher in teachers],
    )
    distiller = crossdistill.Distiller(student=student, teachers=teachers, objective=terms, bank_size=16, **options)
    return distiller, clips.read_batch([SampleKey(i, 0) for i in range(8)])


def test_several_teachers__each_sees_its_view_and_the_loss_is_their_mean(toy_folder):
    distiller, batch = pair_of_teachers(["compress-2q", "simreg:0.5"], toy_folder)
    distiller(batch)
    distiller.after_step()
    output = distiller(batch)
    terms = {name: float(value) for name, value in output.terms.items()}
    assert set(terms) == {"compress-2q@1", "compress-2q@2", "simreg@1", "simreg@2"}
    expected = (
        sum(weight * terms[f"{n}@{i}"] for n, weight in (("compress-2q", 1), ("simreg", 0.5)) for i in (1, 2)) / 2
    )
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)
    for comparison, view in zip(distiller.comparisons, batch.teachers, strict=True):
        alone = comparison.teacher.execution.embed(comparison.teacher.encoder, view)
        torch.testing.assert_close(comparison.bank.teacher_anchors, torch.nn.functional.normalize(alone, dim=1))


def test_teacher_drop__leaves_out_all_but_the_one_with_the_largest_loss(toy_folder):
    distiller, _ = pair_of_teachers(["simreg"], toy_folder, teacher_drop=0.5)
    torch.manual_seed(0)
    weights = torch.stack([distiller._teacher_weights(torch.tensor([0.2, 0.7])) for _ in range(200)])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(200))
    is_left_out = weights[:, 0] == 0
    assert (weights[:, 1] > 0).all() and 70 < int(is_left_out.sum()) < 130
    assert torch.equal(weights[~is_left_out], torch.full((200 - int(is_left_out.sum()), 2), 0.5))


def test_teacher_drop__is_drawn_for_every_sample_that_keeps_its_worst_teacher(toy_folder):
    distiller, _ = pair_of_teachers(["simreg"], toy_folder, teacher_drop=0.25)
    torch.manual_seed(0)
    losses = torch.rand(2, 1000)
    drawn = distiller._teacher_weights(losses)
    worst = losses.argmax(dim=0)
    share_left_out = 0
    for sample in range(1000):
        kept = drawn[:, sample].tolist()
        assert kept[worst[sample]] > 0 and sum(kept) == 1.0
        assert kept in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0])
        share_left_out += (kept != [0.5, 0.5]) / 1000
    assert 0.2 < share_left_out < 0.3
    distiller.eval()
    assert torch.equal(distiller._teacher_weights(losses), torch.full((2, 1000), 0.5))


@pytest.mark.parametrize(("terms", "is_split"), [(["unic", "compress-1q:2"], True), (["unic", "rkd"], False)])
def test_teacher_drop__weighs_the_losses_of_samples_where_all_terms_have_them(terms, is_split, toy_folder, monkeypatch):
    distiller, batch = pair_of_teachers(terms, toy_folder, teacher_drop=0.5)
    distiller(batch)
    distiller.after_step()  # anchors
    seen = []
    real = distiller._teacher_weights

    def spy(losses):
        seen.append((losses, real(losses)))
        return seen[-1][1]

    monkeypatch.setattr(distiller, "_teacher_weights", spy)
    output = distiller(batch)
    ((losses, drawn),) = seen
    assert losses.shape == drawn.shape == ((2, 8) if is_split else (2,))
    of_teachers = [[float(output.terms[f"{name.partition(':')[0]}@{i}"]) for name in terms] for i in (1, 2) if is_split]
    for row, (unic, compress) in zip(losses, of_teachers, strict=False):
        assert float(row.mean()) == pytest.approx(unic + 2 * compress, rel=1e-5)
    naive = sum(float(w) * float(v) for w, v in zip(drawn.flatten(), losses.flatten(), strict=True))
    assert float(output.loss) == pytest.approx(naive / (8 if is_split else 1), rel=1e-5)
    output.loss.backward()
    assert all(p.grad is not None for p in distiller.parameters())


@pytest.mark.parametrize("standardize", ["none", "mean-variance", "phi-s", "running"])
def test_several_teachers__train_resume_and_evaluate(standardize, taught_by, toy_folder, tmp_path, monkeypatch):
    options = [*taught_by, "--data", toy_folder, "--objective", "smooth-l1", "--teacher-drop", 0.5]
    options += ["--standardize", standardize, "--epochs", 2, "--keep-checkpoints"]
    train(*options, "--out", tmp_path / "whole")
    (by_role,) = json.loads((tmp_path / "whole" / "results.json").read_text()).values()
    assert set(by_role) == {"teacher 1", "teacher 2", "student, random", "student, distilled"}
    assert {"smooth-l1@1", "smooth-l1@2"} <= metrics(tmp_path / "whole")[0].keys()
    checkpoints = tmp_path / "whole" / "checkpoints"
    newest = sorted(checkpoints.iterdir())[-1]
    expected = weights(tmp_path / "whole")
    newest.unlink()
    is_measured = standardize in ("mean-variance", "phi-s")
    assert len(list((tmp_path / "whole").glob("standardize-*.safetensors"))) == is_measured
    monkeypatch.setattr(
        "crossdistill.distillation.standardizer.fit_standardizer", None
    )  # the kept maps serve, not new ones
    train(*options, "--out", tmp_path / "whole", "--resume")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "whole").items())


@pytest.mark.parametrize("standardize", ["mean-variance", "running"])
def test_standardised_teachers__give_errors_of_one_size(standardize, taught_by, toy_folder, tmp_path):
    options = [*taught_by, "--data", toy_folder, "--objective", "mse", "--no-evaluate"]
    train(*options, "--out", tmp_path / "raw")
    train(*options, "--standardize", standardize, "--out", tmp_path / "same")
    raw, same = (metrics(tmp_path / name)[0] for name in ("raw", "same"))
    assert 0.5 < same["mse@1"] / same["mse@2"] < 2
    assert 0.5 < same["mse@1"] < 3 and not 0.5 < raw["mse@1"] < 3  # about 1 for a student that knows nothing


def test_self__sees_other_crops_of_the_same_moments_and_follows_the_student(toy_folder, tmp_path):
    options = ["--config", CONFIGS / "isd.yaml", "--data", toy_folder, "--out", tmp_path / "isd", "--epochs", 2]
    train(*options, "--keep-checkpoints")
    (by_role,) = json.loads((tmp_path / "isd" / "results.json").read_text()).values()
    assert set(by_role) == {"student, random", "student, distilled"}
    newest = sorted((tmp_path / "isd" / "checkpoints").iterdir())[-1]
    expected = weights(tmp_path / "isd")
    newest.unlink()
    train(*options, "--resume")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "isd").items())


def test_self__views_share_the_moment_and_not_the_crop(toy_folder):
    student = crossdistill.create_encoder("depth_tiny3d_8", num_frames=1, size_px=24)
    entries = crossdistill.entries_of(crossdistill.Manifest.load(toy_folder), range(4))
    views = {"student_view": student.view, "teacher_views": [student.view]}
    weak, none = Augmentation(area_min=0.2, mirror_probability=0.0), Augmentation(1.0, 1.0, 1.0, 1.0, 0.0)
    for own, is_same in ((None, True), (weak, False)):
        clips = crossdistill.PairedClips(entries, **views, augmentation=none, teacher_augmentation=own)
        batch = clips.read_batch([SampleKey(i, 0) for i in range(4)])
        assert torch.equal(batch.student.values, batch.teachers[0].values) is is_same
    # Without crops of its own nothing but the moment is left, and that is one draw.
    clips = crossdistill.PairedClips(entries, **views, augmentation=none, teacher_augmentation=none)
    batch = clips.read_batch([SampleKey(i, 3) for i in range(4)])
    assert torch.equal(batch.student.values, batch.teachers[0].values)


def test_momentum_copy__is_an_exponential_moving_average():
    slow, fast = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = 0.9 * slow.weight.detach() + 0.1 * fast.weight.detach()
    momentum_copy = MomentumCopy(slow, momentum=0.9)
    momentum_copy.update(fast, gather=lambda tensor: tensor)
    torch.testing.assert_close(momentum_copy.module.weight, expected)


def test_distort__blurs_half_of_the_pictures_and_keeps_their_mean():
    torch.manual_seed(0)
    clip = torch.randn(64, 1, 1, 112, 112)
    blurred = _blur(clip)
    change = (blurred - clip).abs().amax(dim=(1, 2, 3, 4))
    assert 24 < int((change < 1e-6).sum()) < 50, "half of them stay, and those with a very narrow Gaussian"
    assert blurred.var() < clip.var()
    flat = torch.full((4, 3, 1, 32, 32), 0.7)
    torch.testing.assert_close(_blur(flat), flat)


def test_distort__changes_saturation_and_hue_of_pictures_and_keeps_their_brightness():
    torch.manual_seed(0)
    clip = torch.randn(500, 3, 1, 4, 4)
    changed = _change_colours(clip)
    brightness = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close((changed * brightness).sum(1), (clip * brightness).sum(1), atol=2e-3, rtol=0)
    is_gray = (changed.amax(1) - changed.amin(1)).flatten(1).amax(1) < 1e-2
    is_same = (changed - clip).abs().flatten(1).amax(1) < 1e-4
    assert 70 < int(is_gray.sum()) < 130 and 55 < int(is_same.sum()) < 110, "a fifth; a fifth of the others"
    gray = torch.rand(60, 1, 1, 2, 2).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(_change_colours(gray), gray, atol=2e-3, rtol=0)
    # All pixels of a clip turn by one angle and are scaled by one factor in the plane of the two colour axes.
    axes = torch.tensor([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    before, after = (torch.einsum("ac,ncp->nap", axes, each.flatten(2)) for each in (clip, changed))
    factors = torch.complex(after[:, 0], after[:, 1]) / torch.complex(before[:, 0], before[:, 1])
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-2, rtol=1e-2)
    sizes, turns = factors[~is_gray, 0].abs(), factors[~is_gray, 0].angle().abs() / (2 * math.pi)
    assert 0.59 < float(sizes.min()) < 0.7 and 1.3 < float(sizes.max()) < 1.41 and 0.09 < float(turns.max()) < 0.101


def test_distort__changes_contrast_and_erases_boxes_of_half_of_the_clips():
    torch.manual_seed(0)
    clip = torch.ones(400, 2, 3, 10, 10)
    strong = distort(clip)
    is_erased = (strong == 0).flatten(1).any(dim=1)
    assert 150 < int(is_erased.sum()) < 250
    kept = strong[~is_erased]
    assert torch.equal(kept, kept[:, :, :1, :1, :1].expand_as(kept))  # one gain and offset a channel
    assert kept.std() > 0.1 and float(kept.min()) > 0.2 and float(kept.max()) < 1.8
    share = (strong[is_erased] == 0).float().mean(dim=(1, 2, 3, 4))
    assert float(share.min()) > 0.03 and float(share.max()) < 0.31
    assert torch.equal(clip, torch.ones_like(clip))


def test_rounds__each_student_teaches_the_next(toy_folder, tmp_path):
    train("--supervised", "--rounds", 3, "--data", toy_folder, "--out", tmp_path / "rounds")
    (by_role,) = json.loads((tmp_path / "rounds" / "results.json").read_text()).values()
    assert list(by_role) == [
        "student, supervised, round 1",
        "student, distilled, round 2",
        "student, distilled, round 3",
    ]
    facts = [json.loads((tmp_path / "rounds" / f"round-{n}/student/student.json").read_text()) for n in (1, 2, 3)]
    assert facts[0]["training"]["supervised"]
    for before, after in zip((1, 2), facts[1:], strict=True):
        taught = crossdistill.load_student(tmp_path / "rounds" / f"round-{before}")
        assert after["training"]["teacher_weights_sha256"] == weights_hash(taught)
    last = crossdistill.load_student(tmp_path / "rounds")
    assert weights_hash(last) == weights_hash(crossdistill.load_student(tmp_path / "rounds" / "round-3"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--objective", "compress-1q", *HUGE_BANK],
            r"a bank of 1000000000000 anchors needs [\d.]+ GB",
        ),
        (["--student", "rgb_x3d_s", "--objective", "attention-transfer"], "rgb_x3d_s has 4 weights after its tokens"),
    ],
)
def test_rounds__errors_of_later_rounds_are_raised_before_the_first(
    options, sentence, toy_folder, tmp_path, assert_refused
):
    run = ["--supervised", "--rounds", 2, "--data", toy_folder, "--out", tmp_path / "x", "--no-evaluate"]
    assert_refused(lambda: train(*run, *options), sentence)
    assert not (tmp_path / "x").exists()


def test_labels_beside_a_teacher__train_a_classifier(taught_by, toy_folder, tmp_path):
    options = ["--config", CONFIGS / "mars.yaml", *TWO[:1], *TWO[2:], "--teacher-weights", taught_by[-1]]
    train(*options, "--data", toy_folder, "--out", tmp_path / "mars", "--epochs", 12, "--lr", 0.01)
    rows = metrics(tmp_path / "mars")
    first, last = (
        {name: sum(row[name] for row in part) / 4 for name in ("cross-entropy", "mse")}
        for part in (rows[:4], rows[-6:-2])
    )
    assert last["cross-entropy"] < first["cross-entropy"] and last["mse"] < 0.8 * first["mse"]
    assert (tmp_path / "mars" / "student" / "classifier.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*TWO, "--teacher-weights", "a", "b", "c"], "--teacher-weights has 3 values for 2 teachers: give one for all"),
        ([*TWO, "--teacher-weights", "nowhere"], "nowhere does not exist: give a weight file or a run's folder"),
        (["--teacher", "self", "flow_tiny3d_8"], "--teacher self changes during training"),
        (["--teacher", "self", "--standardize", "phi-s"], "no --rounds and no --standardize but running"),
        (["--teacher", "self", "--objective", "kd"], "kd needs a classifier, but --teacher self has none"),
        (["--teacher", "self", "--teacher-weights", "x"], "--teacher self starts as the student"),
        (["--teacher", "self", "--teacher-cache", "x"], "there is no teacher cache in x"),
        ([*TWO, "--objective", "mse", "--temperature", 0.1], "--temperature has no effect with --objective mse"),
        (
            [*TWO, "--objective", "token-matching", "--standardize", "phi-s"],
            "--standardize has no effect with --objective token-matching",
        ),
        ([TWO[0], TWO[1], "--teacher-drop", 0.5], "--teacher-drop leaves out one of several teachers"),
        (["--supervised", "--mix"], "--mix makes clips without a label of their own, and this run uses labels"),
        ([*TWO, "--objective", "cross-entropy", "simreg", "--mix"], "--mix makes clips without a label of their own"),
        (["--supervised", "--strong-views"], "--strong-views has no effect with --supervised"),
        ([TWO[0], TWO[1], "--rounds", 2, "--objective", "kd"], "--rounds needs a classifier of each student"),
        ([*TWO, *HUGE_BANK], r"a bank of 1000000000000 anchors needs [\d.]+ GB"),
        ([*TWO, "--teacher-drop", 1.0], "--teacher-drop is 1.0: input should be less than 1"),
        (
            ["--teacher", "self", *HUGE_BANK],
            r"a bank of 1000000000000 anchors needs [\d.]+ GB",
        ),
    ],
)
def test_invalid_options__are_refused_in_one_sentence(options, sentence, toy_folder, tmp_path, assert_refused):
    objective = [] if "--objective" in options else ["--objective", "compress-1q"]
    assert_refused(lambda: train("--data", toy_folder, "--out", tmp_path / "x", *objective, *options), sentence)


@pytest.mark.parametrize(
    ("device", "free_gb", "sentence"),
    [
        ("cpu", {"cpu": 1.1}, "needs 2.0 GB, and 1.1 GB are free on cpu: lower"),  # two processes
        ("cpu", {"cpu": 2.1}, None),
        ("cuda", {"cpu": 0.9, "cuda": 1.1}, "needs 1.0 GB, and 0.9 GB are free on cpu, through which its checkpoints"),
        ("cuda", {"cpu": 1.1, "cuda": 0.9}, "needs 1.0 GB, and 0.9 GB are free on cuda: lower"),
        ("cuda", {"cpu": 1.1, "cuda": 1.1}, None),
    ],
)
def test_bank__fits_where_it_is_and_where_it_is_written_from(device, free_gb, sentence, toy_folder, monkeypatch):
    monkeypatch.setattr(checks, "free_memory_bytes", lambda where: int(free_gb[where.type] * 1e9))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=2)
    options = [*TINY, TWO[0], TWO[1], "--data", toy_folder, "--objective", "compress-1q", "--bank-size", 10**9 // 1024]
    options += ["--epochs", 10**9]  # so many that the bank is filled
    config = parse([str(option) for option in options])
    with nullcontext() if sentence is None else pytest.raises(UserError, match=sentence):
        batches = Batches(BatchParts(2, 8), BatchParts(2, 8))
        checks.check_data_and_memory(config, teacher_sources(config), [Manifest.load(toy_folder)], accelerator, batches)


def test_teachers_whose_data_lacks_a_modality__are_named(taught_by, toy_folder, tmp_path, assert_refused):
    folder = tmp_path / "no-flow"
    folder.mkdir()
    shutil.copy(toy_folder / MANIFEST_NAME, folder)
    to_lines(folder, lambda _, rows: [row["streams"].pop("flow") for row in rows])
    refused = r"a flow encoder needs the stream 'flow', but the dataset .* has only"
    assert_refused(lambda: train("--data", folder, "--out", tmp_path / "x", *taught_by), refused)


def test_given_weights_without_a_classifier__are_refused_before_another_teacher_is_trained(
    taught_by, toy_folder, tmp_path, assert_refused
):
    options = [*TWO, "--teacher-weights", "auto", taught_by[-1], "--teacher-epochs", 1, "--objective", "kd"]
    refused = "the weights of flow_tiny3d_8 came without a linear classifier"
    assert_refused(lambda: train(*options, "--data", toy_folder, "--out", tmp_path / "x"), refused)
    assert list(tmp_path.iterdir()) == []


def test_not_finite__names_the_first_step_and_its_term(taught_by, toy_folder, tmp_path, assert_refused, monkeypatch):
    calls = []

    def broken_at_the_sixth(*, student, teacher):
        calls.append(1)
        return student.square().mean() * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setitem(OBJECTIVES, "mse", dataclasses.replace(OBJECTIVES["mse"], loss=broken_at_the_sixth))
    options = [*TWO[:2], *TWO[3:], "--teacher-weights", taught_by[-2], "--objective", "compress-1q", "mse:1"]
    more = ["--epochs", 3, "--checkpoint-every-steps", 4, "--log-every-steps", 10, "--no-evaluate"]
    refused = r"NaN or infinite loss \(mse\) at step 6: lower --lr"
    assert_refused(lambda: train(*options, *more, "--data", toy_folder, "--out", tmp_path / "x"), refused)


def test_clips_without_a_label__are_refused_where_labels_are_needed(taught_by, toy_folder, tmp_path, assert_refused):
    folder = shutil.copytree(toy_folder, tmp_path / "half")
    to_lines(folder, lambda _, rows: [row.update(label=None) for row in rows[::2]])
    refused = r"the objective cross-entropy needs labels, and \d+ of \d+ training clips have none \(first: "
    terms = ["--objective", "cross-entropy", "mse"]
    assert_refused(lambda: train("--data", folder, "--out", tmp_path / "x", *taught_by, *terms), refused)


def test_rounds__do_not_change_a_finished_run(toy_folder, tmp_path, assert_refused):
    options = ["--supervised", "--data", toy_folder, "--out", tmp_path / "run", "--no-evaluate"]
    train(*options)
    before = weights(tmp_path / "run")
    assert_refused(lambda: train(*options, "--rounds", 2), "already holds a run: add --resume to continue it")
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
