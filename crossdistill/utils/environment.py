"""What a run ran on, and whether torch and torchvision belong together.

``python -m crossdistill.utils.environment`` prints it, for installation and for reports of bugs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from crossdistill.errors import UserError, friendly_errors

REINSTALL_COMMAND = "python -m pip install --force-reinstall torch torchvision"

_PACKAGES = ("crossdistill", "torch", "torchvision", "accelerate", "av")
_CHECKOUT = Path(__file__).resolve().parents[2]
_CPU_INFO = Path("/proc/cpuinfo")
_COMMAND_TIMEOUT_SECONDS = 10.0

# What importing a broken installation of torch or torchvision raises: a missing operator (RuntimeError),
# an undefined symbol or a missing shared library (ImportError, OSError), a half-imported module
# (AttributeError).
_BROKEN_INSTALL_ERRORS = (RuntimeError, ImportError, OSError, AttributeError)


def require_matched_torch() -> None:
    """Import torch and torchvision, or say how to mend them.

    Their compiled parts are built as pairs. Beside another torch, torchvision fails when it is imported,
    with a message that names neither: ``operator torchvision::nms does not exist``.

    Raises:
        UserError: One of them is missing, torch cannot be loaded, or torchvision is not of torch's build.
    """
    versions = {name: _version(name) for name in ("torch", "torchvision")}
    for name in versions:
        try:
            importlib.import_module(name)
        except _BROKEN_INSTALL_ERRORS as error:
            raise _broken_install(name, versions, error) from error


def describe_environment() -> dict[str, str | int | list[str] | None]:
    """Describe what this process runs on, in the form that is written into a run. Never raises.

    Returns:
        Versions of ``python``, ``crossdistill``, ``torch``, ``torchvision``, ``accelerate`` and ``av``
        (None where one is not installed); ``cuda``, which torch was built for (None in a CPU build);
        ``git_commit`` (see :func:`git_commit`); ``platform``; ``cpu``, the model's name;
        ``num_cpu_cores`` that this process may use; ``gpus``, their names.
    """
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "cuda": _cuda_version(),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_cpu_cores": _num_cpu_cores(),
        "gpus": _gpu_names(),
    }


def git_commit(checkout: Path = _CHECKOUT) -> str | None:
    """The commit of the checkout that this package lies in, with ``-dirty`` where files differ from it.

    Args:
        checkout: The repository's root. A folder inside of another repository, such as a virtual
            environment in somebody's project, is not a checkout of ours.

    Returns:
        40 hexadecimal digits, with ``-dirty`` behind where tracked files were changed or new files lie
        about; None outside of a checkout, before the first commit, and without git.
    """
    if not (checkout / ".git").exists():
        return None
    commit = _run_git(checkout, "rev-parse", "HEAD")
    changes = _run_git(checkout, "status", "--porcelain")
    if not commit or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


def _broken_install(name: str, versions: dict[str, str | None], error: BaseException) -> UserError:
    """Build the error for a torch or torchvision that cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name in versions:
        return UserError(
            f"{error.name} is not installed: type python -m pip install torch torchvision, "
            "in one command so that pip chooses them as a pair"
        )
    reason = str(error).partition("\n")[0]
    if name == "torch" or isinstance(error, ModuleNotFoundError):
        return UserError(f"{name} {versions[name]} cannot be loaded ({reason}): type {REINSTALL_COMMAND}")
    return UserError(
        f"torch {versions['torch']} and torchvision {versions['torchvision']} are builds that do not belong together "
        f"({reason}), often a CPU-only torch beside a torchvision from the registry: type {REINSTALL_COMMAND}, "
        "in one command so that pip chooses them as a pair"
    )


def _version(package: str) -> str | None:
    """The installed version, read without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run_git(checkout: Path, *arguments: str) -> str | None:
    """Git's answer, or None where it fails. Variables that a git hook sets do not lead it elsewhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    return _output_of(command, environment)


def _output_of(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """What a command prints, or None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=_COMMAND_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    """The CPU's name as its maker writes it, or else the architecture."""
    name = _cpu_model_of_linux()
    if name is None and platform.system() == "Darwin":
        name = _output_of(["sysctl", "-n", "machdep.cpu.brand_string"])
    return name or platform.processor() or platform.machine()


def _cpu_model_of_linux() -> str | None:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == "model name"), None)


def _num_cpu_cores() -> int:
    """Cores that this process may use: fewer than the machine has, in a container or a cluster's job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_version() -> str | None:
    try:
        import torch

        return torch.version.cuda
    except _BROKEN_INSTALL_ERRORS:
        return None


def _gpu_names() -> list[str]:
    try:
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (*_BROKEN_INSTALL_ERRORS, AssertionError):
        return []


@friendly_errors
def main() -> None:
    """Check the installation and print what it consists of."""
    require_matched_torch()
    for name, value in describe_environment().items():
        print(f"{name:<14} {', '.join(value) or 'none' if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
