"""Mixing the clips of a batch for teacher and student alike (``--mix``).

Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov: Knowledge distillation: A good teacher is patient and consistent, CVPR
2022, arXiv 2106.05237, sec. 3: distillation matches two functions, so the teacher must see exactly what the student
sees, and mixed pictures are new points at which they can be compared. Across modalities, both views of a moment are
mixed with the same share and the same partner.
"""

from __future__ import annotations

import torch

from crossdistill.types import Mix


def draw_mix(num_clips: int) -> Mix:
    """Draw a share from U(0, 1) and a partner for each clip, from torch's CPU generator, which checkpoints keep."""
    return Mix(torch.rand(()), torch.randperm(num_clips))
