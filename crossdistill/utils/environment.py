"""Describe the software and hardware of a run, and check that torch and torchvision are a matching pair.

``python -m crossdistill.utils.environment`` prints both, to check an installation and for bug reports.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from crossdistill.errors import UserError, friendly_errors

REINSTALL_COMMAND = "python -m pip install --force-reinstall torch torchvision"

SPIN_COUNT = "1000"  # of GNU's OpenMP; docs/LOG.md has what others cost, on idle and on shared cores

LAUNCHERS = ("torchrun", "accelerate")
LAUNCHED = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
"""Variables that launchers set for the processes that they start."""

_PACKAGES = ("crossdistill", "torch", "torchvision", "accelerate", "av")
_CHECKOUT = Path(__file__).resolve().parents[2]
_CPU_INFO = Path("/proc/cpuinfo")

# Errors of importing a broken torch or torchvision: a missing operator (RuntimeError), an undefined symbol or a missing
# shared library (ImportError, OSError), a partially imported module (AttributeError).
_BROKEN_INSTALL_ERRORS = (RuntimeError, ImportError, OSError, AttributeError)


def require_matched_torch() -> None:
    """Import torch and torchvision for a command, and raise an error that says how to fix them if this fails.

    Threads of torch spin for a moment while they wait for each other, and then sleep. By default they spin 300 times as
    long, and on cores that other programs use as well a training step then takes up to several times as long.
    ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` change that.

    Each torchvision is built for one torch. With another torch its import fails with an error that names neither:
    ``operator torchvision::nms does not exist``.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # read once, when torch loads its library of threads
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    versions = {name: installed_version(name) for name in ("torch", "torchvision")}
    for name in versions:
        try:
            importlib.import_module(name)
        except _BROKEN_INSTALL_ERRORS as error:
            raise _broken_install(name, versions, error) from error


def command_as_typed(arguments: Sequence[str], *, prog: str) -> list[str]:
    """Return the words of the command that started this process, with its launcher if that can be known.

    ``torchrun`` and ``accelerate launch`` are the parents of the processes that they start, and end with their command.

    Args:
        arguments: The options of the command.
        prog: The program that has them.
    """
    if not LAUNCHED.isdisjoint(os.environ):
        with contextlib.suppress(psutil.Error):
            words = psutil.Process(os.getppid()).cmdline()
            if words[-len(arguments) :] == [*arguments] and len(words) > len(arguments):
                # A script is shown as its interpreter and its path.
                return [Path(words[1]).name, *words[2:]] if Path(words[1]).name in LAUNCHERS else words
    return [*prog.split(), *arguments]


def describe_environment() -> dict[str, str | int | list[str] | None]:
    """Describe the software and hardware of this process, as it is written into a run's folder. Never raises.

    Versions are None for a package that is not installed; ``cuda`` is the version that torch was built for, None for a
    CPU build.
    """
    cuda, gpus = _cuda_version_and_gpus()
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in _PACKAGES},
        "cuda": cuda,
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_cpu_cores": num_cpu_cores(),
        "gpus": gpus,
    }


def git_commit(checkout: Path = _CHECKOUT) -> str | None:
    """Return the git commit of the checkout that contains this package, followed by ``-dirty`` if files changed.

    None outside a checkout, before the first commit, and without git.
    """
    # git would search the parent folders, and find the user's repository around a virtual environment.
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


def installed_version(package: str) -> str | None:
    """Return the installed version without importing the package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run_git(checkout: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it fails. Variables that a git hook sets are removed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Without locks, a git command that the user runs at the same time does not fail.
    return _output_of(["git", "--no-optional-locks", "-C", str(checkout), *arguments], environment)


def _output_of(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """Return the output of a command; None if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    """Return the model name of the CPU, or else its architecture."""
    name: str | None = None
    with contextlib.suppress(OSError):
        fields = (line.partition(":") for line in _CPU_INFO.read_text("utf-8", "replace").splitlines())
        name = next((value.strip() for key, _, value in fields if key.strip() == "model name"), None)
    if name is None and platform.system() == "Darwin":
        name = _output_of(["sysctl", "-n", "machdep.cpu.brand_string"])
    return name or platform.processor() or platform.machine()


def num_cpu_cores() -> int:
    """Return the number of cores that this process may use, which a container or a cluster job may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda_version_and_gpus() -> tuple[str | None, list[str]]:
    cuda: str | None = None
    try:
        import torch

        cuda = torch.version.cuda
        return cuda, [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (*_BROKEN_INSTALL_ERRORS, AssertionError):
        return cuda, []


@friendly_errors
def main() -> None:
    """Check the installation and print the environment."""
    require_matched_torch()
    for name, value in describe_environment().items():
        print(f"{name:<14} {', '.join(value) or 'none' if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
