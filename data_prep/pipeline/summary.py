"""Summary of a run: the number of videos by status, the size of the streams, and a check for unusable videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crossdistill.data.manifest import STATUSES, Manifest
from crossdistill.data.videos import SKIPPED
from crossdistill.errors import UserError
from crossdistill.utils.console import console, print_table
from data_prep.recipe import MISSING

DOWNLOAD_AGAIN = "download them again and add --retry"
REMEDIES = {"time limit": "raise --time-limit and add --retry", "too short": "lower --min-frames"}
"""Kind of reason to what helps, if it is not another copy of the files."""
MAX_LISTED_REPAIRED = 10


@dataclass(frozen=True)
class Kind:
    """What became of a video: its status, and the kind of reason, without the details after the colon."""

    status: str
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


def outcomes(manifest: Manifest) -> dict[Kind, list[int]]:
    """Return the positions of the videos of each kind. The kinds are sorted by status, then by reason."""
    reasons = manifest.table.column("reason")
    codes, has_reason = manifest.table.status_codes, pc.not_equal(reasons, "").to_numpy()
    found: dict[Kind, list[int]] = {}
    for code, status in enumerate(STATUSES):
        plain = np.flatnonzero((codes == code) & ~has_reason).tolist()
        if plain:
            found[Kind(status, "")] = plain
        explained = np.flatnonzero((codes == code) & has_reason)
        of_status: dict[Kind, list[int]] = {}
        for position, reason in zip(explained.tolist(), reasons.take(pa.array(explained)).to_pylist(), strict=True):
            # "too short: 3 frames, fewer than 8" counts as "too short".
            of_status.setdefault(Kind(status, reason.split(":")[0]), []).append(position)
        found.update(sorted(of_status.items(), key=lambda item: item[0].reason))
    return found


def print_summary(manifest: Manifest) -> None:
    """Print the number of videos by status and reason, the names of repaired ones, frames and sizes of streams."""
    found = outcomes(manifest)
    rows = [(str(kind), str(len(positions))) for kind, positions in found.items()]
    print_table(manifest.dataset, ("status", manifest.noun), [*rows, ("all", str(len(manifest.videos)))])
    repaired = np.flatnonzero(manifest.table.status_codes == STATUSES.index("repaired")).tolist()
    for video in map(manifest.videos.__getitem__, repaired[:MAX_LISTED_REPAIRED]):
        console.print(f"repaired: {video.name} ({video.reason})", highlight=False, soft_wrap=True)
    if len(repaired) > MAX_LISTED_REPAIRED:
        console.print(f"and {len(repaired) - MAX_LISTED_REPAIRED} more, which the manifest lists")
    missing = found.get(Kind(SKIPPED, MISSING), [])
    if missing:
        console.print(
            f"warning: {len(missing)} of {len(manifest.videos)} listed files do not exist, the first is "
            f"{manifest.videos[missing[0]].name}: add them and give the same command again, or remove them from the "
            "list",
            highlight=False,
            soft_wrap=True,
        )
    for name in manifest.streams:
        num_frames, num_bytes = (manifest.table.stream_numbers(name, f) for f in ("num_frames", "num_bytes"))
        # Manifests of early versions have no sizes.
        unsized = np.flatnonzero(manifest.is_usable & (num_bytes == 0)).tolist()
        unknown = [manifest.videos[i].streams[name] for i in unsized]
        if manifest.table.layout.has_segments:
            num_bytes = np.where(_is_first_of_file(manifest, name), num_bytes, 0)
        size_bytes = num_bytes[manifest.is_usable].sum() + sum(s.file(manifest.root).stat().st_size for s in unknown)
        console.print(f"{name}: {num_frames[manifest.is_usable].sum()} frames, {size_bytes / 1e6:.1f} MB")
    console.print(f"prepared dataset: {manifest.root}", highlight=False, soft_wrap=True)


def _is_first_of_file(manifest: Manifest, stream: str) -> NDArray[np.bool_]:
    """[videos] whether no usable video before has the same file, which segments of a long video share."""
    paths, offsets = manifest.table.stream_column(stream, "path"), manifest.table.stream_numbers(stream, "offset")
    seen: set[tuple[str, int]] = set()
    is_first = np.zeros(len(offsets), dtype=bool)
    for position in np.flatnonzero(manifest.is_usable & manifest.table.has_stream(stream)).tolist():
        file = (paths[position].as_py(), int(offsets[position]))
        is_first[position] = file not in seen
        seen.add(file)
    return is_first


def check_share_of_bad(manifest: Manifest, max_bad: float) -> None:
    """Raise a ``UserError`` if more than this share of the found files is unusable. Missing files do not count."""
    bad = {kind: found for kind, found in outcomes(manifest).items() if kind.status == SKIPPED}
    num_found = len(manifest.videos) - len(bad.pop(Kind(SKIPPED, MISSING), []))
    num_bad = sum(map(len, bad.values()))
    if num_bad > max_bad * num_found:
        kind, positions = max(bad.items(), key=lambda item: len(item[1]))
        example = manifest.videos[positions[0]]
        raise UserError(
            f"{num_bad} of {num_found} files are unusable, more than --max-bad {max_bad:g} allows; the commonest "
            f"reason ({len(positions)} of {num_bad}) is that of {example.name} ({example.reason}), and the manifest in "
            f"{manifest.root} lists all: "
            f"{REMEDIES.get(kind.reason, DOWNLOAD_AGAIN)}, or raise --max-bad to continue without them"
        )
