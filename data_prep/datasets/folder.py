"""Your own videos in folders: by split and class, by class, or without labels in any order.

--videos has one of these layouts. Class folders may contain folders; files that are not videos are ignored.

* <split>/<class>/<video>: the split folders are called train (or training) and test (or testing, val, valid,
  validation). If there are both test and val, results are measured on test, and val is kept as the part "val".
* <class>/<video>: all videos are training videos. With --test-share 0.2, that share of each class is drawn at random
  for testing. Clips of one person or cut from one video may then be on both sides, which inflates the results. If you
  have such clips, give --group-pattern, which draws whole groups, or use folders train and test instead.
* Any layout, with --unlabelled: no classes and no splits. All videos are training data for distillation.

Videos are .mp4, .avi, .mkv, .webm, .mov and other files that FFmpeg reads; the number of other files is printed. A
video's name is its path below --videos. The class index is the sorted names of the class folders, numbers by their
value. The split is "1".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from crossdistill.data.manifest import Manifest
from crossdistill.data.pictures import PICTURE_SUFFIXES
from crossdistill.errors import UserError
from data_prep.pipeline.class_folders import PARTS, check_test_share, labels_of_folders
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, check_out_is_apart, prepare_videos
from data_prep.pipeline.sources import (
    VIDEO_SUFFIXES,
    group_of,
    print_passed_over,
    require_utf8,
    walk_files,
    warn_of_group_leakage,
)


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
    group_pattern: Annotated[str | None, tyro.conf.arg(metavar="REGEX")] = None
    """Regular expression that finds in a video's name who or what its clips have in common, for example S\\d+ for a
    person. If it has parentheses, the text in the first ones counts."""


def prepare(options: FolderOptions) -> Manifest:
    """Prepare a folder of videos."""
    classes, sources = read_folder(options)
    return prepare_videos("folder", sources, classes=classes, options=options)


def read_folder(options: FolderOptions) -> tuple[list[str], list[SourceVideo]]:
    """Find the videos; return the class names, sorted, and the videos in the order of their paths.

    Raises:
        UserError: There is no video, or the folders have none of the layouts above.
    """
    check_out_is_apart(options)
    check_test_share(options.test_share, unlabelled=options.unlabelled)
    files = list(walk_files(options.videos))
    paths = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    # A .gif is a video or a picture: among other pictures alone it is one of them.
    if not paths or set(paths) < set(pictures):
        raise _no_video(options, num_pictures=len(pictures))
    print_passed_over(path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES)
    require_utf8(paths)
    names = [path.relative_to(options.videos).as_posix() for path in paths]
    groups = [group_of(name, options.group_pattern) for name in names]
    if options.unlabelled:
        rows = zip(names, paths, groups, strict=True)
        return [], [SourceVideo(name, {"rgb": path}, group=group) for name, path, group in rows]
    found = labels_of_folders(
        names,
        options.videos,
        test_share=options.test_share,
        seed=options.seed,
        groups=groups if options.group_pattern is not None else (),
    )
    sources = [
        SourceVideo(name, {"rgb": path}, label=label, group=group, splits=PARTS[part])
        for name, path, group, label, part in zip(names, paths, groups, found.labels, found.parts, strict=True)
    ]
    warn_of_group_leakage(sources, within_class=False)
    return found.classes, sources


def _no_video(options: FolderOptions, *, num_pictures: int) -> UserError:
    if not num_pictures:
        return UserError(f"{options.videos} and its subfolders contain no video: give a folder of videos")
    return UserError(
        f"{options.videos} and its subfolders contain {num_pictures} pictures and no video: for pictures, type python "
        f"-m data_prep images --pictures {options.videos} --out {options.out}"
    )
