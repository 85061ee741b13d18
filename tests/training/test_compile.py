"""``--compile`` and ``--gradient-checkpointing`` in whole runs."""

import os
import subprocess

import pytest
import torch
from in_process import train
from safetensors.torch import load_file
from test_gradient_scaling import tiny_teacher  # noqa: F401 - a fixture
from test_processes import KILLED_SCRIPT, PAIR, TINY, command, finish, losses, start, train_until_killed

from crossdistill.distillation.distiller import Distiller
from crossdistill.encoders import create_encoder
from crossdistill.encoders.compilation import compiled
from crossdistill.errors import UserError
from crossdistill.export.export import export_file
from crossdistill.recipes.config import from_keywords
from crossdistill.recipes.identity import identity
from crossdistill.training.checkpoint import Checkpoints


def run(toy_folder, weights, out, *more, teacher="rgb_tiny3d_8", student="flow_tiny3d_8"):
    views = ["--teacher-frames", 4, "--teacher-size", 32]
    names = ["--teacher", teacher, "--student", student, "--teacher-weights", weights]
    options = [*TINY, *views, *names, "--data", toy_folder, "--batch-size", 8, "--epochs", 2, "--out", out]
    train([*options, "--workers", 0, *more])


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_folder, tiny_teacher):  # noqa: F811
    """The same run without and with the compiler; compress-2q has an EMA copy, token-matching needs a hook."""
    folder, options = tmp_path_factory.mktemp("both"), ["--objective", "compress-2q", "token-matching"]
    torch._dynamo.utils.counters.clear()
    run(toy_folder, tiny_teacher, folder / "plain", *options)
    assert not torch._dynamo.utils.counters["stats"]
    run(toy_folder, tiny_teacher, folder / "compiled", *options, "--compile")
    return folder, dict(torch._dynamo.utils.counters["stats"]), dict(torch._dynamo.utils.counters["graph_break"])


def test_compile__compiles_student_and_teacher_whole(both):
    _, stats, breaks = both
    assert stats["unique_graphs"] == 3  # the student, the teacher, and the function that tries the compiler
    assert not breaks


def test_compile__learns_the_same(both):
    folder, _, _ = both
    plain, fast = losses(folder / "plain"), losses(folder / "compiled")
    assert plain.keys() == fast.keys() and len(plain) == 8
    assert plain == pytest.approx(fast, rel=1e-3)


def test_compile__leaves_all_names(both):
    folder, _, _ = both
    one, other = (Checkpoints(folder / name / "checkpoints").load_newest()[1] for name in ("plain", "compiled"))
    assert one["trainable"].keys() == other["trainable"].keys()
    assert one["task"]["ema"].keys() == other["task"]["ema"].keys()
    student = "student/student.safetensors"
    assert load_file(folder / "plain" / student).keys() == load_file(folder / "compiled" / student).keys()


def test_compile__student_can_be_exported(both, toy_folder, tmp_path):
    folder, _, _ = both
    exported = export_file(folder / "compiled", tmp_path / "student.pt", to="torchscript", data=toy_folder)
    assert exported.num_bytes > 1000  # and its embeddings agree with PyTorch's, or the call had raised


@pytest.mark.slow
def test_resume__compiled_run_ends_with_the_same_bits(tmp_path, both, toy_folder, tiny_teacher):  # noqa: F811
    folder, _, _ = both
    views = ["--teacher-frames", 4, "--teacher-size", 32, "--objective", "compress-2q", "token-matching"]
    options = [*views, "--teacher", "rgb_tiny3d_8", "--student", "flow_tiny3d_8", "--teacher-weights", tiny_teacher]
    options += ["--data", toy_folder, "--batch-size", 8, "--epochs", 2, "--compile", "--checkpoint-every-steps", 2]
    killed = tmp_path / "killed"
    train_until_killed(command(*options, "--out", killed, "--resume", script=KILLED_SCRIPT), 5)
    finish(start(command(*options, "--out", killed, "--resume")))
    student = "student/student.safetensors"
    assert (folder / "compiled" / student).read_bytes() == (killed / student).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--gradient-checkpointing"]])
