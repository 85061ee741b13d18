"""The videos that clips are drawn from: which of which datasets, without one object for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.videos import Row, rows_of

Positions = NDArray[np.int64]
NO_POSITIONS: Positions = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Entry:
    """A video to draw clips from."""

    root: Path
    """Folder of the video's dataset."""
    video: Video
    label: int
    """Index of the class; -1 if the video has no label."""

    @property
    def key(self) -> str:
        """Folder of the dataset and name of the video. The name alone is unique only within its dataset."""
        return f"{self.root}/{self.video.name}"


class Entries(Sequence[Entry]):
    """Videos at some positions of one or several manifests. An entry is built when it is asked for.

    Example:
        >>> manifest = Manifest(Path("data"), "mine", (), [Video("a"), Video("b", label=1)])
        >>> entries = entries_of(manifest, [1, 0])
        >>> entries[0].key, entries.labels.tolist()
        ('data/b', [1, -1])

    Args:
        manifests: Datasets of the videos.
        numbers: [entries] position in ``manifests`` of the dataset of each entry; None for the first one.
        positions: [entries] position of each entry's video in its dataset.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest] = (),
        numbers: NDArray[np.int16] | None = None,
        positions: Positions = NO_POSITIONS,
    ) -> None:
        self._manifests = list(manifests)
        self._numbers = np.zeros(len(positions), dtype=np.int16) if numbers is None else numbers
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> Entries: ...
    def __getitem__(self, key: int | slice) -> Entry | Entries:
        if isinstance(key, slice):
            return Entries(self._manifests, self._numbers[key], self._positions[key])
        manifest = self._manifests[self._numbers[key]]
        video = manifest.videos[int(self._positions[key])]
        return Entry(manifest.root, video, -1 if video.label is None else video.label)

    def __add__(self, other: Entries) -> Entries:
        numbers = np.concatenate([self._numbers, other._numbers + np.int16(len(self._manifests))])
        positions = np.concatenate([self._positions, other._positions])
        return Entries([*self._manifests, *other._manifests], numbers, positions)

    def at(self, chosen: Positions | NDArray[np.bool_]) -> Entries:
        """Return the entries at some positions, or those where a mask is true."""
        return Entries(self._manifests, self._numbers[chosen], self._positions[chosen])

    def spread(self, max_entries: int) -> Entries:
        """Return at most so many entries, spread evenly over all."""
        num_chosen = min(max_entries, len(self))
        return self.at(np.arange(num_chosen) * len(self) // max(1, num_chosen))

    def _collect(self, values_of: Callable[[Manifest, NDArray[np.int64]], Any], like: NDArray[Any]) -> NDArray[Any]:
        """Return a value [entries] of every entry from those of each manifest's videos at some positions."""
        found = np.empty(len(self), dtype=like.dtype)
        for number, manifest in enumerate(self._manifests):
            is_its = self._numbers == number
            found[is_its] = values_of(manifest, self._positions[is_its])
        return found

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """[entries] whether a video has streams that can be read."""
        return self._collect(lambda manifest, positions: manifest.is_usable[positions], np.empty(0, dtype=bool))

    @property
    def labels(self) -> NDArray[np.int64]:
        """[entries] index of the class; -1 for a video without a label."""
        return self._collect(lambda manifest, positions: manifest.table.labels[positions], NO_POSITIONS)

    def names(self) -> list[str]:
        """Return the name of every entry's video."""

        def names(manifest: Manifest, positions: NDArray[np.int64]) -> NDArray[np.object_]:
            return np.array(manifest.table.column("name").take(pa.array(positions)).to_pylist(), dtype=object)

        return self._collect(names, np.empty(0, dtype=object)).tolist()

    def keys(self) -> list[str]:
        """Return ``Entry.key`` of every entry."""
        return [f"{self.root_of(i)}/{name}" for i, name in enumerate(self.names())]

    def root_of(self, position: int) -> Path:
        """Return the folder of an entry's dataset without building the entry."""
        return self._manifests[self._numbers[position]].root

    def roots(self) -> list[Path]:
        """Return the folders of the datasets."""
        return [manifest.root for manifest in self._manifests]

    def rows(self) -> Iterator[Row]:
        """Yield the videos as JSON objects, as ``Video.to_json`` returns them."""
        tables = [manifest.table for manifest in self._manifests]
        for number, position in zip(self._numbers.tolist(), self._positions.tolist(), strict=True):
            yield tables[number].row(position)


def entries_of(manifest: Manifest, positions: Positions | Sequence[int]) -> Entries:
    """Return the videos at some positions of a manifest, as ``PairedClips`` takes them."""
    return Entries([manifest], positions=np.asarray(positions, dtype=np.int64))


def keys_of(entries: Sequence[Entry]) -> list[str]:
    """Return the key of every entry."""
    return entries.keys() if isinstance(entries, Entries) else [entry.key for entry in entries]


def names_of(entries: Sequence[Entry]) -> list[str]:
    """Return the name of the video of every entry."""
    return entries.names() if isinstance(entries, Entries) else [entry.video.name for entry in entries]


def root_of(entries: Sequence[Entry], position: int) -> Path:
    """Return the folder of an entry's dataset."""
    return entries.root_of(position) if isinstance(entries, Entries) else entries[position].root


def roots_of(entries: Sequence[Entry]) -> list[Path]:
    """Return the folders of the datasets of all entries."""
    return entries.roots() if isinstance(entries, Entries) else list({entry.root: None for entry in entries})


def video_rows_of(entries: Sequence[Entry]) -> Iterator[Row]:
    """Yield the video of every entry as a JSON object."""
    return entries.rows() if isinstance(entries, Entries) else rows_of([entry.video for entry in entries])
