"""Labels and parts of files from their folders: <split>/<class>/<file>, or <class>/<file>.

Files are given by their POSIX paths relative to the root, so that a million of them are quick to sort.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crossdistill.errors import UserError
from crossdistill.utils.console import console

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT = "1"
Part = TypeVar("Part", str, str | None)
WHOLE_NUMBER = re.compile(r"-?\d+(\.0+)?")
# A larger number is more likely a frame count or an id than a class.
MAX_UNNAMED_CLASSES = 100_000
PARTS: dict[str | None, dict[str, str]] = {part: {SPLIT: part} for part in ("train", "test", "val")} | {None: {}}
"""Part to ``SourceVideo.splits``. The dictionaries are shared, because a million pictures have one each."""


@dataclass(frozen=True)
class Labels:
    """Classes of a dataset, and the label and part of each file."""

    classes: list[str]
    labels: list[int | None]
    parts: list[str | None]


def labels_of_folders(
    names: Sequence[str],
    root: Path,
    *,
    test_share: float | None,
    seed: int,
    noun: str = "video",
    groups: Sequence[str | None] = (),
) -> Labels:
    """Read labels and parts from folders by split and class, or by class.

    Args:
        names: Paths of the files relative to ``root``, sorted.
        root: Folder of the files, for messages and to find empty class folders.
        test_share: Share of each class that is drawn for testing; only for folders by class.
        seed: Seed of that draw.
        noun: What a file is called in messages.
        groups: Group of each file. If given, ``test_share`` is a share of the groups.

    Raises:
        UserError: The folders have none of the two layouts, or a class folder holds no file.
    """
    part_names = part_folders(root, names)
    if part_names and test_share is not None:
        raise UserError(f"{root} already has folders by split: remove --test-share")
    if part_names:
        return _by_split(names, root, part_names, noun)
    found = _by_class(names, root, noun)
    if test_share is None:
        return found
    by_class: dict[int | None, list[str]] = {}
    for name, label in zip(names, found.labels, strict=True):
        by_class.setdefault(label, []).append(name)
    tests: set[str] = set()
    if groups:
        if len(set(groups)) < 2:
            raise UserError(f"all {noun}s are in one group, of which --test-share draws no part: give other groups")
        drawn = draw_tests({group or "" for group in groups}, test_share, seed)
        tests = {name for name, group in zip(names, groups, strict=True) if (group or "") in drawn}
    else:
        tests = {name for of_class in by_class.values() for name in draw_tests(of_class, test_share, seed)}
    return dataclasses.replace(found, parts=["test" if name in tests else "train" for name in names])


def check_test_share(test_share: float | None, *, unlabelled: bool) -> None:
    """Raise a ``UserError`` if ``--test-share`` is out of range, or was given with ``--unlabelled``."""
    if test_share is None:
        return
    if unlabelled:
        raise UserError("--test-share draws from each class, but --unlabelled has no classes: remove one of the two")
    if not 0 < test_share < 1:
        raise UserError(f"--test-share {test_share:g} is out of range: give a share between 0 and 1, exclusive")


def part_folders(root: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Return split folder to its part; empty if the folders are classes.

    A folder ``train`` is a class if there are other classes beside it and it, or a test folder, holds files (``names``,
    relative to ``root``) itself.

    Raises:
        UserError: There are other folders beside the splits, or no folder for training.
    """
    folders = _folders(root)
    train = [name for name in folders if name.lower() in TRAIN_NAMES]
    if not train:
        if folders and all(map(part_of_word, folders)) and any(name.count("/") > 1 for name in names):
            raise UserError(
                f"{root} has only {' and '.join(folders)} and no folder {TRAIN_NAMES[0]}: give the folder that holds "
                "train as well, or --unlabelled"
            )
        return {}
    test = [name for name in folders if name.lower() in TEST_NAMES]
    validation = [name for name in folders if name.lower() in VALIDATION_NAMES]
    others = sorted(set(folders) - {*train, *test, *validation})
    if others and any(name.count("/") == 1 and part_of_word(name.partition("/")[0]) for name in names):
        return {}
    if others:
        raise UserError(
            f"{root} has the folders {train[0]} and {others[0]}: beside a split {train[0]} only "
            f"{', '.join(TEST_NAMES + VALIDATION_NAMES)} are allowed, so move {others[0]} away; or rename {train[0]} "
            "if it is a class"
        )
    parts = dict.fromkeys(train, "train") | dict.fromkeys(test, "test") | dict.fromkeys(validation, "val")
    return dict(zip(parts, with_test_part(parts.values()), strict=True))


