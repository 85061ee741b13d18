"""Describe the software and hardware of a run, and check that torch and torchvision are a matching pair.

``python -m crossdistill.utils.environment`` prints both, to check an installation and for bug reports.
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

# Errors of importing a broken torch or torchvision: a missing operator (RuntimeError), an undefined symbol or a missing
# shared library (ImportError, OSError), a partially imported module (AttributeError).
_BROKEN_INSTALL_ERRORS = (RuntimeError, ImportError, OSError, AttributeError)


def require_matched_torch() -> None:
    """Import torch and torchvision, and raise an error that says how to fix them if this fails.

    Each torchvision is built for one torch. With another torch its import fails with an error that names neither:
    ``operator torchvision::nms does not exist``.

    Raises:
        UserError: One of them is not installed, torch cannot be loaded, or torchvision was built for another torch.
    """
    versions = {name: _version(name) for name in ("torch", "torchvision")}
    for name in versions:
        try:
            importlib.import_module(name)
        except _BROKEN_INSTALL_ERRORS as error:
            raise _broken_install(name, versions, error) from error


def describe_environment() -> dict[str, str | int | list[str] | None]:
    """Describe the software and hardware of this process, as it is written into a run's folder. Never raises.

    Returns:
        The versions of ``python``, ``crossdistill``, ``torch``, ``torchvision``, ``accelerate`` and ``av`` (None if not
        installed); ``cuda``, the version that torch was built for (None for a CPU build); ``git_commit``, see
        ``git_commit``; ``platform``; ``cpu``, the name of the model; ``num_cpu_cores``, the number of cores that this
        process may use; ``gpus``, the names of the GPUs.
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
    """Return the git commit of the checkout that contains this package.

    Args:
        checkout: Root of the repository. A folder inside another repository, such as a virtual environment in a user's
            project, does not count as a checkout.

    Returns:
        40 hexadecimal digits, followed by ``-dirty`` if tracked files were changed or untracked files exist. None
        outside a checkout, before the first commit, and without git.
    """
    # git would search the parent folders and find another repository.
    if not (checkout / ".git").exists():
        return None
    commit = _run_git(checkout, "rev-parse", "HEAD")
    changes = _run_git(checkout, "status", "--porcelain")
    if not commit or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


def _broken_install(name: str, versions: dict[str, str | None], error: BaseException) -> UserError:
    """Return the error for a torch or torchvision that cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name in versions:
        return UserError(
            f"{error.name} is not installed: type python -m pip install torch torchvision, "
            "in one command, so that pip installs a pair"
        )
    reason = str(error).partition("\n")[0]
    if name == "torch" or isinstance(error, ModuleNotFoundError):
        return UserError(f"{name} {versions[name]} cannot be loaded ({reason}): type {REINSTALL_COMMAND}")
    return UserError(
        f"torch {versions['torch']} and torchvision {versions['torchvision']} are not a matching pair of builds "
        f"({reason}); often torch is a CPU-only build and torchvision is not: type {REINSTALL_COMMAND}, "
        "in one command, so that pip installs a pair"
    )


def _version(package: str) -> str | None:
    """Return the installed version without importing the package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run_git(checkout: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it fails. Variables that a git hook sets are removed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Without locks, a git command that the user runs at the same time does not fail.
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    return _output_of(command, environment)


def _output_of(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """Return the output of a command; None if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=_COMMAND_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    """Return the model name of the CPU, or else its architecture."""
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
    """Return the number of cores that this process may use, which a container or a cluster job may limit."""
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
    """Check the installation and print the environment."""
    require_matched_torch()
    for name, value in describe_environment().items():
        print(f"{name:<14} {', '.join(value) or 'none' if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
