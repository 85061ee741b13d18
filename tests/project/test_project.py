"""Rules that the whole project keeps. Each rule is a function from text to offences, tried on an offender first."""

from __future__ import annotations

import ast
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import PATIENCE_SECONDS

from crossdistill.modalities import MODALITIES

ROOT = Path(__file__).resolve().parents[2]

MAX_FUNCTION_LINES = 80
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle"}
BLIND_EXCEPTIONS = {"Exception", "BaseException"}
MODALITY_NAMES = set(MODALITIES)
# The two places that may ask for a modality by its name: its definition, and how its files are coded.
MODALITY_ROOMS = {ROOT / "crossdistill" / "modalities.py", ROOT / "crossdistill" / "data" / "streams.py"}
# Start of a path that exists on one developer's machine only. Joined here, so that this file passes the check itself.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:" + "|".join(("work", "root")) + r")/")

MAX_IMPORT_RATIO = 1.2
IMPORT_ALLOWANCE_SECONDS = 0.3
NUM_IMPORT_TIMINGS = 3

Rule = Callable[[ast.AST], Iterator[str]]


def python_files() -> list[Path]:
    folders = (ROOT / "crossdistill", ROOT / "data_prep")
    return sorted(path for folder in folders for path in folder.rglob("*.py")) + sorted(ROOT.glob("train.py"))


def offences(rule: Rule, paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}:{offence}" for offence in rule(tree)]
    return found


def offences_of(rule: Rule, source: str) -> list[str]:
    return list(rule(ast.parse(source)))


def dotted_name(node: ast.AST) -> str:
    """``a.b.c`` of an expression that is one, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return ""


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno} {node.name} has {num_lines} lines"


def is_blind(caught: ast.AST | None) -> bool:
    """Whether an ``except`` clause catches everything, alone or among others."""
    if isinstance(caught, ast.Tuple):
        return any(is_blind(item) for item in caught.elts)
    return caught is None or dotted_name(caught).rpartition(".")[2] in BLIND_EXCEPTIONS


def swallowed_exceptions(tree: ast.AST) -> Iterator[str]:
    """Blind handlers that neither raise nor look at the exception, and ``suppress(Exception)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and is_blind(node.type):
            inside = [inner for statement in node.body for inner in ast.walk(statement)]
            raises = any(isinstance(inner, ast.Raise) for inner in inside)
            looks = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
            if not raises and not looks:
                yield f"{node.lineno} an exception is swallowed"
        elif isinstance(node, ast.Call) and dotted_name(node.func).rpartition(".")[2] == "suppress":
            yield from (f"{node.lineno} an exception is suppressed" for argument in node.args if is_blind(argument))


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    """What could run code out of a file: pickles, and torch.load and np.load where they allow them."""
    for node in ast.walk(tree):
        yield from (f"{node.lineno} uses {name}" for name in pickle_names(node))
        if isinstance(node, ast.Call):
            true_words = {word.arg for word in node.keywords if getattr(word.value, "value", None) is True}
            if dotted_name(node.func) == "torch.load" and "weights_only" not in true_words:
                yield f"{node.lineno} torch.load without weights_only=True"
            if "allow_pickle" in true_words:
                yield f"{node.lineno} allow_pickle=True"


def pickle_names(node: ast.AST) -> list[str]:
    """What one node takes from a pickle module, and torch.load under a bare name."""
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in names if name == "torch.load" or is_pickle_use(name)]
    if isinstance(node, ast.Import):
        return [f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname and alias.name in PICKLES]
    name = dotted_name(node) if isinstance(node, ast.Attribute) else ""
    return [name] if is_pickle_use(name) else []


def is_pickle_use(name: str) -> bool:
    """Anything of a pickle module but its exceptions, which whoever calls torch.load must catch."""
    return name.partition(".")[0] in PICKLES and not name.endswith("Error")


