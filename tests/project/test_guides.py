"""The tutorials run from top to bottom: their commands as they stand there, on small videos and small networks."""

import importlib
import re
import shlex
import sys
import types
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import save_file

import crossdistill as cd
from crossdistill.commands.main import main as crossdistill
from crossdistill.recipes.config import from_keywords
from crossdistill.report import cost
from data_prep.__main__ import main as data_prep

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# What makes a training of a guide one of seconds.
SMALL_STUDENT = ["--student-frames", "4", "--student-size", "32"]
SHORT = [*("--epochs", "1", "--batch-size", "8", "--bank-size", "40", "--tracker", "none", "--knn-clips", "0")]
MY_PROJECT = """
import torch
class MyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 768)
    def forward(self, clip):
        return self.layer(clip.mean(dim=(2, 3, 4)))
"""


def blocks_of(name, language):
    """The code blocks of a page in one language."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands_of(name):
    """The commands of a page, continued lines joined."""
    lines = "".join(blocks_of(name, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words, more):
    """Run a command in this process, with more options where its kind has any."""
    for start, program in {("python", "-m", "data_prep"): data_prep, ("crossdistill",): crossdistill}.items():
        if tuple(words[: len(start)]) == start:
            rest = words[len(start) :]
            program([*rest, *more.get(rest[0], [])])
            return
    raise AssertionError(f"no program is known for {words}")


@pytest.fixture
def own_project(tmp_path, toy_folder, monkeypatch):
    """A folder with videos, a labelled dataset and a teacher's code, as the guide supposes them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "MAX_SECONDS", 0.01)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pile" / "of").mkdir(parents=True)
    (tmp_path / "pile" / "of" / "videos").symlink_to(toy_folder / "rgb")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labelled").symlink_to(toy_folder)
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    code, _ = blocks_of("tutorials/own_videos.md", "python")
    assert code.startswith("# teacher.py\n")
    (tmp_path / "teacher.py").write_text(code)
    torch.save(importlib.import_module("my_project").MyNetwork().state_dict(), tmp_path / "mine.pt")
    yield tmp_path
    sys.modules.pop("my_project", None)


def test_own_videos__from_a_pile_to_numbers(own_project):
    more = {
        "folder": ["--short-side", "32", "--workers", "1"],
        "agreement": [*SMALL_STUDENT, "--clips", "24", "--workers", "0"],
        "cache": [*SMALL_STUDENT[:2], "--workers", "0"],
        "train": [*SMALL_STUDENT, *SHORT, "--workers", "0"],
        "report": ["--workers", "0", "--gallery", "1", "--clips", "24"],
        "evaluate": ["--workers", "0"],
    }
    commands = commands_of("tutorials/own_videos.md")
    assert len(commands) == 7
    for words in commands:
        run(words, more)
    assert (own_project / "runs" / "flow_r3d18-from-teacher.py-teacher" / "student" / "student.safetensors").is_file()


def test_own_videos__wraps_a_network_of_single_pictures(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    body = timm.create_model("mobilenetv2_100", num_classes=1001, pad_type="same")
    save_file(body.state_dict(), tmp_path / "mine.safetensors")
    _, code = blocks_of("tutorials/own_videos.md", "python")
    (tmp_path / "teacher.py").write_text(code)
    teacher = cd.create_encoder("teacher.py:teacher", num_frames=1, size_px=64)
    picture = torch.randn(1, 3, 1, 64, 64)
    expected = body.eval().forward_head(body.forward_features(picture[:, :, 0]), pre_logits=True)
    torch.testing.assert_close(teacher.eval()(picture), expected)


def test_first_distillation__runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {
        "toyactions": ["--clips-per-class", "6", "--size", "32", "--frames", "8", "--workers", "1"],
        "inspect": ["--clips", "1"],
        "train": [*SMALL_STUDENT, *SHORT, "--workers", "0"],
        "evaluate": ["--workers", "0"],
        "report": ["--workers", "0", "--gallery", "1", "--clips", "24"],
        "predict": ["--workers", "0", "--clips", "2"],
    }
    commands = commands_of("tutorials/first_distillation.md")
    assert len(commands) == 10
    for words in commands:
        run(words, more)
    assert (tmp_path / "runs" / "flow" / "report.html").is_file()
    assert (tmp_path / "flow.onnx").is_file()


def test_own_training_loop__prints_what_the_page_says(toy_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code, printed in zip(
        blocks_of("tutorials/own_training_loop.md", "python"),
        blocks_of("tutorials/own_training_loop.md", "text"),
        strict=True,
    ):
        capsys.readouterr()
        exec(compile(code, "own_training_loop.md", "exec"), scope)
        assert capsys.readouterr().out == printed


def test_sweep__gives_options_that_exist(monkeypatch, capsys):
    """The trials of the page's Optuna script, and its table of runs, without a training."""

    class Study:
        def optimize(self, objective, n_trials):
            values = {"suggest_float": lambda _, low, high, log: low, "suggest_categorical": lambda _, names: names[-1]}
            self.best_value = objective(types.SimpleNamespace(number=3, **values))
            self.best_params = {}

    class Run:
        def __init__(self, folder):
            self.folder = folder

        def evaluate(self, protocols):
            return types.SimpleNamespace(top1=0.5 if protocols == ["linear"] else None)

        def to_frame(self):
            return pandas.DataFrame({"role": ["student, distilled"], "protocol": ["linear"], "top1": [0.25]})

    configs = []
    monkeypatch.setitem(sys.modules, "optuna", types.SimpleNamespace(create_study=lambda **_: Study()))
    monkeypatch.setattr(cd, "Run", Run)
    monkeypatch.setattr(cd, "distill", lambda **given: configs.append(from_keywords(**given)) or Run(given["out"]))
    for code in blocks_of("how_to/sweep.md", "python"):
        exec(compile(code, "sweep.md", "exec"), {})
    (config,) = configs
    assert (config.data.split, config.optimization.lr, config.objective.objective) == ("1@25%", 1e-4, ("simreg",))
    assert capsys.readouterr().out.endswith("{} 0.5\n")


def test_every_accelerate_file__is_one_that_accelerate_reads():
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    guide = (DOCS / "how_to" / "many_gpus.md").read_text(encoding="utf-8")
    assert {path.name for path in files} == set(re.findall(r"`(\w+\.yaml)`", guide))
    for path in files:
        config = load_config_from_file(str(path))
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config.num_processes == values["num_processes"] and config.num_machines == values["num_machines"]
        # accelerate launch starts one process for MULTI_CPU, whatever the file says.
        assert config.distributed_type.value == values["distributed_type"] == "MULTI_GPU"
