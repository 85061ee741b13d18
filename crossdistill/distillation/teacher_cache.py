"""A teacher's embeddings on disk: training with them neither decodes the teacher's stream nor runs the teacher.

A cache is a folder. ``cache.json`` describes it; ``shards/`` holds one safetensors file for each range of samples in
each augmented version; ``classifier.safetensors`` holds the teacher's linear classifier, if it has one. Augmentation a
of sample i is the clip that ``PairedClips`` draws for ``SampleKey(i, epoch=a)`` with the cache's seed.

``TeacherCache.require`` compares a cache with a run (``describe_clips``, ``describe_teacher``). ``recipes/cache.py``
fills it.

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
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.entries import video_rows_of
from crossdistill.distillation.student import WEIGHTS_NAME, locate_student
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier, EncoderInfo
from crossdistill.encoders.weights import find_classifier
from crossdistill.errors import OneProcessError, UserError
from crossdistill.types import ViewSpec
from crossdistill.utils import hub
from crossdistill.utils.files import sha256_of, write_text_atomically
from crossdistill.utils.locks import LOCK_NAME
from crossdistill.utils.records import first_difference, read_versioned_json
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights

FORMAT = "crossdistill-teacher-cache"
FORMAT_VERSION = 1
DESCRIPTION_NAME = "cache.json"
SHARDS_NAME = "shards"
CLASSIFIER_NAME = "classifier.safetensors"
FEATURES = "features"
UNREADABLE = "unreadable"
# Option value to the type's name in torch, in numpy and in safetensors.
DTYPES: dict[str, tuple[torch.dtype, np.dtype[Any], str]] = {
    "fp16": (torch.float16, np.dtype("<f2"), "F16"),
    "fp32": (torch.float32, np.dtype("<f4"), "F32"),
}
# Shards that one process keeps open. Each takes a file descriptor, and a process often has no more than 1024.
MAX_OPEN_SHARDS = 256
# A smaller cosine is no rounding error: fp16 keeps eleven bits of every value above 6e-5, but fewer below.
MIN_COSINE = 0.9999
ADVICE = "free space there and start again: finished shards are kept"


def cosines(stored: Tensor, live: Tensor) -> Tensor:
    """Compute the cosine [n] between rows [n, E] of a cache and of the live teacher in float64; 1 if both are zero."""
    stored, live = stored.double(), live.double()
    both_zero = (stored == 0).all(dim=1) & (live == 0).all(dim=1)
    return F.cosine_similarity(stored, live, dim=1, eps=1e-300).masked_fill(both_zero, 1.0)


@dataclass(frozen=True)
class Shard:
    """The samples ``start`` to ``stop`` (exclusive) in one augmentation."""

    augmentation: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the shard's file."""
        return f"view-{self.augmentation:04d}-{self.start:09d}.safetensors"

    @property
    def num_clips(self) -> int:
        """Number of rows, n."""
        return self.stop - self.start


def weights_source(weights: str) -> str:
    """Identify given weights without building a network: by the hash of their file, or by their published name."""
    folder = locate_student(weights)
    path = Path(weights) if folder is None else folder / WEIGHTS_NAME
    return sha256_of(path)[:16] if path.is_file() else weights


def absolute_if_path(weights: str) -> str:
    """Return weights as any working directory finds them: a file or folder as an absolute path, a name as it is."""
    return str(Path(weights).absolute()) if Path(weights).exists() else weights


def describe_clips(clips: PairedClips, *, split: str) -> dict[str, Any]:
    """Describe everything that decides the moments and crops of training clips. The decoder does not decide them.

    Args:
        clips: Training clips with an augmentation, one student's view and one teacher's view.
        split: The split that the videos were taken from.
    """
    student, teacher = clips.views
    assert clips.augmentation is not None
    digest = hashlib.sha256()
    for row in video_rows_of(clips.entries):
        streams = [row["streams"][view.kind.stream] for view in (student, teacher)]
        digest.update(json.dumps([row["name"], streams], sort_keys=True).encode())
    return {
        "student_view": {key: getattr(student, key) for key in ("modality", "num_frames", "stride")},
        "split": split,
        "crop_area_min": clips.augmentation.area_min,
        "mirror": clips.augmentation.mirror_probability > 0,
        # With "error" no video is too short, so it gives the same clips as "repeat".
        "short_clips": "repeat" if clips.short_clips == "error" else clips.short_clips,
        "num_clips": len(clips),
        "dataset": digest.hexdigest()[:16],
    }


