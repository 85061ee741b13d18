"""Mixing the clips of a batch: for teacher and student alike (``--mix``), and with their labels (``--mixup``, CutMix).

Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov: Knowledge distillation: A good teacher is patient and consistent, CVPR
2022, arXiv 2106.05237, sec. 3: distillation matches two functions, so the teacher must see exactly what the student
sees, and mixed pictures are new points at which they can be compared. Across modalities, both views of a moment are
mixed with the same share and the same partner.

Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv 1710.09412. Yun, Han, Oh,
Chun, Choe, Yoo: CutMix, ICCV 2019, arXiv 1905.04899. One share, one box and one order of partners hold for a whole
batch and for all frames of a clip. timm does the same, with the reversed batch as the partners.
"""

from __future__ import annotations

import math

import torch

from crossdistill.types import Box, Mix

CUTMIX_PROBABILITY = 0.5
"""Share of the batches that are cut if both ways of mixing are on, as in timm."""


def draw_mix(num_clips: int) -> Mix:
    """Draw a share from U(0, 1) and a partner for each clip, from torch's CPU generator, which checkpoints keep."""
    return Mix(torch.rand(()), torch.randperm(num_clips))


def draw_labelled_mix(num_clips: int, *, mixup: float, cutmix: float, height: int, width: int) -> Mix:
    """Draw how clips and their labels are mixed, from torch's CPU generator, which checkpoints keep.

    The share is from Beta(a, a), where a is that of the way that is drawn. That of CutMix is then the area outside the
    box, which the edges of the picture cut.

    Args:
        num_clips: Clips of the batch.
        mixup: a of mixup; 0 for CutMix alone.
        cutmix: a of CutMix; 0 for mixup alone.
        height: Rows of a frame, in pixels.
        width: Columns of a frame, in pixels.
    """
    cuts = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < CUTMIX_PROBABILITY))
    concentration = torch.tensor(cutmix if cuts else mixup, dtype=torch.float64)
    share = torch.distributions.Beta(concentration, concentration).sample()
    order = torch.randperm(num_clips)
    if not cuts:
        return Mix(share, order)
    centre_y, centre_x = (int(torch.randint(size, ())) for size in (height, width))
    box = cut_box(float(share), height=height, width=width, centre_y=centre_y, centre_x=centre_x)
    area = (box.bottom - box.top) * (box.right - box.left)
    return Mix(torch.tensor(1 - area / (height * width), dtype=torch.float64), order, box)


def cut_box(share: float, *, height: int, width: int, centre_y: int, centre_x: int) -> Box:
    """Return the box around a centre that leaves a share of the picture, cut at the edges; all in pixels.

    Example:
        >>> cut_box(0.75, height=8, width=8, centre_y=4, centre_x=0)
        Box(top=2, bottom=6, left=0, right=2)
    """

    def ends(size: int, centre: int) -> tuple[int, int]:
        cut = int(size * math.sqrt(1 - share))
        return max(0, centre - cut // 2), min(size, centre + (cut + 1) // 2)

    return Box(*ends(height, centre_y), *ends(width, centre_x))