def modality_comparisons(tree: ast.AST) -> Iterator[str]:
    """Comparisons and match cases with a modality's name written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            sides = [item for side in sides for item in getattr(side, "elts", [side])]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        for side in sides:
            if isinstance(side, ast.Constant) and side.value in MODALITY_NAMES:
                yield f"{node.lineno} compares with {side.value!r}"


def machine_paths(text: str) -> list[str]:
    return [f"{number} {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*)\s*:(?!=)", makefile, flags=re.MULTILINE))


def make_commands(markdown: str) -> set[str]:
    """Targets that a page tells to make, in code between backticks and in fenced blocks."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in fenced for line in block.splitlines()] + inline
    commands = (re.match(r"\s*(?:\$ )?make((?: [a-z][a-z-]*)+)", line) for line in lines)
    return {target for command in commands if command for target in command[1].split()}


def pinned_names(constraints: str) -> set[str]:
    return {normal_name(name) for name in re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)}


def normal_name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def repository_files(*options: str, root: Path = ROOT) -> list[Path]:
    """Files of the checkout as ``git ls-files`` selects them."""
    command = ["git", "ls-files", "-z", "--exclude-standard", *options]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [root / name for name in listing.stdout.split("\0") if name and (root / name).is_file()]


def seconds_to_import(modules: str) -> float:
    """Processor seconds of a fresh interpreter, which other work on the machine changes little."""
    script = f"import time; start = time.process_time(); import {modules}; print(time.process_time() - start)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def test_functions_are_short() -> None:
    assert offences(long_functions, python_files()) == []


@pytest.mark.parametrize(("num_lines", "num_offences"), [(80, 0), (81, 1)])
def test_long_functions__finds_an_offender(num_lines: int, num_offences: int) -> None:
    source = "class A:\n    async def f():\n" + "        x = 1\n" * (num_lines - 1)
    assert len(offences_of(long_functions, source)) == num_offences


def test_no_exception_is_swallowed() -> None:
    assert offences(swallowed_exceptions, python_files()) == []


@pytest.mark.parametrize(
    ("handler", "num_offences"),
    [
        ("except Exception:\n    pass", 1),
        ("except:\n    x = 1", 1),
        ("except (ValueError, BaseException) as error:\n    print('went wrong')", 1),
        ("except builtins.Exception:\n    pass", 1),
        ("except ValueError:\n    pass", 0),
        ("except Exception as error:\n    failures.append(error)", 0),
        ("except Exception:\n    clean_up()\n    raise", 0),
    ],
)
def test_swallowed_exceptions__finds_an_offender(handler: str, num_offences: int) -> None:
    assert len(offences_of(swallowed_exceptions, f"try:\n    f()\n{handler}\n")) == num_offences


def test_swallowed_exceptions__finds_suppress() -> None:
    assert offences_of(swallowed_exceptions, "with contextlib.suppress(Exception):\n    f()\n")
    assert not offences_of(swallowed_exceptions, "with contextlib.suppress(OSError):\n    f()\n")


def test_nothing_loads_pickles() -> None:
    assert offences(unsafe_loads, python_files()) == []