def describe_teacher(teacher: Encoder, *, weights: Sequence[str], weights_hashes: Sequence[str]) -> dict[str, Any]:
    """Describe everything that decides an embedding besides the clip.

    Args:
        teacher: The teacher with loaded weights, or the first of the networks that folds have.
        weights: The weights as the command line named them; with folds those of each network.
        weights_hashes: SHA-256 of the weights, see ``encoders.weights.weights_hash``; with folds of each network.
    """
    return {
        "teacher": teacher.name,
        "teacher_weights": _one_or_all([weights_source(each) for each in weights]),
        "teacher_weights_sha256": _one_or_all(weights_hashes),
        "teacher_view": dataclasses.asdict(teacher.view),
        "embed_dim": teacher.embed_dim,
    }


class TeacherCache:
    """An existing cache, which may be incomplete.

    Args:
        folder: Folder with ``cache.json``, or a repository of the hub (of the kind "dataset"), which is fetched.

    Raises:
        UserError: There is no cache, it is damaged, or a newer version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = hub.fetch(str(folder), kind="dataset") if hub.names_repository(folder) else Path(folder)
        path = self.folder / DESCRIPTION_NAME
        content = read_versioned_json(
            path,
            absent=f"there is no teacher cache in {folder} (no {path.name}): make one with crossdistill cache",
            version=FORMAT_VERSION,
            remedy="make the cache again",
            format_name=FORMAT,
        )
        # Caches of version 0.1 have no decoder in their key; nobody chose another one than the first.
        self.key: dict[str, Any] = {"decoder": DEFAULT_DECODER, **content["key"]}
        self.weights: tuple[str, ...] = _as_tuple(content.get("teacher_weights", "auto"))
        self.weights_hashes: tuple[str, ...] = _as_tuple(self.key["teacher_weights_sha256"])
        self.num_augmentations = int(content["num_views"])
        self.embed_dim, self.seed = int(self.key["embed_dim"]), int(self.key["seed"])
        self.num_clips, self.clips_per_shard = int(self.key["num_clips"]), int(self.key["clips_per_shard"])
        self._dtype = DTYPES[self.key["dtype"]]
        self._rows = functools.lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open_rows)

    @staticmethod
    def create(
        folder: Path,
        key: Mapping[str, Any],
        *,
        num_augmentations: int,
        classifier: Classifier | None = None,
        weights: Sequence[str] = ("auto",),
    ) -> None:
        """Create a cache, or resume one of the same options. The number of augmentations may grow.

        Args:
            folder: Folder of the cache.
            key: Everything that decides the embeddings.
            num_augmentations: Number of augmentations.
            classifier: The teacher's classifier on the features; None if it has none on all of them.
            weights: Name of the teacher's weights, with folds of each network's; whoever loads it again takes them.

        Raises:
            UserError: The folder holds a cache of something else, or other files; nothing is changed.
        """
        path = folder / DESCRIPTION_NAME
        if path.is_file():
            cache = TeacherCache(folder)
            cache.require(key, wanted_by="this command")
            if cache.num_augmentations > num_augmentations:
                raise UserError(
                    f"the teacher cache {folder} has {cache.num_augmentations} augmentations, but this command wants "
                    f"{num_augmentations}: give --augmentations {cache.num_augmentations} or more, or another --out"
                )
        elif folder.exists() and (not folder.is_dir() or {each.name for each in folder.iterdir()} - {LOCK_NAME}):
            raise UserError(f"{folder} holds something that is no teacher cache: choose another folder for --out")
        if classifier is not None:
            layer = {"weight": classifier.weight, "bias": classifier.bias}
            write_tensors(folder / CLASSIFIER_NAME, layer, metadata={"format": "pt"}, advice=ADVICE)
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "num_views": num_augmentations,
            "teacher_weights": _one_or_all([absolute_if_path(each) for each in weights]),
            "key": dict(key),
        }
        write_text_atomically(path, json.dumps(content, indent=2) + "\n")
        for left in (folder / SHARDS_NAME).glob(".*.tmp"):  # left by a run that was killed
            left.unlink(missing_ok=True)

    @property
    def teacher_view(self) -> ViewSpec:
        """What the teacher saw."""
        view = self.key["teacher_view"]
        return ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})

    @property
    def bytes_per_clip(self) -> int:
        """Size of one embedding on disk."""
        return self.embed_dim * int(self._dtype[1].itemsize)

    def shards(self) -> list[Shard]:
        """List the shards of a complete cache, one augmentation after another, because an epoch reads only one."""
        starts = range(0, self.num_clips, self.clips_per_shard)
        stops = [min(start + self.clips_per_shard, self.num_clips) for start in starts]
        ranges = list(zip(starts, stops, strict=True))
        return [Shard(number, start, stop) for number in range(self.num_augmentations) for start, stop in ranges]

    def missing(self) -> list[Shard]:
        """List the shards that are still to be made."""
        folder = self.folder / SHARDS_NAME
        existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return [shard for shard in self.shards() if shard.name not in existing]

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        return self.folder / SHARDS_NAME / shard.name

    def write(self, shard: Shard, features: Tensor, unreadable: Mapping[int, str]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: Which one.
            features: [n, E]. Rows of unreadable clips are ignored when the cache is read.
            unreadable: Sample to the reason why it could not be read.

        Raises:
            UserError: The disk is full, or the cache's type cannot hold an embedding: it is too large, or so small that
                its direction is lost.
        """
        stored = features.to(self._dtype[0])
        where = f"(augmentation {shard.augmentation}, samples {shard.start} to {shard.stop - 1})"
        if not bool(torch.isfinite(stored).all()):
            remedy = "choose --dtype fp32" if bool(torch.isfinite(features).all()) else "check its weights"
            raise OneProcessError(  # the other processes write other shards
                f"the teacher {self.key['teacher']} computes embeddings that are NaN or infinite in "
                f"{self.key['dtype']} {where}: {remedy}"
            )
        cosine = float(cosines(stored, features).min())
        if cosine < MIN_COSINE:
            raise OneProcessError(
                f"{self.key['dtype']} does not keep the direction of embeddings of the teacher {self.key['teacher']} "
                f"(cosine {cosine:.4f}, allowed {MIN_COSINE}) {where}: choose --dtype fp32"
            )
        reasons = json.dumps({str(sample): reason for sample, reason in unreadable.items()})
        write_tensors(self.path(shard), {FEATURES: stored}, metadata={UNREADABLE: reasons}, advice=ADVICE)

    def require(self, wanted: Mapping[str, Any], *, wanted_by: str = "this run") -> None:
        """Raise a ``UserError`` that names the first field in which the cache differs from ``wanted``."""
        found = first_difference(self.key, json.loads(json.dumps(wanted)), ignores_extra=True)
        if found is not None:
            name, has, wants = found
            raise UserError(
                f"the teacher cache {self.folder} has {name} {has!r}, but {wanted_by} needs {wants!r}: give the "
                "options that the cache was made with, or make another cache"
            )

    def require_complete(self) -> None:
        """Raise a ``UserError`` if a shard is missing."""
        missing = self.missing()
        if missing:
            raise UserError(
                f"the teacher cache {self.folder} lacks {len(missing)} of its {len(self.shards())} shards: start the "
                "command that makes it again, and it continues"
            )

    def require_fit(self, terms: Iterable[Term]) -> None:
        """Raise a ``UserError`` for objectives that need more than the teacher's pooled embeddings."""
        for term in terms:
            if term.objective.compares == "tokens":
                raise UserError(
                    f"the objective {term.name} compares tokens, and a teacher cache holds only pooled embeddings: "
                    "choose an objective on embeddings, or remove --teacher-cache"
                )

    def unreadable(self) -> dict[tuple[int, int], str]:
        """Map (sample, augmentation) to the reason why it could not be read, for all existing shards."""
        missing = set(self.missing())
        return {
            (int(sample), shard.augmentation): reason
            for shard in self.shards()
            if shard not in missing
            for sample, reason in self._read_header(shard)[1].items()
        }

    def replay(self) -> Replay:
        """Return the random seed and draws with which training reads exactly the cached clips."""
        return Replay(seed=self.seed, num_augmentations=self.num_augmentations, unreadable=self.unreadable())

    def read(self, sample_keys: Tensor) -> Tensor:
        """Read the embeddings of clips.

        Args:
            sample_keys: [B, 2] int64 on the CPU: sample and augmentation, as in ``PairedBatch.sample_keys``.

        Returns:
            [B, E] float32.
        """
        rows = np.empty((len(sample_keys), self.embed_dim), dtype=np.float32)
        for row, (sample, augmentation) in zip(rows, sample_keys.tolist(), strict=True):
            start = sample - sample % self.clips_per_shard
            shard = Shard(augmentation, start, min(start + self.clips_per_shard, self.num_clips))
            row[:] = self._rows(shard)[sample - start]
        return torch.from_numpy(rows)

    def mean_embeddings(self) -> dict[int, Tensor]:
        """Return for each sample the mean embedding [E] over its readable augmentations; none without any."""
        unreadable, found = self.unreadable(), {}
        for sample in range(self.num_clips):
            keys = [(sample, a) for a in range(self.num_augmentations) if (sample, a) not in unreadable]
            if keys:
                found[sample] = self.read(torch.tensor(keys)).mean(0)
        return found

    def encoder(self) -> Encoder:
        """Return the cached teacher as an encoder whose body is an identity.

        Its name, embedding size, view and classifier are those of the teacher; the body's weights are not in the cache.
        """
        info = EncoderInfo(embed_dim=self.embed_dim)
        encoder = Encoder(nn.Identity(), name=self.key["teacher"], view=self.teacher_view, info=info)
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
        """Return the offset of the rows in a shard's file, and its unreadable samples with the reasons.

        The file is mapped into memory by hand, because safetensors has no view of one tensor without a copy. Layout: 8
        bytes length of the header, the header in JSON, the values.
        """
        path = self.path(shard)
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, path.stat().st_size)))
            facts = header[FEATURES]
            is_intact = facts["dtype"] == self._dtype[2] and facts["shape"] == [shard.num_clips, self.embed_dim]
            is_intact &= path.stat().st_size == 8 + length + shard.num_clips * self.bytes_per_clip
            reasons: dict[str, str] = json.loads(header["__metadata__"][UNREADABLE])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error
        if not is_intact:
            raise _damaged(path)
        return 8 + length, reasons


def _one_or_all(values: Sequence[str]) -> str | list[str]:
    """Return what ``_as_tuple`` reads."""
    return values[0] if len(values) == 1 else list(values)


def _as_tuple(stored: str | list[str]) -> tuple[str, ...]:
    """Return what the description says of one network, or of one for each fold."""
    return tuple(stored) if isinstance(stored, list) else (stored,)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is not an intact shard: delete it, and start the command that makes the cache")


def spread(shards: Sequence[Shard], *, num_clips: int, seed: int) -> list[tuple[int, int]]:
    """Draw (sample, augmentation) of clips from shards, without repetition, in the order in which they are stored."""
    ends = np.cumsum([shard.num_clips for shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.random.default_rng(seed).choice(total, size=min(num_clips, total), replace=False)
    found = []
    for position in sorted(drawn.tolist()):
        number = int(np.searchsorted(ends, position, side="right"))
        shard = shards[number]
        found.append((shard.stop - (int(ends[number]) - position), shard.augmentation))
    return found
