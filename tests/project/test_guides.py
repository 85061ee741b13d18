"""The guides are followed: their commands as they stand there, on small videos and small networks."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from in_process import train

from crossdistill.commands.main import main as crossdistill
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


def commands_of(name):
    """The indented commands of a guide, continued lines joined."""
    text = (DOCS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"    \S", line)]


def run(words, more):
    """Run a command in this process, whatever launches it, with more options where its kind has any."""
    programs = {("python", "-m", "data_prep"): data_prep, ("train.py",): train, ("crossdistill",): crossdistill}
    launchers = (("accelerate", "launch"), ())
    for launcher in launchers:
        for start, program in programs.items():
            begin = (*launcher, *start)
            if tuple(words[: len(begin)]) == begin:
                rest = words[len(begin) :]
                kind = "train" if program is train else rest[0]
                program([*rest, *more.get(kind, [])])
                return
    raise AssertionError(f"no program is known for {words}")


@pytest.fixture
def own_project(tmp_path, toy_folder, monkeypatch):
    """A folder with videos, a labelled dataset and a teacher's code, as the guide supposes them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pile" / "of").mkdir(parents=True)
    (tmp_path / "pile" / "of" / "videos").symlink_to(toy_folder / "rgb")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labelled").symlink_to(toy_folder)
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    guide = (DOCS / "guide_own_videos.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```text\n# teacher\.py\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "teacher.py").write_text(code)
    torch.save(importlib.import_module("my_project").MyNetwork().state_dict(), tmp_path / "mine.pt")
    yield tmp_path
    sys.modules.pop("my_project", None)


def test_own_videos__from_a_pile_to_numbers(own_project):
    more = {
        "folder": ["--short-side", "32", "--workers", "1"],
        "transfer": [*SMALL_STUDENT, "--clips", "24", "--workers", "0"],
        "cache": [*SMALL_STUDENT[:2], "--workers", "0"],
        "train": [*SMALL_STUDENT, *SHORT, "--workers", "0"],
        "evaluate": ["--workers", "0"],
    }
    commands = commands_of("guide_own_videos.md")
    assert len(commands) == 6
    for words in commands:
        run(words, more)
    assert (own_project / "runs" / "flow_r3d18-from-teacher.py-teacher" / "student" / "student.safetensors").is_file()


def test_every_accelerate_file__is_one_that_accelerate_reads():
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    guide = (DOCS / "guide_many_gpus.md").read_text(encoding="utf-8")
    assert {path.name for path in files} == set(re.findall(r"`(\w+\.yaml)`", guide))
    for path in files:
        config = load_config_from_file(str(path))
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config.num_processes == values["num_processes"] and config.num_machines == values["num_machines"]
        assert config.distributed_type.value == values["distributed_type"] != "NO"
