"""Multi-view testing: features or probabilities are averaged over several clips of a video and crops of each clip.

``10x3`` is the protocol of most papers on Kinetics: ten clips from the start of the video to its end, three squares
along the longer side of the picture. ``1x1``, the default, is the middle of the video and of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossdistill.data.dataset import Entry, Item, PairedClips, collate
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Crop, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.evaluation.perturbations import Perturbation
from crossdistill.types import PairedBatch, ViewSpec


@dataclass(frozen=True)
class TestViews:
    """Number of clips of a video, and number of crops of each clip."""

    __test__ = False  # pytest would collect a class named Test…

    num_clips: int = 1
    num_crops: int = 1

    @staticmethod
    def parse(text: str, *, option: str = "--views") -> TestViews:
        """Read ``10x3``, or raise a ``UserError`` that names the ``option``."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise UserError(f"{option} {text} is not CLIPSxCROPS: give for example 1x1, 10x1 or 10x3")
        return TestViews(int(match[1]), int(match[2]))

    @property
    def num_views(self) -> int:
        """Number of views of one video."""
        return self.num_clips * self.num_crops

    def __str__(self) -> str:
        return f"{self.num_clips}x{self.num_crops}"

    def require_fit(self, view: ViewSpec) -> None:
        """Raise a ``UserError`` where all crops of a view would be equal."""
        if self.num_crops > 1 and not view.kind.is_picture:
            raise UserError(
                f"a {view.modality} view is no picture, so {self.num_crops} crops of it are equal: give "
                f"--views {self.num_clips}x1"
            )


def spread_crops(num_crops: int, *, width_px: int, height_px: int, fraction: float = 1.0) -> list[Crop]:
    """Place squares evenly along the longer side of a picture, from end to end, centred on the shorter side.

    ``fraction`` is the side of a square as a share of the shorter side; a single square is the centre crop.
    """
    centre = centre_crop(width_px=width_px, height_px=height_px, fraction=fraction)
    if num_crops == 1:
        return [centre]
    shares = np.linspace(0, 1, num_crops).tolist()
    if width_px >= height_px:
        return [Crop(share * (1 - centre.width), centre.top, centre.width, centre.height) for share in shares]
    return [Crop(centre.left, share * (1 - centre.height), centre.width, centre.height) for share in shares]


class MultiViewClips(PairedClips):
    """All views of every video. They are read together, because neighbouring clips share frames and crops share all.

    A batch has ``views.num_views`` rows for each video that could be read: clip after clip, and within a clip crop
    after crop. ``PairedBatch.sample_keys`` holds the position of the video and the number of the view.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        view: ViewSpec,
        views: TestViews,
        decoder: str = DEFAULT_DECODER,
        short_clips: str = "repeat",
        perturbation: Perturbation | None = None,
    ) -> None:
        super().__init__(entries, student_view=view, decoder=decoder, short_clips=short_clips)
        self.view = view
        self.test_views = views
        self.perturbation = perturbation

    def read_batch(self, keys: Sequence[SampleKey]) -> PairedBatch:
        """Read all views of some videos; unreadable videos are left out and listed in ``unreadable``."""
        items = (item for key in keys for item in self._items(key.index))
        return collate(items, num_items=len(keys) * self.test_views.num_views)

    __getitems__ = read_batch  # called by the DataLoader

    def _items(self, index: int) -> list[Item]:
        entry = self.entries[index]
        fraction = self.view.centre_fraction
        try:
            reader = self.clip_reader(entry)
            if self.perturbation is not None:
                reader = replace(reader, change=self.perturbation.of_video(entry.video.name))
            width_px, height_px = reader.picture_size_px
            crops = spread_crops(self.test_views.num_crops, width_px=width_px, height_px=height_px, fraction=fraction)
            (cuts,) = reader.read(reader.spread_centres(self.test_views.num_clips), [crops])
        except UnreadableVideoError as error:
            return [Item(index, entry.label, None, ((entry.key, str(error)),))]
        return [Item(index, entry.label, (cut,), (), number) for number, cut in enumerate(cuts)]