def with_test_part(parts: Collection[Part]) -> list[Part]:
    """Return the parts; if none is test, val is the test part.

    Example:
        >>> with_test_part(["train", "val"])
        ['train', 'test']
    """
    return list(parts) if "test" in parts else ["test" if part == "val" else part for part in parts]


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
    classes = sort_classes(action for folder, action in found if part_names[folder] == "train")
    labels = {name: label for label, name in enumerate(classes)}
    for folder, action in sorted(found):
        if action not in labels:
            raise UserError(
                f"{root / folder} has the class {action!r}, which has no training {noun}: name the class folders alike "
                "in all splits, or move this one away"
            )
    require_full(root, part_names, found, noun)
    return Labels(classes, [labels[place[1]] for place in places], [part_names[place[0]] for place in places])


def _by_class(names: Sequence[str], root: Path, noun: str) -> Labels:
    actions = []
    for name in names:
        action, slash, _ = name.partition("/")
        if not slash:
            raise UserError(f"{root / name} is in no class folder: move it to {root}/<class>/, or give --unlabelled")
        actions.append(action)
    classes = sort_classes(actions)
    labels = {name: label for label, name in enumerate(classes)}
    _require_none_empty(root, _folders(root), set(classes), noun)
    return Labels(classes, [labels[action] for action in actions], ["train"] * len(names))


def require_full(root: Path, splits: Iterable[str], found: Collection[tuple[str, str]], noun: str) -> None:
    """Raise a ``UserError`` if a class folder of a split folder is not among ``found``, pairs of split and class."""
    folders = [f"{split}/{action}" for split in splits for action in _folders(root / split)]
    _require_none_empty(root, folders, {f"{split}/{action}" for split, action in found}, noun)


def _require_none_empty(root: Path, folders: Iterable[str], found: Collection[str], noun: str) -> None:
    empty = [folder for folder in folders if folder not in found]
    if empty:
        raise UserError(f"the class folder {root / empty[0]} holds no {noun}: move it away, or put its {noun}s into it")


def draw_tests(names: Iterable[str], share: float, seed: int) -> set[str]:
    """Draw test files of one class: at least one, and not all. The only file of a class is for training."""
    # A hash of the path, because a generator would draw other files as soon as one file is added.
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    num_tests = min(max(1, round(share * len(drawn))), len(drawn) - 1)
    return set(drawn[:num_tests])


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort class names, numbers by their value and before other names.

    Example:
        >>> sort_classes(["10", "9", "run", "jump"])
        ['9', '10', 'jump', 'run']
    """
    return sorted(set(names), key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def number_classes(
    places: Mapping[str, str], names: Sequence[str] | None, *, named_by: str
) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and the label of each class as it is written: a number if all are, or else a name.

    Args:
        places: Each class as it is written, to the first place that has it, for messages.
        names: Names of numbered classes; None to take names and numbers from ``places``.
        named_by: Where the names come from, for messages.

    Raises:
        UserError: A class is not among the names.

    Example:
        >>> number_classes({"walk": "line 1", "run": "line 2"}, None, named_by="the list")
        (['run', 'walk'], {'walk': 1, 'run': 0})
    """
    # A class may be called "007": classes are numbers only if all of them are. pandas writes 3 as 3.0.
    numbers = {action: int(float(action)) for action in places if WHOLE_NUMBER.fullmatch(action)}
    if len(numbers) == len(places):
        known, first = _name_numbers(numbers, places, names)
        labels = {action: number - first for action, number in numbers.items()}
    else:
        known = list(names) if names is not None else sort_classes(places)
        by_name = {name: label for label, name in enumerate(known)}
        labels = {action: by_name.get(action, -1) for action in places}
    for action, place in places.items():
        if not 0 <= labels[action] < len(known):
            raise UserError(
                f"{place} gives the class {action}, but {named_by} has the {len(known)} classes {known[0]} (0) to "
                f"{known[-1]} ({len(known) - 1}): correct the class or that list"
            )
    return known, labels


def _name_numbers(
    numbers: Mapping[str, int], places: Mapping[str, str], names: Sequence[str] | None
) -> tuple[list[str], int]:
    """Return the class names of numbered classes, and the number of the first: 0, or 1 if the lists count from 1."""
    if not numbers:
        return list(names or []), 0
    lowest, highest = (pick(numbers, key=lambda action: numbers[action]) for pick in (min, max))
    first = 1 if numbers[lowest] == 1 and (names is None or numbers[highest] == len(names)) else 0
    if first:
        console.print("classes are numbered from 1: the class 1 gets the index 0")
    if names is not None:
        return list(names), first
    for action in (lowest, highest):
        if not 0 <= numbers[action] < MAX_UNNAMED_CLASSES:
            allowed = f"numbers from 0 to {MAX_UNNAMED_CLASSES - 1}, or class names"
            raise UserError(f"{places[action]} gives the class {action}: give {allowed}")
    unused = sorted(set(range(first, numbers[highest])) - set(numbers.values()))
    if unused:
        shown = f"{', '.join(map(str, unused[:5]))}{' and others' if len(unused) > 5 else ''}"
        console.print(f"nothing shows one of these {len(unused)} classes, which keep their numbers: {shown}")
    return [str(number) for number in range(first, numbers[highest] + 1)], first
