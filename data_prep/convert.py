"""Rewrites the manifest of a dataset that a former version prepared: manifest.jsonl becomes manifest.arrow.

The streams and the journal stay as they are, and so do caches and runs: they know the dataset by its content, which is
the same. The former manifest is kept as manifest.jsonl.old. ``python -m data_prep inspect DIR --json`` prints it again.
The manifests of parts that were not merged are rewritten as well.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from crossdistill.data.manifest import (
    LINES_SUFFIX,
    MANIFEST_NAME,
    Manifest,
    is_prepared,
    read_lines,
    require_unique_names,
)
from crossdistill.data.video_table import outside_error
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.shards import part_names


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``python -m data_prep convert``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of a prepared dataset."""


def _keep(path: Path) -> None:
    """Give a file a second name, because a manifest that was cut at the end of a line looks whole."""
    kept = path.with_name(f"{path.name}.old")
    kept.unlink(missing_ok=True)
    try:
        kept.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copy2(path, kept)


def convert_dataset(options: ConvertOptions) -> None:
    """Rewrite every manifest of JSON lines in a folder, and say so.

    Raises:
        UserError: The folder holds no manifest, or a damaged one, which then stays as it is.
    """
    folder = options.folder
    names = [*([MANIFEST_NAME] if is_prepared(folder) else []), *part_names(folder)]
    if not names:
        Manifest.load(folder)  # says what is wrong with the folder
    former = [name for name in names if (folder / name).with_suffix(LINES_SUFFIX).is_file()]
    for name in former:
        lines = (folder / name).with_suffix(LINES_SUFFIX)
        num_lines_bytes = lines.stat().st_size
        table = read_lines(lines)
        if table.outside is not None:
            raise outside_error(str(lines), table.outside)
        if not len(table):
            raise UserError(f"{lines} has no video after its first line: bring it back from a copy")
        manifest = Manifest.of_table(folder, table)
        require_unique_names(table.column("name"))
        _keep(lines)
        path = manifest.save(name)
        said = (
            f"{path}: {len(table)} videos, {path.stat().st_size / 1e6:.1f} MB ({num_lines_bytes / 1e6:.1f} MB before)"
        )
        console.print(said, highlight=False, soft_wrap=True)
    if not former:
        Manifest.load(folder)  # says if it is damaged
        console.print(f"{folder} has the current format already", highlight=False, soft_wrap=True)
