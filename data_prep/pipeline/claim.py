"""Whether --out may be prepared into: a wrong folder must not cost the videos that it holds.

Without --replace, a run adds to a prepared dataset. It is refused if it would take videos out of the dataset, or make
streams again that are finished and undamaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from crossdistill.data.manifest import MANIFEST_NAME, Manifest, is_prepared
from crossdistill.errors import UserError
from crossdistill.utils.records import first_difference
from data_prep.pipeline.journal import JournalEntry, read_journals
from data_prep.pipeline.options import RunOptions
from data_prep.pipeline.resume import is_there
from data_prep.pipeline.shards import part_names
from data_prep.pipeline.tasks import Task, fits

ADVICE = "give another --out, or add --replace"
OPTION_NAMES = {"short_side_px": "--short-side"}
"""Names of options that are not those of the fields of a recipe."""


def check_datasets(dataset: str, names: Collection[str], options: RunOptions) -> None:
    """Raise a ``UserError`` if --out holds another dataset, or prepared videos that are not among ``names``."""
    if options.replace:
        return
    out = options.out
    gone = sorted(_held_names(out, dataset) - set(names))
    if gone:
        raise UserError(
            f"--out {out} holds {len(gone)} prepared {options.noun} that this command does not name, the first is "
            f"{gone[0]}, and the {len(names)} {options.noun} of this command begin with {min(names, default='none')}: "
            f"{ADVICE} to leave them out of the dataset"
        )


def _held_names(out: Path, dataset: str) -> set[str]:
    """Return the names of the prepared videos of a folder, which a ``UserError`` says is of another dataset."""
    # Parts of --shard that were not merged have manifests of their own.
    files = [MANIFEST_NAME] if is_prepared(out) else part_names(out)
    held: set[str] = set()
    for name in files:
        try:
            manifest = Manifest.load(out, name)
        except UserError:  # damaged: this run writes it again
            break
        if manifest.dataset != dataset:
            raise UserError(f"--out {out} holds the dataset {manifest.dataset!r}, not {dataset!r}: {ADVICE}")
        held.update(manifest.table.column("name").filter(pa.array(manifest.is_usable)).to_pylist())
    else:
        if files:
            return held
    # A run that was killed left only a journal.
    entries = [entry for of_video in read_journals(out).values() for entry in of_video]
    return {entry.name for entry in entries if any(is_there(out, s) for s in entry.outcome.streams.values())}


def check_streams(tasks: Iterable[Task], journals: Mapping[str, Sequence[JournalEntry]], options: RunOptions) -> None:
    """Raise a ``UserError`` if finished streams would be made again, with other options or from other files.

    The streams of a damaged source may be made again from a better copy.
    """
    if options.replace:
        return
    changed: dict[str, list[Task]] = {}
    for task in tasks:
        difference = _difference(task, journals.get(task.job.name, ()), options)
        if difference is not None:
            changed.setdefault(difference, []).append(task)
    if changed:
        difference, others = max(changed.items(), key=lambda item: len(item[1]))
        job = others[0].job
        raise UserError(
            f"--out {options.out} holds {len(others)} prepared {options.noun} that were made {difference}, the first "
            f"is {job.name} (now given: {next(iter(job.inputs.values())).path}): {ADVICE} to make them again"
        )


def _difference(task: Task, entries: Sequence[JournalEntry], options: RunOptions) -> str | None:
    """Return how a finished stream of a video differs from the one that this run would write over it."""
    for stream, key in task.keys.items():
        made = [entry for entry in entries if stream in entry.outcome.streams and stream in entry.keys]
        if len(made) == 1 and fits(made[0].keys[stream], key):
            continue  # without a look at the file, of which there may be a million
        made = [entry for entry in made if is_there(options.out, entry.outcome.streams[stream])]
        if not made or any(fits(entry.keys[stream], key) for entry in made):
            continue
        latest = made[0].keys[stream]
        difference = first_difference(latest["recipe"], key["recipe"])
        if difference is not None:
            name, before, now = difference
            return f"with {OPTION_NAMES.get(name, '--' + name.replace('_', '-'))} {before}, not {now}"
        if latest["version"] != key["version"]:
            return "by another version of crossdistill"
        if made[0].outcome.status == "ok":
            return "from other files (of another size or date)"
    return None