def test_two_processes__compiled_learn_what_they_learn_without(tmp_path, toy_folder, teacher_file, more):
    options = [*PAIR, "--teacher-weights", teacher_file, "--data", toy_folder, "--epochs", 2, "--batch-size", 4]
    options += ["--accumulate", 2, "--objective", "compress-2q", "--optimizer", "sgd", "--lr", 0.05]
    plain, fast = tmp_path / "plain", tmp_path / "fast"
    finish(start(command(*options, "--out", plain, processes=2)))
    finish(start(command(*options, "--out", fast, "--compile", *more, processes=2)))
    assert losses(plain) == pytest.approx(losses(fast), rel=1e-3)


def test_gradient_checkpointing__run_has_the_same_bits(tmp_path, toy_folder, teacher_file):
    """With an EMA copy of the student, whose blocks are copied with it."""
    pair = {"teacher": "rgb_r3d10_gn", "student": "flow_r3d10"}
    run(toy_folder, teacher_file, tmp_path / "plain", "--objective", "compress-2q", **pair)
    run(toy_folder, teacher_file, tmp_path / "less", "--objective", "compress-2q", "--gradient-checkpointing", **pair)
    student = "student/student.safetensors"
    assert (tmp_path / "plain" / student).read_bytes() == (tmp_path / "less" / student).read_bytes()
    assert losses(tmp_path / "plain") == losses(tmp_path / "less")


def test_gradient_checkpointing__is_refused_before_anything_is_made(tmp_path, toy_folder, tiny_teacher, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        run(toy_folder, tiny_teacher, tmp_path / "run", "--gradient-checkpointing")
    assert "flow_tiny3d_8 has no repeated blocks to recompute: remove --grad" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_identity__has_compile_only_where_it_was_asked_for():
    """A run from before the option is resumed without it; recomputation changes no bit, so it may change."""
    names = {"teacher": "rgb_r3d18", "student": "flow_r3d18", "data": "x"}
    plain = identity(from_keywords(**names))
    assert "compile" not in plain["machine"]
    assert identity(from_keywords(**names, compile=True))["machine"]["compile"] is True
    assert identity(from_keywords(**names, gradient_checkpointing=True)) == plain


def test_compile__without_a_compiler_is_one_sentence(tmp_path, toy_folder, tiny_teacher):  # noqa: F811
    options = ["--teacher", "rgb_tiny3d_8", "--student", "flow_tiny3d_8", "--teacher-weights", tiny_teacher]
    options += ["--data", toy_folder, "--out", tmp_path / "run", "--compile"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("crossdistill: error: --compile needs a C++ compiler")
    assert "no-such-compiler" in line and "remove --compile" in line
    assert not (tmp_path / "run").exists()


def test_compiled__error_of_the_compiler_is_one_sentence(monkeypatch):
    def fail(graph, inputs):
        raise ValueError("this operator is unknown.\nmore")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=fail))
    call = compiled(lambda tensor: tensor.sin(), name="mine")
    with pytest.raises(UserError, match=r"mine cannot be compiled \(.*\): remove --compile"):
        call(torch.ones(2))


def test_distiller__of_a_loop_of_ones_own_can_be_compiled():
    torch.manual_seed(0)
    encoder, teacher = (create_encoder(name, num_frames=4, size_px=16) for name in ("flow_tiny3d_8", "rgb_tiny3d_8"))
    distiller = Distiller(student=encoder, teachers=teacher, objective="simreg")
    clips = torch.randn(2, 2, 4, 16, 16)
    seen = []
    distiller.wrap(lambda module: lambda *given: seen.append(len(given)) or module(*given))
    assert distiller(clips, torch.randn(2, 3, 4, 16, 16)).loss.requires_grad and seen == [2]
