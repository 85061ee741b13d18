"""The data that crosses module borders, as small validated dataclasses.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.modalities import Modality, get_modality


@dataclass(frozen=True)
class ViewSpec:
    """What an encoder wants to see: which modality, how many frames, how large, how normalised."""

    modality: str
    num_frames: int
    """Frames of one clip; for an image encoder, how many single frames are embedded and averaged."""
    stride: int
    """Distance between neighbouring frames, in frames of the video."""
    size_px: int
    """Height and width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["BCTHW", "BTCHW"] = "BCTHW"
    """The layout that the encoder's body takes; views themselves are always B C T H W."""
    centre_fraction: float = 1.0
    """Share of the picture's shorter side that the centred square of an evaluation has: 0.875 where the encoder's
    library shrinks pictures to 256 pixels and cuts 224 out of them."""

    def __post_init__(self) -> None:
        channels = get_modality(self.modality).channels
        for name in ("num_frames", "stride", "size_px"):
            if getattr(self, name) < 1:
                raise UserError(f"a view's {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.centre_fraction <= 1:
            raise UserError(f"a view's centre_fraction must be above 0 and at most 1, not {self.centre_fraction}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != channels:
                raise UserError(
                    f"a {self.modality} view needs {channels} values in {name}, not {len(getattr(self, name))}"
                )

    @property
    def kind(self) -> Modality:
        """The entry of ``MODALITIES`` that ``modality`` names."""
        return get_modality(self.modality)


@dataclass(frozen=True)
class View:
    """A batch as stored, before normalisation: small to move, exact to mirror."""

    values: Tensor
    """[B, C, T, H, W], uint8 or uint16, the integers of ``Modality``."""
    channel_scale: Tensor
    """[B, C] float32: how far resizing stretched each channel's values (1 where it does not)."""

    def to(self, device: torch.device) -> View:
        """Move to a device without waiting for the copy."""
        return View(self.values.to(device, non_blocking=True), self.channel_scale.to(device, non_blocking=True))

    def pin_memory(self) -> View:
        """Let the DataLoader pin the batch, so that copies to a GPU overlap with work."""
        return View(self.values.pin_memory(), self.channel_scale.pin_memory())

    def __repr__(self) -> str:
        return f"View({self.values.dtype}{list(self.values.shape)})"


@dataclass(frozen=True)
class PairedBatch:
    """Views of the same moments of the same videos: the student's, and one for each teacher."""

    student: View | Tensor
    """Stored clips, or a plain tensor that the student takes as it is."""
    teachers: tuple[View | Tensor, ...]
    """Empty where none runs: ``--supervised``, a teacher cache, evaluation."""
    sample_ids: Tensor
    """[B] int64, position of the video in the dataset."""
    labels: Tensor
    """[B] int64, -1 where the video has none."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(dataset/video, reason) of the videos that were met while this batch was made and could not be read."""
    sample_keys: Tensor | None = None
    """[B, 2] int64, sample and epoch (or repeated view) that each clip was drawn as. It stays on the CPU, where it
    finds rows of a teacher cache."""

    def to(self, device: torch.device) -> PairedBatch:
        """Move every tensor to a device."""
        return PairedBatch(
            student=self.student.to(device),
            teachers=tuple(view.to(device) for view in self.teachers),
            sample_ids=self.sample_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            unreadable=self.unreadable,
            sample_keys=self.sample_keys,
        )

    def pin_memory(self) -> PairedBatch:
        """Let the DataLoader pin the batch."""
        return PairedBatch(
            student=self.student.pin_memory(),
            teachers=tuple(view.pin_memory() for view in self.teachers),
            sample_ids=self.sample_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            unreadable=self.unreadable,
            sample_keys=self.sample_keys,
        )

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Anchors:
    """What a finished step adds to the memory bank: the same samples in every field."""

    teacher: Tensor
    """[B, teacher dim], as embedded; the bank normalises them."""
    student: Tensor | None
    """[B, student dim], as embedded; None when the student is compared with the teacher's anchors."""
    sample_ids: Tensor
    """[B] int64."""


@dataclass(frozen=True)
class StepOutput:
    """What one forward pass gives the engine."""

    loss: Tensor
    """Scalar, mean over the batch of this process."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log."""
