"""Folders of teacher caches: of one teacher, or of several that were made from the same clips.

A cache of several teachers is a folder with a cache of each, ``teacher-1`` and so on, and a ``cache.json`` that says
how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from crossdistill.distillation.teacher_cache import (
    DESCRIPTION_NAME,
    FORMAT,
    FORMAT_VERSION,
    TeacherCache,
    located,
    read_description,
    require_empty,
)
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.utils.files import write_text_atomically


def folders_of(folder: Path, num_teachers: int) -> list[Path]:
    """Return the folder of each teacher's cache in the folder of a cache; of one teacher they are the same."""
    return [folder] if num_teachers == 1 else [folder / f"teacher-{number + 1}" for number in range(num_teachers)]


def open_caches(folder: Path) -> list[TeacherCache]:
    """Open a cache of one or several teachers, complete or not.

    Raises:
        UserError: As for ``TeacherCache``, or the caches of several teachers were not made together.
    """
    folder = located(folder)
    content = read_description(folder)
    if "num_teachers" not in content:
        return [TeacherCache(folder, content)]
    caches = [TeacherCache(each) for each in folders_of(folder, content["num_teachers"])]
    first = caches[0]
    for other in caches[1:]:
        names = ("num_clips", "content", "student_view", "teacher_views")
        same = {name: first.key.get(name) for name in names}
        other.require({**same, "seed": first.seed}, wanted_by=f"{first.folder.name} beside it")
        if other.num_augmentations != first.num_augmentations:
            raise UserError(
                f"{other.folder} has {other.num_augmentations} augmentations and {first.folder.name} has "
                f"{first.num_augmentations}: start the command that makes the cache again"
            )
    return caches


def create_caches(folder: Path, caches: Sequence[TeacherCache], classifiers: Sequence[Classifier | None]) -> None:
    """Create a cache of one or several teachers, or resume one of the same options.

    Args:
        folder: Folder of the cache.
        caches: What ``TeacherCache.planned`` returned for each teacher, in one of ``folders_of``.
        classifiers: The classifier of each teacher, see ``TeacherCache.write_description``.

    Raises:
        UserError: The folder holds a cache of something else, or other files; nothing is changed.
    """
    require_creatable(folder, caches)
    if len(caches) > 1:
        content = {"format": FORMAT, "version": FORMAT_VERSION, "num_teachers": len(caches)}
        write_text_atomically(folder / DESCRIPTION_NAME, json.dumps(content, indent=2) + "\n")
    for cache, classifier in zip(caches, classifiers, strict=True):
        cache.write_description(classifier)


def require_creatable(folder: Path, caches: Sequence[TeacherCache]) -> None:
    """Raise the ``UserError`` of ``create_caches``, and create nothing."""
    if len(caches) > 1:
        _require_several(folder, len(caches))
    for cache in caches:
        cache.require_creatable()


def _require_several(folder: Path, num_teachers: int) -> None:
    """Raise a ``UserError`` if a folder is neither empty nor that of a cache of so many teachers."""
    if not (folder / DESCRIPTION_NAME).is_file():
        require_empty(folder)
        return
    has = read_description(folder).get("num_teachers", 1)
    if has != num_teachers:
        raise UserError(
            f"the teacher cache {folder} is of {has} teacher{'s' if has > 1 else ''}, and {num_teachers} were given: "
            "give the teachers that it was made with, or another --out"
        )
