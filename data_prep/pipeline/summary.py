"""Summary of a run: the number of videos by status, the size of the streams, and a check for unusable videos."""

from __future__ import annotations

from collections import Counter

from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.errors import UserError
from crossdistill.utils.console import console, print_table
from data_prep.recipe import MISSING

DOWNLOAD_AGAIN = "download them again and add --retry"
REMEDIES = {"time limit": "raise --time-limit and add --retry", "too short": "lower --min-frames"}
"""Kind of reason to what helps, if it is not another copy of the files."""
MAX_LISTED_REPAIRED = 10
STATUS_ORDER = ("ok", "repaired", "skipped")


def print_summary(manifest: Manifest) -> None:
    """Print the number of videos by status and reason, the names of repaired ones, frames and sizes of streams."""
    counts: Counter[tuple[int, str]] = Counter()
    for video in manifest.videos:
        # "too short: 3 frames, fewer than 8" counts as "too short".
        kind = f"{video.status}: {video.reason.split(':')[0]}" if video.reason else video.status
        counts[STATUS_ORDER.index(video.status), kind] += 1
    rows = [(kind, str(count)) for (_, kind), count in sorted(counts.items())]
    print_table(manifest.dataset, ("status", manifest.noun), [*rows, ("all", str(counts.total()))])
    repaired = [video for video in manifest.videos if video.status == "repaired"]
    for video in repaired[:MAX_LISTED_REPAIRED]:
        console.print(f"repaired: {video.name} ({video.reason})", highlight=False, soft_wrap=True)
    if len(repaired) > MAX_LISTED_REPAIRED:
        console.print(f"and {len(repaired) - MAX_LISTED_REPAIRED} more, which {MANIFEST_NAME} lists")
    missing = [video.name for video in manifest.videos if video.reason == MISSING]
    if missing:
        console.print(
            f"warning: {len(missing)} of {len(manifest.videos)} listed files do not exist, the first is {missing[0]}: "
            "add them and give the same command again, or remove them from the list",
            highlight=False,
            soft_wrap=True,
        )
    usable = [video for video in manifest.videos if video.is_usable]
    for name in manifest.streams:
        streams = [video.streams[name] for video in usable]
        # Manifests of early versions have no sizes.
        size_mb = sum(s.num_bytes or (manifest.root / s.path).stat().st_size for s in streams) / 1e6
        console.print(f"{name}: {sum(stream.num_frames for stream in streams)} frames, {size_mb:.1f} MB")
    console.print(f"prepared dataset: {manifest.root}", highlight=False, soft_wrap=True)


def check_share_of_bad(manifest: Manifest, max_bad: float) -> None:
    """Raise a ``UserError`` if more than this share of the found files is unusable. Missing files do not count."""
    found = [video for video in manifest.videos if video.reason != MISSING]
    bad = [video for video in found if not video.is_usable]
    if len(bad) > max_bad * len(found):
        kinds = Counter(video.reason.split(":")[0] for video in bad)
        kind, count = kinds.most_common(1)[0]
        example = next(video for video in bad if video.reason.startswith(kind))
        raise UserError(
            f"{len(bad)} of {len(found)} files are unusable, more than --max-bad {max_bad:g} allows; the commonest "
            f"reason ({count} of {len(bad)}) is that of {example.name} ({example.reason}), and the manifest in "
            f"{manifest.root} lists all: "
            f"{REMEDIES.get(kind, DOWNLOAD_AGAIN)}, or raise --max-bad to continue without them"
        )
