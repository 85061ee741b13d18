"""A teacher's embeddings on disk: training with them neither decodes the teacher's stream nor runs the teacher.

A cache is a folder. ``cache.json`` says of what it is; ``shards/`` holds one safetensors file for each range of samples
in each view, ``classifier.safetensors`` the teacher's linear classifier, if it has one. View v of sample i is what
``PairedClips`` draws for ``SampleKey(i, epoch=v)`` with the cache's seed.

Shapes: B batch, E teacher features, n samples of a shard.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crossdistill.data.dataset import PairedClips, Replay
from crossdistill.distillation.student import WEIGHTS_NAME, find_student
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import EncoderInfo
from crossdistill.encoders.weights import find_classifier
from crossdistill.errors import OneProcessError, UserError
from crossdistill.types import ViewSpec
from crossdistill.utils.files import sha256_of, write_text_atomically
from crossdistill.utils.tensor_files import read_weights, write_tensors

FORMAT = "crossdistill-teacher-cache"
FORMAT_VERSION = 1
CACHE_NAME = "cache.json"
SHARDS_NAME = "shards"
CLASSIFIER_NAME = "classifier.safetensors"
FEATURES = "features"
UNREADABLE = "unreadable"
# Name of a type on the command line: as torch, as numpy and as safetensors know it.
DTYPES: dict[str, tuple[torch.dtype, np.dtype[Any], str]] = {
    "fp16": (torch.float16, np.dtype("<f2"), "F16"),
    "fp32": (torch.float32, np.dtype("<f4"), "F32"),
}
# Shards that one process keeps open; each holds a file descriptor, of which there are often 1024.
NUM_OPEN_SHARDS = 256
# A cosine below this is no rounding: fp16 keeps eleven bits of every value above 6e-5, and fewer and fewer below.
MIN_COSINE = 0.9999
ADVICE = "free space there and start again: finished shards are kept"


def cosines(kept: Tensor, live: Tensor) -> Tensor:
    """[n] between rows [n, E] of a cache and the teacher's own, in float64; 1 where both are zero."""
    kept, live = kept.double(), live.double()
    both_zero = (kept == 0).all(dim=1) & (live == 0).all(dim=1)
    return F.cosine_similarity(kept, live, dim=1, eps=1e-300).masked_fill(both_zero, 1.0)


@dataclass(frozen=True)
class Shard:
    """The samples ``start`` to ``stop`` (exclusive) of one view."""

    view: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"view-{self.view:04d}-{self.start:09d}.safetensors"

    @property
    def num_clips(self) -> int:
        """Rows, n."""
        return self.stop - self.start


def weights_source(weights: str) -> str:
    """What tells given weights apart without a network: the hash of their file, or the name of published ones."""
    folder = find_student(weights)
    path = Path(weights) if folder is None else folder / WEIGHTS_NAME
    return sha256_of(path)[:16] if path.is_file() else weights


def describe_clips(clips: PairedClips, *, split: str) -> dict[str, Any]:
    """What decides which moments and crops the clips of a training set are; the decoder does not.

    Args:
        clips: With both views and an augmentation.
        split: Where its videos were taken from.
    """
    student, teacher = clips.views
    assert clips.augmentation is not None
    digest = hashlib.sha256()
    for entry in clips.entries:
        streams = [entry.video.streams[view.kind.stream].to_json() for view in (student, teacher)]
        digest.update(json.dumps([entry.video.name, streams], sort_keys=True).encode())
    return {
        "student_view": {key: getattr(student, key) for key in ("modality", "num_frames", "stride")},
        "split": split,
        "crop_area_min": clips.augmentation.area_min,
        "mirror": clips.augmentation.mirror_probability > 0,
        # Where none is too short, which is what "error" makes sure of, "repeat" does nothing.
        "short_clips": "repeat" if clips.short_clips == "error" else clips.short_clips,
        "num_clips": len(clips),
        "dataset": digest.hexdigest()[:16],
    }


def describe_teacher(teacher: Encoder, *, weights: str, weights_sha256: str) -> dict[str, Any]:
    """What decides an embedding besides the clip.

    Args:
        teacher: With its weights.
        weights: As they were named on the command line.
        weights_sha256: See ``encoders.weights.weights_hash``.
    """
    return {
        "teacher": teacher.name,
        "teacher_weights": weights_source(weights),
        "teacher_weights_sha256": weights_sha256,
        "teacher_view": dataclasses.asdict(teacher.view),
        "embed_dim": teacher.embed_dim,
    }


