"""Labels and parts of files from their folders: <split>/<class>/<file>, or <class>/<file>.

Files are given by their POSIX paths relative to the root, so that a million of them are quick to sort.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import UserError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT = "1"
PARTS: dict[str | None, dict[str, str]] = {part: {SPLIT: part} for part in ("train", "test", "val")} | {None: {}}
"""Part to ``SourceVideo.splits``. The dictionaries are shared, because a million pictures have one each."""


@dataclass(frozen=True)
class Labels:
    """Classes of a dataset, and the label and part of each file."""

    classes: list[str]
    labels: list[int | None]
    parts: list[str | None]


def labels_of_folders(
    names: Sequence[str], root: Path, *, test_share: float | None, seed: int, noun: str = "video"
) -> Labels:
    """Read labels and parts from folders by split and class, or by class.

    Args:
        names: Paths of the files relative to ``root``, sorted.
        root: Folder of the files, for messages and to find empty class folders.
        test_share: Share of each class that is drawn for testing; only for folders by class.
        seed: Seed of that draw.
        noun: What a file is called in messages.

    Raises:
        UserError: The folders have none of the two layouts, or a class folder holds no file.
    """
    part_names = part_folders(root)
    if part_names and test_share is not None:
        raise UserError(f"{root} already has folders by split: remove --test-share")
    return _by_split(names, root, part_names, noun) if part_names else _by_class(names, root, test_share, seed, noun)


def check_test_share(test_share: float | None, *, unlabelled: bool) -> None:
    """Raise a ``UserError`` if ``--test-share`` is out of range, or was given with ``--unlabelled``."""
    if test_share is None:
        return
    if unlabelled:
        raise UserError("--test-share draws from each class, but --unlabelled has no classes: remove one of the two")
    if not 0 < test_share < 1:
        raise UserError(f"--test-share {test_share:g} is out of range: give a share between 0 and 1, exclusive")


def part_folders(root: Path) -> dict[str, str]:
    """Return split folder to its part; empty if the folders are classes."""
    folders = _folders(root)
    train = [name for name in folders if name.lower() in TRAIN_NAMES]
    if not train:
        return {}
    test = [name for name in folders if name.lower() in TEST_NAMES]
    validation = [name for name in folders if name.lower() in VALIDATION_NAMES]
    others = sorted(set(folders) - {*train, *test, *validation})
    if others:
        raise UserError(
            f"{root} has the folders {train[0]} and {others[0]}: beside {train[0]} only "
            f"{', '.join(TEST_NAMES + VALIDATION_NAMES)} are allowed, so move {others[0]} away"
        )
    parts = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    return parts | dict.fromkeys(validation, "val" if test else "test")


def part_of_word(word: str) -> str | None:
    """Return the part that a word such as ``val`` names: train, test or val; None for another word."""
    names = {"train": TRAIN_NAMES, "test": TEST_NAMES, "val": VALIDATION_NAMES}
    return next((part for part, words in names.items() if word.lower() in words), None)


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _by_split(names: Sequence[str], root: Path, part_names: dict[str, str], noun: str) -> Labels:
    places = [name.split("/", 2) for name in names]
    for name, place in zip(names, places, strict=True):
        if len(place) < 3:
            raise UserError(
                f"{root / name} is in no class folder: move it to {root / place[0]}/<class>/, or give --unlabelled"
                if len(place) == 2
                else f"{root / name} is in no split folder: move it to {root / next(iter(part_names))}/<class>/"
            )
    found = {(place[0], place[1]) for place in places}
    classes = sorted({action for folder, action in found if part_names[folder] == "train"})
    labels = {name: label for label, name in enumerate(classes)}
    for folder, action in sorted(found):
        if action not in labels:
            raise UserError(
                f"{root / folder} has the class {action!r}, which has no training {noun}: name the class folders alike "
                "in all splits"
            )
    folders = [f"{folder}/{action}" for folder in part_names for action in _folders(root / folder)]
    _require_full(root, folders, {f"{folder}/{action}" for folder, action in found}, noun)
    return Labels(classes, [labels[place[1]] for place in places], [part_names[place[0]] for place in places])


def _by_class(names: Sequence[str], root: Path, test_share: float | None, seed: int, noun: str) -> Labels:
    by_class: dict[str, list[str]] = {}
    for name in names:
        action, slash, _ = name.partition("/")
        if not slash:
            raise UserError(f"{root / name} is in no class folder: move it to {root}/<class>/, or give --unlabelled")
        by_class.setdefault(action, []).append(name)
    classes = sorted(by_class)
    labels = {name: label for label, name in enumerate(classes)}
    _require_full(root, _folders(root), set(classes), noun)
    tests: set[str] = set()
    for action in classes if test_share is not None else ():
        tests |= draw_tests(by_class[action], test_share or 0.0, seed)
    parts: list[str | None] = ["test" if name in tests else "train" for name in names]
    return Labels(classes, [labels[name.partition("/")[0]] for name in names], parts)


def _require_full(root: Path, folders: Iterable[str], found: set[str], noun: str) -> None:
    empty = [folder for folder in folders if folder not in found]
    if empty:
        raise UserError(f"the class folder {root / empty[0]} holds no {noun}: move it away, or put its {noun}s into it")


def draw_tests(names: Iterable[str], share: float, seed: int) -> set[str]:
    """Draw test files of one class: at least one, and not all. The only file of a class is for training."""
    # A hash of the path, because a generator would draw other files as soon as one file is added.
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    num_tests = min(max(1, round(share * len(drawn))), len(drawn) - 1)
    return set(drawn[:num_tests])