@pytest.mark.parametrize(
    ("source", "num_offences"),
    [
        ("torch.load(path)", 1),
        ("torch.load(path, map_location='cpu', weights_only=False)", 1),
        ("torch.load(path, weights_only=flag)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("json.load(file)", 0),
        ("import pickle\nx = pickle.loads(content)", 1),
        ("import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    raise", 0),
        ("from pickle import UnpicklingError", 0),
        ("import os, pickle as p", 1),
        ("import numpy as np", 0),
        ("from torch import load", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=False)", 0),
    ],
)
def test_unsafe_loads__finds_an_offender(source: str, num_offences: int) -> None:
    assert len(offences_of(unsafe_loads, source)) == num_offences


def test_unsafe_loads__finds_from_pickle() -> None:
    assert offences_of(unsafe_loads, "def f():\n    from pickle import loads\n")


def test_modalities_are_data_not_code_paths() -> None:
    paths = [path for path in (ROOT / "crossdistill").rglob("*.py") if path not in MODALITY_ROOMS]
    assert offences(modality_comparisons, paths) == []


@pytest.mark.parametrize(
    ("source", "num_offences"),
    [
        ("modality == 'flow'", 1),
        ("'depth' != view.modality.name", 1),
        ("name in ('rgb', 'audio')", 1),
        ("name not in {'image'}", 1),
        ("match name:\n    case 'flow':\n        pass", 1),
        ("modality.name == other.name", 0),
        ("kind == 'flowing'", 0),
        ("encoder = 'rgb'", 0),
    ],
)
def test_modality_comparisons__finds_an_offender(source: str, num_offences: int) -> None:
    assert len(offences_of(modality_comparisons, source)) == num_offences


def test_modality_names__are_the_four_of_the_design() -> None:
    assert {"image", "rgb", "flow", "depth"} <= MODALITY_NAMES


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in repository_files("--cached", "--others"):
        content = path.read_bytes()
        if b"\0" not in content:
            text = content.decode("utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}:{line}" for line in machine_paths(text)]
    assert found == []


@pytest.mark.parametrize("folder", ["work", "root"])
def test_machine_paths__finds_an_offender(folder: str) -> None:
    assert machine_paths(f"one\npath = '/{folder}/main/x.py'\n") == [f"2 path = '/{folder}/main/x.py'"]
    assert machine_paths(f"data/{folder}/x, ~/{folder}/x, /{folder}shop/x") == []


def test_no_ignored_file_is_tracked() -> None:
    assert repository_files("--cached", "--ignored")[:3] == []


def test_repository_files__finds_an_ignored_file_that_is_tracked(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("/.venv/\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "python").write_text("")
    for command in (["init", "-q"], ["add", "--force", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert repository_files("--cached", "--ignored", root=tmp_path) == [tmp_path / ".venv" / "python"]


@pytest.mark.slow
def test_importing_the_package_costs_little_more_than_torch() -> None:
    for modules in ("crossdistill", "torch, torchvision"):
        seconds_to_import(modules)  # compiles modules and fills the page cache
    package, reference = [], []
    for _ in range(NUM_IMPORT_TIMINGS):
        package.append(seconds_to_import("crossdistill"))
        reference.append(seconds_to_import("torch, torchvision"))
    limit = MAX_IMPORT_RATIO * statistics.median(reference) + IMPORT_ALLOWANCE_SECONDS
    assert statistics.median(package) <= limit, f"crossdistill {package}, torch and torchvision {reference}"


def test_pages_name_targets_that_the_makefile_has() -> None:
    targets = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        assert make_commands(page.read_text(encoding="utf-8")) <= targets, page


def test_makefile__explains_each_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert make_targets(makefile) == {"help", "demo", "test", "test-slow", "check", "docs", "bench", "format", "clean"}
    assert set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE)) == make_targets(makefile)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts__say_how_they_are_called_and_nothing_else(script: Path) -> None:
    result = subprocess.run(["bash", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert result.returncode == 2 and f"scripts/{script.name} " in result.stdout
    assert all(line.startswith("#") for line in result.stdout.splitlines()), result.stdout
    assert len(result.stdout.splitlines()) == script.read_text(encoding="utf-8").partition("\nset -e")[0].count("\n")


def test_make_commands__finds_commands_and_no_prose() -> None:
    page = (
        "Losses make the student keep it.\n\n```bash\nmake demo\n$ make test check  # both\n```\n\nType `make bench`.\n"
    )
    assert make_commands(page) == {"demo", "test", "check", "bench"}
    assert not make_commands("make haste\n")


def test_constraints_pin_every_dependency() -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {normal_name(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    missing = names - pinned_names((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts__import_only_names_of_the_package_that_exist(script: Path) -> None:
    """Scripts are not type-checked; a rename in the package must not break ``make demo`` or a benchmark unnoticed."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("crossdistill", "data_prep"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