def find_difference(has: Mapping[str, Any], wants: Mapping[str, Any], path: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first wanted field that is another, with both values."""
    for name, wanted in wants.items():
        own = has.get(name)
        if isinstance(own, dict) and isinstance(wanted, dict):
            found = find_difference(own, wanted, f"{path}{name}.")
            if found is not None:
                return found
        elif own != wanted:
            return f"{path}{name}", own, wanted
    return None


class TeacherCache:
    """An existing cache, perhaps not yet complete.

    Args:
        folder: With ``cache.json``.

    Raises:
        UserError: There is none, it is damaged, or a newer version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        content = _read_description(self.folder)
        self.key: dict[str, Any] = content["key"]
        self.num_views = int(content["num_views"])
        self.embed_dim, self.seed = int(self.key["embed_dim"]), int(self.key["seed"])
        self.num_clips, self.clips_per_shard = int(self.key["num_clips"]), int(self.key["clips_per_shard"])
        self._dtype = DTYPES[self.key["dtype"]]
        self._rows = functools.lru_cache(maxsize=NUM_OPEN_SHARDS)(self._open_rows)

    @staticmethod
    def create(folder: Path, key: Mapping[str, Any], *, num_views: int, teacher: Encoder) -> None:
        """Make a cache, or go on with one that was made with the same options; more views may be added.

        Raises:
            UserError: The folder holds a cache of something else, or other files; nothing is changed.
        """
        path = folder / CACHE_NAME
        if path.is_file():
            cache = TeacherCache(folder)
            cache.require(key, wanted_by="this command")
            if cache.num_views > num_views:
                raise UserError(
                    f"the teacher cache {folder} has {cache.num_views} views, and this command wants {num_views}: "
                    f"give --views {cache.num_views} or more, or choose another --out"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something that is no teacher cache: choose another folder for --out")
        if teacher.classifier is not None:
            layer = {"weight": teacher.classifier.weight, "bias": teacher.classifier.bias}
            write_tensors(folder / CLASSIFIER_NAME, layer, metadata={"format": "pt"}, advice=ADVICE)
        content = {"format": FORMAT, "version": FORMAT_VERSION, "num_views": num_views, "key": dict(key)}
        write_text_atomically(path, json.dumps(content, indent=2) + "\n")
        for left in (folder / SHARDS_NAME).glob(".*.tmp"):  # of a run that was killed
            left.unlink(missing_ok=True)

    @property
    def teacher_view(self) -> ViewSpec:
        """What the teacher saw."""
        view = self.key["teacher_view"]
        return ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})

    @property
    def bytes_per_clip(self) -> int:
        """Of one embedding on disk."""
        return self.embed_dim * int(self._dtype[1].itemsize)

    def shards(self) -> list[Shard]:
        """All that a complete cache has, view by view: an epoch reads one view."""
        starts = range(0, self.num_clips, self.clips_per_shard)
        ends = [min(start + self.clips_per_shard, self.num_clips) for start in starts]
        return [Shard(v, start, stop) for v in range(self.num_views) for start, stop in zip(starts, ends, strict=True)]

    def missing(self) -> list[Shard]:
        """Shards that are still to be made."""
        folder = self.folder / SHARDS_NAME
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return [shard for shard in self.shards() if shard.name not in there]

    def path(self, shard: Shard) -> Path:
        """File of a shard."""
        return self.folder / SHARDS_NAME / shard.name

    def write(self, shard: Shard, features: Tensor, unreadable: Mapping[int, str]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: Which.
            features: [n, E]; rows of clips that could not be read are ignored when the cache is read.
            unreadable: Sample to the reason why it could not be read.

        Raises:
            UserError: The disk is full, or the cache's type does not hold an embedding: too large, or so small that
                its direction is lost.
        """
        stored = features.to(self._dtype[0])
        where = f"(view {shard.view}, samples {shard.start} to {shard.stop - 1})"
        if not bool(torch.isfinite(stored).all()):
            remedy = "choose --dtype fp32" if bool(torch.isfinite(features).all()) else "look at its weights"
            raise OneProcessError(  # as others write other shards
                f"the teacher {self.key['teacher']} gives embeddings that are not finite in {self.key['dtype']} "
                f"{where}: {remedy}"
            )
        cosine = float(cosines(stored, features).min())
        if cosine < MIN_COSINE:
            raise OneProcessError(
                f"{self.key['dtype']} does not keep the direction of embeddings that the teacher {self.key['teacher']} "
                f"gives (cosine {cosine:.4f}, allowed {MIN_COSINE}) {where}: choose --dtype fp32"
            )
        reasons = json.dumps({str(sample): reason for sample, reason in unreadable.items()})
        write_tensors(self.path(shard), {FEATURES: stored}, metadata={UNREADABLE: reasons}, advice=ADVICE)

    def require(self, wants: Mapping[str, Any], *, wanted_by: str = "this run") -> None:
        """Raise a ``UserError`` that names the first field in which the cache is not what is wanted."""
        found = find_difference(self.key, json.loads(json.dumps(wants)))
        if found is not None:
            name, has, wanted = found
            raise UserError(
                f"the teacher cache {self.folder} has {name} {has!r}, and {wanted_by} wants {wanted!r}: give the "
                "options that the cache was made with, or make another cache"
            )

    def require_complete(self) -> None:
        """Raise a ``UserError`` if a shard is missing."""
        missing = self.missing()
        if missing:
            raise UserError(
                f"the teacher cache {self.folder} lacks {len(missing)} of its {len(self.shards())} shards: run the "
                "command that makes it again, which goes on where it ended"
            )

    def require_fit(self, terms: Iterable[Term]) -> None:
        """Raise a ``UserError`` for objectives that need more of the teacher than is kept."""
        for term in terms:
            if term.objective.compares == "tokens":
                raise UserError(
                    f"the objective {term.name} compares tokens, and a teacher cache keeps pooled embeddings alone: "
                    "choose an objective on embeddings, or leave --teacher-cache out"
                )

    def unreadable(self) -> dict[tuple[int, int], str]:
        """(sample, view) to reason, of the shards that are there."""
        there = set(self.shards()) - set(self.missing())
        return {
            (int(sample), shard.view): reason
            for shard in sorted(there, key=lambda shard: (shard.view, shard.start))
            for sample, reason in self._read_header(shard)[1].items()
        }

    def replay(self) -> Replay:
        """How the clips of a training set are drawn so that they are those of the cache."""
        return Replay(seed=self.seed, num_views=self.num_views, unreadable=self.unreadable())

    def read(self, sample_keys: Tensor) -> Tensor:
        """Embeddings of clips.

        Args:
            sample_keys: [B, 2] int64 on the CPU, sample and view, as ``PairedBatch.sample_keys``.

        Returns:
            [B, E] float32.
        """
        rows = np.empty((len(sample_keys), self.embed_dim), dtype=np.float32)
        for row, (sample, view) in zip(rows, sample_keys.tolist(), strict=True):
            start = sample - sample % self.clips_per_shard
            shard = Shard(view, start, min(start + self.clips_per_shard, self.num_clips))
            row[:] = self._rows(shard)[sample - start]
        return torch.from_numpy(rows)

    def encoder(self) -> Encoder:
        """The teacher without weights: its name, sizes, view and classifier."""
        encoder = Encoder(
            nn.Identity(),
            name=self.key["teacher"],
            view=self.teacher_view,
            info=EncoderInfo(embed_dim=self.embed_dim),
        )
        path = self.folder / CLASSIFIER_NAME
        if path.is_file():
            layer = read_weights(path)
            encoder.classifier = find_classifier([layer["weight"], layer["bias"]], embed_dim=self.embed_dim)
        return encoder

    def _open_rows(self, shard: Shard) -> NDArray[Any]:
        offset, _ = self._read_header(shard)
        shape = (shard.num_clips, self.embed_dim)
        return np.memmap(self.path(shard), dtype=self._dtype[1], mode="r", offset=offset, shape=shape)

    def _read_header(self, shard: Shard) -> tuple[int, dict[str, str]]:
        """Where the rows begin in the file (safetensors: length of the header, header, values), and what it lacks."""
        path = self.path(shard)
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, path.stat().st_size)))
            facts = header[FEATURES]
            is_whole = facts["dtype"] == self._dtype[2] and facts["shape"] == [shard.num_clips, self.embed_dim]
            is_whole &= path.stat().st_size == 8 + length + shard.num_clips * self.bytes_per_clip
            reasons: dict[str, str] = json.loads(header["__metadata__"][UNREADABLE])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error
        if not is_whole:
            raise _damaged(path)
        return 8 + length, reasons


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is not a whole shard of its cache: delete it and run the command that makes the cache")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / CACHE_NAME
    if not path.is_file():
        raise UserError(f"there is no teacher cache in {folder} (no {CACHE_NAME}): make one with crossdistill cache")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_ours, version = content["format"] == FORMAT, int(content["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): make the cache again") from error
    if not is_ours or version > FORMAT_VERSION:
        raise UserError(
            f"{path} has the format {content['format']} {version}, this crossdistill reads {FORMAT} up to "
            f"{FORMAT_VERSION}: update crossdistill, or make the cache again"
        )
    return content


def spread(shards: Sequence[Shard], *, num_clips: int, seed: int) -> list[tuple[int, int]]:
    """(sample, view) of clips drawn from shards, without repetition, in the order in which they are stored."""
    ends = np.cumsum([shard.num_clips for shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.random.default_rng(seed).choice(total, size=min(num_clips, total), replace=False)
    found = []
    for position in sorted(drawn.tolist()):
        number = int(np.searchsorted(ends, position, side="right"))
        shard = shards[number]
        found.append((shard.stop - (int(ends[number]) - position), shard.view))
    return found
