"""Teachers' outputs on disk: training with them neither decodes the teachers' streams nor runs the teachers.

A cache of one teacher is a folder. ``cache.json`` describes it; ``shards/`` holds one safetensors file for each range
of samples in each augmented version (``cache_shards.py``); ``classifier.safetensors`` holds the teacher's linear
classifier, if it has one. Augmentation a of sample i is the clip that ``PairedClips`` draws for
``SampleKey(i, epoch=a)`` with the cache's seed.

``cache_key.py`` describes what decides it, and ``TeacherCache.require`` compares that with a run. ``cache_folders.py``
opens and creates folders of one or several teachers. ``recipes/cache.py`` fills them.

Shapes: B batch, E teacher features, N classes, T H W the stored grid of tokens, n samples of a shard.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossdistill.data.dataset import Replay
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.distillation.cache_key import absolute_if_path, as_tuple, one_or_all, view_of_moment
from crossdistill.distillation.cache_shards import (
    ADVICE,
    STORAGE,
    Part,
    Shard,
    ShardFile,
    cosines,
    decode,
    encode,
    write_shard,
)
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier, EncoderInfo
from crossdistill.encoders.tokens import Grid, TokenLayer, grid_text, parse_grid, pool_tokens
from crossdistill.encoders.weights import find_classifier
from crossdistill.errors import OneProcessError, UserError
from crossdistill.types import ViewSpec
from crossdistill.utils import hub
from crossdistill.utils.files import write_text_atomically
from crossdistill.utils.locks import LOCK_NAME
from crossdistill.utils.records import first_difference, read_versioned_json
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights

FORMAT = "crossdistill-teacher-cache"
FORMAT_VERSION = 2
DESCRIPTION_NAME = "cache.json"
SHARDS_NAME = "shards"
CLASSIFIER_NAME = "classifier.safetensors"
FEATURES, LOGITS, TOKENS = "features", "logits", "tokens"
# Shards that one process keeps open. Each takes a file descriptor, and a process often has no more than 1024.
MAX_OPEN_SHARDS = 256
# A token that is shorter than this share of the mean one is not asked to keep its direction.
MIN_TOKEN_SHARE = 1e-3
# Fields that a key lacks if the cache has no such thing.
OPTIONAL_FIELDS = ("teacher_views", "tokens", "num_logits")


class StoredEncoder(Encoder):
    """A cached teacher as an encoder whose body is an identity.

    Its name, view, sizes and classifier are those of the teacher; the body's weights are not in the cache.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: TeacherCache) -> None:
        layer = TokenLayer("") if TOKENS in cache.parts else None
        info = EncoderInfo(embed_dim=cache.embed_dim, token_layer=layer)
        super().__init__(nn.Identity(), name=cache.key["teacher"], view=cache.teacher_view, info=info)
        self._parts, self._grid, self._own_grid = cache.parts, cache.grid, cache.own_grid

    @property
    def num_classes(self) -> int | None:
        """N: of the stored logits, or of the classifier."""
        return self._parts[LOGITS].width if LOGITS in self._parts else super().num_classes

    def token_shape(self) -> tuple[int, int, int, int]:
        """Return (E, T, H, W) of the stored tokens."""
        self.require_tokens()
        assert self._grid is not None
        return self._parts[TOKENS].width, *self._grid

    @property
    def pooled_from(self) -> Grid | None:
        """The network's own grid, if the stored one is coarser."""
        return self._own_grid if self._own_grid != self._grid else None


