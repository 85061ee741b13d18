"""One source video as a task: its job, and the keys by which a later run recognises its finished streams."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError
from crossdistill.utils.files import fitting_name
from data_prep.pipeline.jobs import Job
from data_prep.pipeline.options import RunOptions
from data_prep.pipeline.readers import Input
from data_prep.pipeline.transcode import source_of
from data_prep.recipe import AnyRecipe

# Increase it when the same options begin to give other bytes: streams with a lower version are then made again.
RECIPE_VERSION = 2
# Options that affect one stream only. All others affect every stream.
STREAM_OPTIONS = {"rgb": ("keep_original",), "flow": ("flow", "flow_preset", "flow_weights"), "depth": ("depth_model",)}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a longer video, which is prepared once for all of its segments."""

    video: str
    """Name of the longer video."""
    start_seconds: float
    stop_seconds: float
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """One video as the lists of its dataset describe it."""

    name: str
    inputs: dict[str, Path]
    """Modality to the file or folder that holds it. Empty if the lists name a file that is missing."""
    folder: str = ""
    """Folder inside the folder of each stream, usually the class."""
    label: int | None = None
    """Index of the class. None without a class."""
    group: str | None = None
    """Group of clips that are alike, such as those of one film or person."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split to part, for example ``{"1": "train"}``."""
    frames_per_second: float | None = None
    """Frame rate of inputs that do not store one."""
    byte_range: tuple[int, int] | None = None
    """First byte and number of bytes of a picture inside its file, a tar shard. None for a file of its own."""
    segment: Segment | None = None
    """The part of its inputs that it is. None for all of them."""

    @property
    def prepared_as(self) -> str:
        """Name under which its streams are prepared: that of the longer video for a segment."""
        return self.name if self.segment is None else self.segment.video


@dataclass(frozen=True, slots=True)
class Task:
    """One video to prepare."""

    job: Job
    keys: dict[str, dict[str, Any]]
    """Stream to its key, which holds all that decides its content. A journal entry with another key is out of date."""
    num_source_bytes: int


class TaskMaker:
    """Makes the tasks of sources that were found. What is the same for all of them is made once.

    Args:
        options: The options of the command.
        recipe_facts: Its recipe, as ``facts_of_recipe`` returns it.
    """

    def __init__(self, options: RunOptions, recipe_facts: dict[str, Any]) -> None:
        self.options, self.recipe, self.root = options, options.recipe, str(options.out)
        self._methods = {name: method_of(name, recipe_facts) for name in options.streams}
        # All pictures of a shard have its size and time.
        self._fingerprint_of_shard = functools.lru_cache(maxsize=None)(_fingerprint)

    def __call__(self, source: SourceVideo) -> Task:
        """Make one task; raise a ``UserError`` for a name that leads out of --out."""
        options, inner = self.options, Path(source.folder, source.name)
        offset, num_bytes = source.byte_range or (0, None)
        if inner.is_absolute() or ".." in inner.parts:
            raise UserError(f"the name {str(inner)!r} leads out of --out: give names without '..' and a leading '/'")
        inner = inner.with_name(fitting_name(f"{inner.name}{options.suffix}"))
        job = Job(
            name=source.name,
            inputs={
                name: Input(str(path), source.frames_per_second, offset, num_bytes)
                for name, path in source.inputs.items()
            },
            stream_paths={name: Path(name, inner).as_posix() for name in options.streams},
            root=self.root,
            recipe=self.recipe,
            time_limit_seconds=options.time_limit,
        )
        fingerprints = {name: self._fingerprint(path, source.byte_range) for name, path in source.inputs.items()}
        keys = {
            name: {"source": fingerprints[source_of(name, fingerprints)], **method}
            for name, method in self._methods.items()
        }
        return Task(job, keys, num_bytes or sum(size for size, *_ in fingerprints.values()))

    def _fingerprint(self, path: Path, byte_range: tuple[int, int] | None) -> list[int]:
        if byte_range is None:
            return _fingerprint(path)
        return [*self._fingerprint_of_shard(path), *byte_range]


def facts_of_recipe(recipe: AnyRecipe) -> dict[str, Any]:
    """Return the recipe as JSON values, with a checksum of weights in place of their path.

    So weights may move without making the streams again, and other weights at the same path are noticed.
    """
    facts = dataclasses.asdict(recipe)
    for name in ("flow_weights", "depth_model"):
        if facts.get(name) and Path(facts[name]).exists():
            facts[name] = f"sha256:{_checksum(Path(facts[name]))}"
    return facts


def fits(made: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a stream with one key may stand for another key: both are equal, or fewer frames are enough now."""
    least, own = (key["recipe"].get("min_frames") for key in (wanted, made))
    if least is None or own is None or least > own:
        return made == wanted
    return {**made, "recipe": {**made["recipe"], "min_frames": least}} == wanted


def _checksum(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder, one after the other."""
    files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def method_of(stream: str, recipe_facts: dict[str, Any]) -> dict[str, Any]:
    """Return all but the source that decides the content of a stream: with the source, this is its key.

    Options of other streams may change and leave the stream valid.
    """
    own = STREAM_OPTIONS.get(stream, ())
    of_others = {name for names in STREAM_OPTIONS.values() for name in names} - set(own)
    recipe = {name: value for name, value in recipe_facts.items() if name not in of_others}
    return {"recipe": recipe, "version": RECIPE_VERSION}


def _fingerprint(path: Path) -> list[int]:
    """Size and modification time of a file; number of entries and modification time of a folder."""
    try:
        facts = path.stat()
        is_folder = stat.S_ISDIR(facts.st_mode)
        return [sum(1 for _ in path.iterdir()) if is_folder else facts.st_size, facts.st_mtime_ns]
    except OSError:  # for example a broken link: the job reports it as a skipped video
        return [0, 0]


def check_no_source_is_overwritten(tasks: Iterable[Task], root: Path) -> None:
    """Raise a ``UserError`` if a stream has the path of a source file, which it would overwrite."""
    root = root.resolve()
    for task in tasks:
        targets = {root / path for path in task.job.stream_paths.values()}
        for source in task.job.inputs.values():
            if Path(os.path.realpath(source.path)) in targets:
                raise UserError(f"{source.path} would be overwritten by a stream: give --out another folder")
