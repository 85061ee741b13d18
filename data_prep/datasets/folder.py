"""Your own videos in folders: by split and class, by class, or without labels in any order.

--videos has one of these layouts. Class folders may contain folders; files that are not videos are ignored.

* <split>/<class>/<video>: the split folders are called train (or training) and test (or testing, val, valid,
  validation). If there are both test and val, results are measured on test, and val is kept as the part "val".
* <class>/<video>: all videos are training videos. With --test-share 0.2, that share of each class is drawn at random
  for testing. Clips that were cut from the same video may then be on both sides, which inflates the results. If you
  have such clips, use folders train and test instead.
* Any layout, with --unlabelled: no classes and no splits. All videos are training data for distillation.

Videos are .mp4, .avi, .mkv, .webm, .mov and other files that FFmpeg reads. A video's name is its path below --videos.
The class index is the sorted names of the class folders. The split is "1".
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, check_out_is_apart, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, walk_files

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT = "1"


@dataclass(frozen=True, kw_only=True)
class FolderOptions(PrepareOptions):
    """Options of ``python -m data_prep folder``."""

    videos: Path
    """Folder of the videos."""
    unlabelled: bool = False
    """Prepare all videos without classes, in any layout of folders."""
    test_share: float | None = None
    """Share of each class that is drawn for testing, between 0 and 1. For folders by class only."""
    seed: int = 0
    """Seed of the draw of --test-share."""


def prepare(options: FolderOptions) -> Manifest:
    """Prepare a folder of videos."""
    classes, sources = read_folder(options)
    return prepare_videos("folder", sources, classes=classes, options=options)


def read_folder(options: FolderOptions) -> tuple[list[str], list[SourceVideo]]:
    """Find the videos; return the class names, sorted, and the videos in the order of their paths.

    Raises:
        UserError: There is no video, or the folders have none of the layouts above.
    """
    _check(options)
    paths = [path for path in walk_files(options.videos) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise UserError(f"{options.videos} and its subfolders contain no video: give a folder of videos")
    _require_utf8(paths)
    if options.unlabelled:
        return [], [_source(path, options.videos) for path in paths]
    part_names = _part_names(options.videos)
    if part_names and options.test_share is not None:
        raise UserError(f"{options.videos} already has folders by split: remove --test-share")
    return _by_split(paths, options.videos, part_names) if part_names else _by_class(paths, options)


def _require_utf8(paths: Iterable[Path]) -> None:
    """Raise a ``UserError`` if a path is not valid UTF-8: a manifest could not store it."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the name {str(path)!a} is not UTF-8: rename the file") from error


def _check(options: FolderOptions) -> None:
    check_out_is_apart(options)
    if options.test_share is None:
        return
    if options.unlabelled:
        raise UserError("--test-share draws from each class, but --unlabelled has no classes: remove one of the two")
    if not 0 < options.test_share < 1:
        raise UserError(f"--test-share {options.test_share:g} is out of range: give a share between 0 and 1, exclusive")


def _part_names(root: Path) -> dict[str, str]:
    """Return split folder to its part; empty if the folders are classes."""
    folders = [path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
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


def _by_split(paths: Collection[Path], root: Path, part_names: dict[str, str]) -> tuple[list[str], list[SourceVideo]]:
    places = {path: path.relative_to(root).parts for path in paths}
    for path, place in places.items():
        if len(place) < 3:
            raise UserError(
                f"{path} is in no class folder: move it to {root / place[0]}/<class>/, or give --unlabelled"
                if len(place) == 2
                else f"{path} is in no split folder: move it to {root / next(iter(part_names))}/<class>/"
            )
    classes = sorted({place[1] for place in places.values() if part_names[place[0]] == "train"})
    labels = {name: label for label, name in enumerate(classes)}
    for path, place in places.items():
        if place[1] not in labels:
            raise UserError(
                f"{path} has the class {place[1]!r}, which has no training video: name the class folders alike in all "
                "splits"
            )
    return classes, [_source(path, root, labels[of[1]], part_names[of[0]]) for path, of in places.items()]


def _by_class(paths: Collection[Path], options: FolderOptions) -> tuple[list[str], list[SourceVideo]]:
    root = options.videos
    by_class: dict[str, list[Path]] = {}
    for path in paths:
        place = path.relative_to(root).parts
        if len(place) < 2:
            raise UserError(f"{path} is in no class folder: move it to {root}/<class>/, or give --unlabelled")
        by_class.setdefault(place[0], []).append(path)
    classes = sorted(by_class)
    sources = []
    for label, name in enumerate(classes):
        tests = _draw(by_class[name], root, options.test_share, options.seed) if options.test_share else set()
        sources += [_source(path, root, label, "test" if path in tests else "train") for path in by_class[name]]
    return classes, sources


def _draw(paths: Iterable[Path], root: Path, share: float, seed: int) -> set[Path]:
    """Draw test videos of one class: at least one, and not all. The only video of a class is a training video."""
    # A hash of the path, because a generator would draw other videos as soon as one video is added.
    drawn = sorted(paths, key=lambda p: hashlib.sha256(f"{seed}:{p.relative_to(root).as_posix()}".encode()).digest())
    num_tests = min(max(1, round(share * len(drawn))), len(drawn) - 1)
    return set(drawn[:num_tests])


def _source(path: Path, root: Path, label: int | None = None, part: str | None = None) -> SourceVideo:
    name = path.relative_to(root).as_posix()
    return SourceVideo(name=name, inputs={"rgb": path}, label=label, splits={SPLIT: part} if part else {})