class TeacherCache:
    """A cache of one teacher, which may be incomplete.

    Args:
        folder: Folder with ``cache.json``, or a repository of the hub (of the kind "dataset"), which is fetched.
        content: What ``cache.json`` says; read from the file if None.

    Raises:
        UserError: There is no cache, it is damaged, it is of several teachers, or a newer version wrote it.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any] | None = None) -> None:
        self.folder = located(folder) if content is None else Path(folder)
        content = read_description(self.folder) if content is None else content
        if "num_teachers" in content:
            raise UserError(f"{folder} is of {content['num_teachers']} teachers: give {folder}/teacher-1, or another")
        try:
            # Caches of version 0.1 have no decoder in their key; nobody chose another one than the first.
            self.key: dict[str, Any] = {"decoder": DEFAULT_DECODER, **content["key"]}
            self.weights: tuple[str, ...] = as_tuple(content.get("teacher_weights", "auto"))
            self.weights_hashes: tuple[str, ...] = as_tuple(self.key["teacher_weights_sha256"])
            self.num_augmentations = int(content["num_views"])
            self.embed_dim, self.seed = int(self.key["embed_dim"]), int(self.key["seed"])
            self.num_clips, self.clips_per_shard = int(self.key["num_clips"]), int(self.key["clips_per_shard"])
            self.storage = STORAGE[self.key["dtype"]]
            has_tokens = self.key.get("tokens") is not None
            self.grid = parse_grid(self.key["tokens"], option="tokens") if has_tokens else None
            self.own_grid = parse_grid(self.key["token_grid"], option="token_grid") if has_tokens else None
            self.parts = {part.name: part for part in self._find_parts()}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.folder / DESCRIPTION_NAME} is damaged ({error!r}): make the cache again") from error
        self._content = content
        self._file = functools.lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open)

    def _find_parts(self) -> Iterator[Part]:
        yield Part(FEATURES, 1, self.embed_dim)
        if self.key.get("num_logits") is not None:
            yield Part(LOGITS, 1, int(self.key["num_logits"]))
        if self.grid is not None:
            yield Part(TOKENS, math.prod(self.grid), int(self.key["token_channels"]))

    @staticmethod
    def planned(
        folder: Path, key: Mapping[str, Any], *, num_augmentations: int, weights: Sequence[str] = ("auto",)
    ) -> TeacherCache:
        """Return a cache that need not exist yet; nothing is written.

        Args:
            folder: Folder of the cache.
            key: Everything that decides the embeddings. Fields that are None say that the cache has no such thing.
            num_augmentations: Number of augmentations.
            weights: Name of the teacher's weights, with folds of each network's; whoever loads it again takes them.
        """
        kept = {name: value for name, value in key.items() if value is not None}
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "num_views": num_augmentations,
            "teacher_weights": one_or_all([absolute_if_path(each) for each in weights]),
            "key": kept,
        }
        return TeacherCache(folder, json.loads(json.dumps(content)))

    def require_creatable(self) -> None:
        """Raise a ``UserError`` if the folder holds a cache of something else, or other files.

        The number of augmentations of an existing cache may grow.
        """
        if (self.folder / DESCRIPTION_NAME).is_file():
            cache = TeacherCache(self.folder)
            cache.require({**dict.fromkeys(OPTIONAL_FIELDS), **self.key}, wanted_by="this command")
            if cache.num_augmentations > self.num_augmentations:
                raise UserError(
                    f"the teacher cache {self.folder} has {cache.num_augmentations} augmentations, but this command "
                    f"wants {self.num_augmentations}: give --augmentations {cache.num_augmentations} or more, or "
                    "another --out"
                )
        else:
            require_empty(self.folder)

    def write_description(self, classifier: Classifier | None) -> None:
        """Write ``cache.json``.

        Args:
            classifier: The teacher's classifier on the features; None if it has none on all of them.
        """
        if classifier is not None:
            layer = {"weight": classifier.weight, "bias": classifier.bias}
            write_tensors(self.folder / CLASSIFIER_NAME, layer, metadata={"format": "pt"}, advice=ADVICE)
        # Runs know a cache by its key, which a former version may have written.
        is_resumed = (self.folder / DESCRIPTION_NAME).is_file()
        key = TeacherCache(self.folder)._content["key"] if is_resumed else self.key
        kept = {name: value for name, value in key.items() if is_resumed or name != "dataset"}
        self._content = {**self._content, "key": kept}
        self._write(self._content)
        for left in (self.folder / SHARDS_NAME).glob(".*.tmp"):  # left by a run that was killed
            left.unlink(missing_ok=True)

    def _write(self, content: Mapping[str, Any]) -> None:
        write_text_atomically(self.folder / DESCRIPTION_NAME, json.dumps(content, indent=2) + "\n")

    @property
    def teacher_view(self) -> ViewSpec:
        """What the teacher saw."""
        view = self.key["teacher_view"]
        return ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})

    @property
    def clip_views(self) -> list[ViewSpec]:
        """The views of all teachers that the cache was made with, as far as they decide the moments of the clips."""
        moments = self.key.get("teacher_views")
        return [self.teacher_view] if moments is None else [view_of_moment(moment) for moment in moments]

    @property
    def bytes_per_clip(self) -> int:
        """Size of one clip on disk."""
        return sum(part.num_bytes(self.storage) for part in self.parts.values())

    @property
    def content_text(self) -> str:
        """What is stored of a clip, in words, for example ``512 features, 4x7x7 tokens, fp16``."""
        parts = [f"{self.embed_dim} features"]
        if LOGITS in self.parts:
            parts.append(f"{self.parts[LOGITS].width} logits")
        if self.grid is not None:
            parts.append(f"{grid_text(self.grid)} tokens of {self.parts[TOKENS].width}")
        return ", ".join([*parts, self.key["dtype"]])

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

    def rows_of(self, targets: Mapping[Any, Tensor]) -> dict[str, Tensor]:
        """Turn a teacher's outputs for n clips into the rows [n, R, F] of each part. Tokens are pooled to the grid."""
        rows: dict[str, Tensor] = {}
        for name in self.parts:
            values = targets[name].float().cpu()
            if name == TOKENS:
                assert self.grid is not None
                rows[name] = pool_tokens(values, self.grid).flatten(2).transpose(1, 2)
            else:
                rows[name] = values[:, None]
        return rows

    def no_rows(self, num_clips: int) -> dict[str, Tensor]:
        """Return zeros [n, R, F] for each part, to be filled."""
        return {name: torch.zeros(num_clips, part.num_rows, part.width) for name, part in self.parts.items()}

    def write(self, shard: Shard, rows: Mapping[str, Tensor], unreadable: Mapping[int, str]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: Which one.
            rows: [n, R, F] of each part, see ``rows_of``. Rows of unreadable clips are ignored when the cache is read.
            unreadable: Sample to the reason why it could not be read.

        Raises:
            UserError: The disk is full, or the cache's type cannot hold a row: it is too large, or so small that its
                direction is lost.
        """
        is_readable = torch.tensor([sample not in unreadable for sample in range(shard.start, shard.stop)])
        encoded, measured = {}, {}
        for name, part in self.parts.items():
            encoded[part] = encode(rows[name], self.storage)
            stored = decode(*encoded[part])
            measured[name] = self._require_kept(shard, name, stored[is_readable], rows[name][is_readable])
        write_shard(self.path(shard), encoded, unreadable=unreadable, measured=measured)

    def _require_kept(self, shard: Shard, name: str, stored: Tensor, rows: Tensor) -> Tensor:
        """Return the cosines of stored rows to the originals, or raise an error if they are lost."""
        teacher, dtype = self.key["teacher"], self.key["dtype"]
        what = {FEATURES: "embeddings"}.get(name, name)
        where = f"(augmentation {shard.augmentation}, samples {shard.start} to {shard.stop - 1})"
        wider = "choose --dtype fp16" if dtype == "int8" else "choose --dtype fp32"
        if not bool(torch.isfinite(stored).all()):
            remedy = wider if bool(torch.isfinite(rows).all()) else "check its weights"
            raise OneProcessError(  # the other processes write other shards
                f"the teacher {teacher} computes {what} that are NaN or infinite in {dtype} {where}: {remedy}"
            )
        found = self.kept_cosines(name, stored, rows)
        if len(found) and float(found.min()) < self.storage.min_cosine:
            raise OneProcessError(
                f"{dtype} does not keep the direction of {what} of the teacher {teacher} (cosine "
                f"{float(found.min()):.4f}, allowed {self.storage.min_cosine}) {where}: {wider}"
            )
        return found

    def kept_cosines(self, name: str, stored: Tensor, rows: Tensor) -> Tensor:
        """Compute the cosine [n · R] between stored rows and live rows [n, R, F] of a part.

        Tokens next to zero are left out: where a network sees nothing, they have no direction to keep.
        """
        stored, rows = stored.flatten(0, 1), rows.flatten(0, 1)
        if name == TOKENS:
            lengths = rows.norm(dim=1)
            is_long = lengths >= MIN_TOKEN_SHARE * lengths.mean()
            stored, rows = stored[is_long], rows[is_long]
        return cosines(stored, rows)

    def record_cosines(self) -> dict[str, dict[str, float]]:
        """Write into ``cache.json`` how well the stored rows keep the originals, and return it.

        Returns:
            Part to the smallest (``min``) and the mean cosine (``mean``) over the ``num_rows`` rows of its shards.
        """
        missing = set(self.missing())
        files = [self._open(shard).cosines for shard in self.shards() if shard not in missing]
        found: dict[str, dict[str, float]] = {}
        for name in self.parts:
            own = [each[name] for each in files if name in each]
            if own:
                num_rows = sum(number for *_, number in own)
                mean = sum(mean * number for _, mean, number in own) / num_rows
                found[name] = {"min": min(low for low, *_ in own), "mean": mean, "num_rows": num_rows}
        self._write({**self._content, "cosines": found})
        return found

    def require(self, wanted: Mapping[str, Any], *, wanted_by: str = "this run") -> None:
        """Raise a ``UserError`` that names the first field in which the cache differs from ``wanted``."""
        # The paths of the videos count only where their content is not known.
        ignored = "dataset" if "content" in self.key else "content"
        compared = {name: value for name, value in wanted.items() if name != ignored}
        found = first_difference(self.key, json.loads(json.dumps(compared)), ignores_extra=True)
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
        """Raise a ``UserError`` for objectives that need more than the cache holds."""
        for term in terms:
            if term.objective.compares == TOKENS and TOKENS not in self.parts:
                raise UserError(
                    f"the objective {term.name} compares tokens, and the teacher cache {self.folder} holds none: make "
                    "it with --tokens, choose an objective on embeddings, or remove --teacher-cache"
                )
            # The classifiers of folds are several, and the cache does not say which clip is of which fold.
            if term.objective.compares == LOGITS and LOGITS not in self.parts and len(self.weights_hashes) > 1:
                raise UserError(
                    f"the objective {term.name} compares logits, and the teacher cache {self.folder} of folds holds "
                    "none: make it with --logits, or choose an objective on embeddings"
                )

    def check_files(self) -> int:
        """Check length and checksum of every shard, and return how many are of a version that wrote no checksum.

        Raises:
            UserError: A shard is missing, cut short, or changed since it was written.
        """
        self.require_complete()
        num_without = 0
        for shard in self.shards():
            file = self._open(shard)
            file.check()
            num_without += not file.has_checksum
        return num_without

    def unreadable(self) -> dict[tuple[int, int], str]:
        """Map (sample, augmentation) to the reason why it could not be read, for all existing shards."""
        missing = set(self.missing())
        return {
            (int(sample), shard.augmentation): reason
            for shard in self.shards()
            if shard not in missing
            for sample, reason in self._open(shard).unreadable.items()
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
        return self.read_rows(sample_keys, FEATURES)[:, 0]

    def read_logits(self, sample_keys: Tensor) -> Tensor:
        """Read the stored logits [B, N] float32 of clips, given as for ``read``."""
        return self.read_rows(sample_keys, LOGITS)[:, 0]

    def read_tokens(self, sample_keys: Tensor) -> Tensor:
        """Read the stored tokens [B, E, T, H, W] float32 of clips, given as for ``read``."""
        assert self.grid is not None
        return self.read_rows(sample_keys, TOKENS).transpose(1, 2).unflatten(2, self.grid)

    def read_rows(self, sample_keys: Tensor, name: str) -> Tensor:
        """Read the rows [B, R, F] float32 of a part of clips, given as for ``read``."""
        part = self.parts[name]
        rows: NDArray[np.float32] = np.empty((len(sample_keys), part.num_rows * part.width), dtype=np.float32)
        for row, (sample, augmentation) in zip(rows, sample_keys.tolist(), strict=True):
            start = sample - sample % self.clips_per_shard
            shard = Shard(augmentation, start, min(start + self.clips_per_shard, self.num_clips))
            self._file(shard).read_into(row, name, sample - start)
        return torch.from_numpy(rows).unflatten(1, (part.num_rows, part.width))

    def mean_embeddings(self) -> dict[int, Tensor]:
        """Return for each sample the mean embedding [E] over its readable augmentations; none without any."""
        unreadable, found = self.unreadable(), {}
        for sample in range(self.num_clips):
            keys = [(sample, a) for a in range(self.num_augmentations) if (sample, a) not in unreadable]
            if keys:
                found[sample] = self.read(torch.tensor(keys)).mean(0)
        return found

    def encoder(self) -> StoredEncoder:
        """Return the cached teacher as an encoder that gives its name, view, sizes and classifier."""
        encoder = StoredEncoder(self)
        path = self.folder / CLASSIFIER_NAME
        if path.is_file():
            layer = read_weights(path)
            encoder.classifier = find_classifier([layer["weight"], layer["bias"]], embed_dim=self.embed_dim)
        return encoder

    def _open(self, shard: Shard) -> ShardFile:
        return ShardFile(self.path(shard), self.parts.values(), self.storage, shard.num_clips)


def require_empty(folder: Path) -> None:
    """Raise a ``UserError`` if a folder without a cache holds anything but the lock of the command that makes one."""
    if folder.exists() and (not folder.is_dir() or {each.name for each in folder.iterdir()} - {LOCK_NAME}):
        raise UserError(f"{folder} holds something that is no teacher cache: choose another folder for --out")


def located(folder: Path) -> Path:
    """Return the folder of a cache, which is fetched if it is a repository of the hub (of the kind "dataset")."""
    return hub.fetch(str(folder), kind="dataset") if hub.names_repository(folder) else Path(folder)


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``cache.json``, of one teacher or of several.

    Raises:
        UserError: There is none, it is damaged, or a newer version wrote it.
    """
    path = Path(folder) / DESCRIPTION_NAME
    content = read_versioned_json(
        path,
        absent=f"there is no teacher cache in {folder} (no {path.name}): make one with crossdistill cache",
        version=FORMAT_VERSION,
        remedy="make the cache again",
        format_name=FORMAT,
    )
    num_teachers = content.get("num_teachers", 2)
    if not isinstance(num_teachers, int) or num_teachers < 2:
        raise UserError(f"{path} is damaged ({num_teachers!r} teachers): make the cache again")
    return content


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
