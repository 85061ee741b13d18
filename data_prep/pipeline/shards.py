"""Shards: each job of a job array prepares one part of a dataset (``--shard I/N``).

Files are divided: a long video is in one part, with all of its segments. All shards write their streams into the same
folder. Each has a journal and a manifest of its own, so that shards can run at the same time.
``python -m data_prep merge`` joins the manifests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crossdistill.errors import UserError

Item = TypeVar("Item")
POSITIONS = "positions"
"""Fact of a part's manifest: the position of each of its videos in the whole list, if it does not have every N-th."""
PART_NAME = re.compile(r"manifest\.(\d+)-of-(\d+)\.(arrow|jsonl)")
"""File name of a shard's manifest; former versions wrote lines of JSON."""


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``total``.

    Example:
        >>> shard = Shard.parse("2/3")
        >>> shard.select(["a", "b", "c", "d", "e"])
        ['b', 'e']
        >>> shard.manifest_name
        'manifest.2-of-3.arrow'
    """

    index: int
    """From 1."""
    total: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Parse ``I/N``; raise a ``UserError`` for another form, or if I is not between 1 and N."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text} is invalid: give I/N with I from 1 to N, for example 3/16")
        return Shard(int(match[1]), int(match[2]))

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every N-th item, starting with item I."""
        return items[self.index - 1 :: self.total]

    @property
    def manifest_name(self) -> str:
        """File name of the shard's manifest."""
        return f"manifest.{self.index}-of-{self.total}.arrow"

    @property
    def journal_name(self) -> str:
        """File name of the shard's journal."""
        return f"journal.{self.index}-of-{self.total}.jsonl"


def find_parts(folder: Path) -> list[Shard]:
    """Return the shards whose manifests are in a folder, sorted."""
    matches = [match for path in folder.glob("manifest.*") if (match := PART_NAME.fullmatch(path.name))]
    found = {(int(match[2]), int(match[1])) for match in matches}
    return [Shard(index, total) for total, index in sorted(found)]


def part_names(folder: Path) -> list[str]:
    """Return the file names of the shards' manifests in a folder, sorted."""
    return [shard.manifest_name for shard in find_parts(folder)]
