"""The check of torch and torchvision, and the description of the environment."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from crossdistill.errors import USER_ERROR_EXIT_STATUS, UserError
from crossdistill.utils.environment import describe_environment, git_commit, require_matched_torch

PACKAGE = Path(__file__).resolve().parents[2] / "crossdistill"

MISSING_OPERATOR = 'raise RuntimeError("operator torchvision::nms does not exist")'
UNDEFINED_SYMBOL = 'raise ImportError("torchvision/_C.so: undefined symbol: _ZN3c106detail")'
HALF_IMPORTED = "raise AttributeError(\"partially initialized module 'torchvision' has no attribute 'extension'\")"


def run_python(*arguments: str, python_path: Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(python_path), **variables}
    environment.pop("CROSSDISTILL_TRACEBACK", None)
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)


def copy_package(folder: Path) -> None:
    """Copy the module and its imports to a folder outside a checkout."""
    (folder / "crossdistill" / "utils").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "utils/__init__.py", "utils/environment.py"):
        shutil.copy(PACKAGE / name, folder / "crossdistill" / name)


def make_checkout(folder: Path) -> str:
    """Make a repository with one commit, and return its hash."""
    folder.mkdir()
    (folder / "file.py").write_text("1\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


COMMANDS = {
    "environment": ["-m", "crossdistill.utils.environment"],
    "train.py": [str(PACKAGE.parent / "train.py")],
    "crossdistill": ["-m", "crossdistill", "train"],
    "demo": [str(PACKAGE.parent / "scripts" / "demo.py")],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command__reports_mismatch_in_one_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(MISSING_OPERATOR + "\n")
    (tmp_path / "torch.py").write_text("")
    done = run_python(*COMMANDS[command], python_path=tmp_path, cwd=PACKAGE.parent)
    assert done.returncode == USER_ERROR_EXIT_STATUS, done.stderr
    assert "Traceback" not in done.stderr and "are not a matching pair" in done.stderr


@pytest.mark.parametrize("failure", [MISSING_OPERATOR, UNDEFINED_SYMBOL, HALF_IMPORTED])
def test_require_matched_torch__mismatch_is_one_sentence(tmp_path: Path, failure: str) -> None:
    for name, content in (("torch", ""), ("torchvision", failure + "\n")):  # an empty torch imports at once
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    done = run_python("-m", "crossdistill.utils.environment", python_path=tmp_path, cwd=PACKAGE.parent)
    assert done.returncode == USER_ERROR_EXIT_STATUS
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("crossdistill: error: ")]
    assert re.search(r"torch \d+\.\d+\S* and torchvision \d+\.\d+\S* are not a matching pair of builds", line)
    assert "python -m pip install --force-reinstall torch torchvision" in line
    assert "CPU-only" in line


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_require_matched_torch__missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"^{missing} is not installed: type python -m pip install torch torchvision"):
        require_matched_torch()


def test_require_matched_torch__broken_torch_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        'raise OSError("libcudart.so.13: cannot open shared object file")\n'
    )
    done = run_python("-m", "crossdistill.utils.environment", python_path=tmp_path, cwd=PACKAGE.parent)
    assert done.returncode == USER_ERROR_EXIT_STATUS
    assert "Traceback" not in done.stderr
    assert "cannot be loaded (libcudart.so.13: cannot open shared object file)" in done.stderr


def test_require_matched_torch__matched_pair_passes() -> None:
    require_matched_torch()


@pytest.mark.skipif(sys.platform != "linux", reason="another library of threads shows no settings")
@pytest.mark.parametrize(
    ("given", "name", "found"),
    [
        ({}, "GOMP_SPINCOUNT", "1000"),
        ({"GOMP_SPINCOUNT": "70"}, "GOMP_SPINCOUNT", "70"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY", "ACTIVE"),
    ],
)
def test_require_matched_torch__waiting_threads_sleep_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str, found: str
) -> None:
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(variable, raising=False)
    command = "-m", "crossdistill.utils.environment"
    done = run_python(*command, python_path=PACKAGE.parent, cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE", **given)
    assert re.findall(rf"{name} = '(\w+)'", done.stderr) == [found]


def test_describe_environment__keys_and_types() -> None:
    described = describe_environment()
    assert described["python"] == platform.python_version()
    assert described["torch"] == torch.__version__.partition("+")[0] or described["torch"] == torch.__version__
    assert str(described["torchvision"]) in torchvision.__version__
    assert described["cuda"] == torch.version.cuda
    for name in ("crossdistill", "accelerate", "av", "platform", "cpu"):
        assert isinstance(described[name], str)
        assert described[name]
    assert isinstance(described["num_cpu_cores"], int)
    assert 1 <= described["num_cpu_cores"] <= (os.cpu_count() or 1)
    assert isinstance(described["gpus"], list)
    assert len(described["gpus"]) == torch.cuda.device_count()
    assert described["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", str(described["git_commit"]))
    assert json.loads(json.dumps(described)) == described


def test_describe_environment__outside_a_checkout_and_without_git_or_torch(tmp_path: Path) -> None:
    copy_package(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError('undefined symbol')\n")
    script = "import json; from crossdistill.utils.environment import *; print(json.dumps(describe_environment()))"
    done = run_python("-c", script, python_path=tmp_path, cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described.keys() == describe_environment().keys()
    assert described["git_commit"] is None
    assert described["cuda"] is None
    assert described["gpus"] == []


def test_git_commit__marks_changed_and_new_files_dirty(tmp_path: Path) -> None:
    commit = make_checkout(tmp_path / "repository")
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert git_commit(tmp_path / "repository") == commit
    (tmp_path / "repository" / "new.py").write_text("")
    assert git_commit(tmp_path / "repository") == f"{commit}-dirty"
    (tmp_path / "repository" / "new.py").unlink()
    (tmp_path / "repository" / "file.py").write_text("22\n")
    assert git_commit(tmp_path / "repository") == f"{commit}-dirty"


def test_git_commit__ignores_variables_of_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = make_checkout(tmp_path / "repository")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_commit(tmp_path / "repository") == commit


def test_git_commit__folder_inside_another_repository_has_none(tmp_path: Path) -> None:
    make_checkout(tmp_path / "repository")
    (tmp_path / "repository" / "site-packages").mkdir()
    assert git_commit(tmp_path / "repository" / "site-packages") is None


def test_git_commit__is_none_without_commit_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path / "repository")
    subprocess.run(["git", "init", "-q", str(tmp_path / "empty")], check=True)
    assert git_commit(tmp_path / "empty") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path / "repository") is None
