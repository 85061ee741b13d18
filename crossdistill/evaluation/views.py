"""Multi-view testing: several clips of a video and crops of each, whose features or probabilities are averaged.

``10x3`` is the protocol of most papers on Kinetics: ten clips from the start of the video to its end, three squares
along the longer side of the picture. ``1x1`` is the middle of the video and of the picture, as everywhere else here.

Shapes: B batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdistill.data.dataset import Entry, Item, PairedClips, collate
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Crop, CutClip, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.types import PairedBatch, ViewSpec


@dataclass(frozen=True)
class TestViews:
    """How many clips of a video, and how many crops of each clip."""

    __test__ = False  # no test of pytest's

    num_clips: int = 1
    num_crops: int = 1

    @staticmethod
    def parse(text: str, *, option: str = "--views") -> TestViews:
        """Read ``10x3``.

        Args:
            text: What was given.
            option: As what, for the error.

        Raises:
            UserError: Two whole numbers from 1 on are not what is given.
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise UserError(f"{option} {text} is not CLIPSxCROPS: give for example 1x1, 10x1 or 10x3")
        return TestViews(int(match[1]), int(match[2]))

    @property
    def num_views(self) -> int:
        """Of one video."""
        return self.num_clips * self.num_crops

    def __str__(self) -> str:
        return f"{self.num_clips}x{self.num_crops}"

    def require_fit(self, view: ViewSpec) -> None:
        """Raise a ``UserError`` where crops would all be the same."""
        if self.num_crops > 1 and not view.kind.is_picture:
            raise UserError(
                f"a {view.modality} view is no picture, so {self.num_crops} crops of it are {self.num_crops} times the "
                f"same: give --views {self.num_clips}x1"
            )


def spread_crops(num_crops: int, *, width_px: int, height_px: int, fraction: float = 1.0) -> list[Crop]:
    """Centred squares of a share of the shorter side, spread evenly along the longer side from end to end.

    Args:
        num_crops: One is the centre.
        width_px: Of the picture.
        height_px: Of the picture.
        fraction: Of the shorter side.
    """
    centre = centre_crop(width_px=width_px, height_px=height_px, fraction=fraction)
    if num_crops == 1:
        return [centre]
    shares = np.linspace(0, 1, num_crops).tolist()
    if width_px >= height_px:
        return [Crop(share * (1 - centre.width), centre.top, centre.width, centre.height) for share in shares]
    return [Crop(centre.left, share * (1 - centre.height), centre.width, centre.height) for share in shares]


class MultiViewClips(PairedClips):
    """All views of every video, read together: neighbouring clips share frames, and crops share all of theirs.

    A batch has ``views.num_views`` rows for each video that could be read, clip by clip and in each crop by crop.
    ``PairedBatch.sample_keys`` holds the video and the number of the view.

    Args:
        entries: The videos.
        view: What the encoder sees.
        views: How many of them.
        decoder: Which library reads.
        short_clips: What becomes of videos that are shorter than a clip.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        view: ViewSpec,
        views: TestViews,
        decoder: str = DEFAULT_DECODER,
        short_clips: str = "repeat",
    ) -> None:
        super().__init__(entries, student_view=view, decoder=decoder, short_clips=short_clips)
        self.view = view
        self.test_views = views

    def read_batch(self, keys: Sequence[SampleKey]) -> PairedBatch:
        """Read all views of some videos; those that cannot be read are left out and named."""
        items = (item for key in keys for item in self._items(key.index))
        return collate(items, num_items=len(keys) * self.test_views.num_views)

    __getitems__ = read_batch  # what a DataLoader calls

    def _items(self, index: int) -> list[Item]:
        entry = self.entries[index]
        try:
            cuts = self._cuts(entry)
        except UnreadableVideoError as error:
            return [Item(index, entry.label, None, ((entry.key, str(error)),))]
        return [Item(index, entry.label, (cut,), (), number) for number, cut in enumerate(cuts)]

    def _cuts(self, entry: Entry) -> list[CutClip]:
        reader = self.clip_reader(entry)
        width_px, height_px = reader.picture_size_px
        fraction = self.view.centre_fraction
        crops = spread_crops(self.test_views.num_crops, width_px=width_px, height_px=height_px, fraction=fraction)
        (cuts,) = reader.read(reader.spread_centres(self.test_views.num_clips), [crops])
        return cuts
