"""Dataclasses that pass data between the rooms: what an encoder sees, batches, and the result of a training step.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.modalities import Modality, get_modality


@dataclass(frozen=True)
class ViewSpec:
    """Input that an encoder expects: modality, frames, size and normalisation.

    Example:
        >>> ViewSpec(modality="depth", num_frames=8, stride=2, size_px=112, mean=(0.45,), std=(0.225,)).kind.channels
        1
    """

    modality: str
    num_frames: int
    """Number of frames of a clip. An image encoder embeds each frame and averages the embeddings."""
    stride: int
    """Distance between two frames of a clip, in frames of the video."""
    size_px: int
    """Height and width of the frames."""
    mean: tuple[float, ...]
    """Mean of each channel, in the modality's unit."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in the modality's unit."""
    layout: Literal["BCTHW", "BTCHW"] = "BCTHW"
    """Order of dimensions that the encoder's body takes. A ``View`` is always [B, C, T, H, W]."""
    centre_fraction: float = 1.0
    """Side of the centre crop in evaluation, as a share of the picture's shorter side. It is 0.875 if the encoder's
    library resizes pictures to 256 pixels and crops 224."""

    def __post_init__(self) -> None:
        channels = get_modality(self.modality).channels
        for name in ("num_frames", "stride", "size_px"):
            if getattr(self, name) < 1:
                raise UserError(f"a view's {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.centre_fraction <= 1:
            raise UserError(f"a view's centre_fraction must be above 0 and at most 1, not {self.centre_fraction}")
        for name in ("mean", "std"):
            given = len(getattr(self, name))
            if given != channels:
                raise UserError(f"a {self.modality} view needs {channels} values in {name}, not {given}")

    @property
    def size_text(self) -> str:
        """Frames and size in words, for example ``8 frames of 112 px``."""
        return f"{self.num_frames} frame{'s' * (self.num_frames > 1)} of {self.size_px} px"

    @property
    def kind(self) -> Modality:
        """Entry of ``MODALITIES`` with the name ``modality``."""
        return get_modality(self.modality)


@dataclass(frozen=True)
class View:
    """A batch of clips as stored integers, before normalisation: small to copy, and exact when mirrored."""

    values: Tensor
    """[B, C, T, H, W], uint8 or uint16; ``Modality`` says which values they stand for."""
    channel_scale: Tensor
    """[B, C] float32, the factor by which resizing scaled each channel's values."""

    def __post_init__(self) -> None:
        if self.values.dtype not in (torch.uint8, torch.uint16):
            raise UserError(
                f"a View holds stored integers (torch.uint8 or torch.uint16), not {self.values.dtype}: give normalised "
                "floats as they are, without a View"
            )

    def to(self, device: torch.device) -> View:
        """Copy to a device without waiting for the end of the copy."""
        return View(self.values.to(device, non_blocking=True), self.channel_scale.to(device, non_blocking=True))

    def take(self, rows: Tensor) -> View:
        """Return the clips at some positions [n] int64."""
        return View(self.values[rows], self.channel_scale[rows])

    def pin_memory(self) -> View:
        """Copy to pinned memory, from which copies to a GPU run in the background. Called by the DataLoader."""
        return View(self.values.pin_memory(), self.channel_scale.pin_memory())

    def __repr__(self) -> str:
        return f"View({self.values.dtype}{list(self.values.shape)})"


class Box(NamedTuple):
    """Half-open ranges of rows and columns, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Mix:
    """How the clips of a batch are mixed with each other, the same way for the student and for every teacher.

    Example:
        >>> Mix(torch.tensor(0.25), order=torch.tensor([1, 0]))(torch.tensor([[0.0], [4.0]]))
        tensor([[3.],
                [1.]])
    """

    share: Tensor
    """Scalar in [0, 1], the share of a clip that stays."""
    order: Tensor
    """[B] int64, the clip that the rest of each comes from."""
    box: Box | None = None
    """The part of each frame that comes from the other clip (CutMix); None if all pixels are mixed."""

    def __call__(self, clips: Tensor) -> Tensor:
        """Mix normalised clips [B, ...]; with a box they are [B, ..., H, W]."""
        if self.box is None:
            return self.interpolate(clips)
        mixed, (top, bottom, left, right) = clips.clone(), self.box
        mixed[..., top:bottom, left:right] = clips[self.order.to(clips.device), ..., top:bottom, left:right]
        return mixed

    def interpolate(self, values: Tensor) -> Tensor:
        """Mix values [B, ...] as all pixels of a clip are mixed without a box; with one, shares of classes [B, N]."""
        return torch.lerp(values[self.order.to(values.device)], values, self.share.to(values))


@dataclass(frozen=True)
class PairedBatch:
    """Clips of the same moments of the same videos: one view for the student and one for each teacher."""

    student: View | Tensor
    """Stored clips; or a plain tensor [B, ...] that the student takes as it is."""
    teachers: tuple[View | Tensor, ...]
    """One view per teacher. Empty if no teacher runs: with labels alone, with a teacher cache, in evaluation."""
    sample_ids: Tensor
    """[B] int64, positions of the videos in the dataset."""
    labels: Tensor
    """[B] int64, class indices; -1 for a video without a label."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(dataset/video, reason) of each video that could not be read while this batch was made."""
    sample_keys: Tensor | None = None
    """[B, 2] int64, sample and epoch from which each clip was drawn. With a teacher cache the second is the number of
    the augmentation. It stays on the CPU, where the rows of a teacher cache are looked up."""
    mix: Mix | None = None
    """How every network mixes its clips after it has normalised them; None for clips as they are."""

    def to(self, device: torch.device) -> PairedBatch:
        """Copy the tensors to a device, all but ``sample_keys``."""
        return replace(
            self,
            student=self.student.to(device),
            teachers=tuple(view.to(device) for view in self.teachers),
            sample_ids=self.sample_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def pin_memory(self) -> PairedBatch:
        """Copy to pinned memory. Called by the DataLoader."""
        return replace(
            self,
            student=self.student.pin_memory(),
            teachers=tuple(view.pin_memory() for view in self.teachers),
            sample_ids=self.sample_ids.pin_memory(),
            labels=self.labels.pin_memory(),
        )

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Anchors:
    """Embeddings that a finished step adds to the memory bank. Row i of every field belongs to the same sample."""

    teacher: Tensor
    """[B, teacher_dim], not normalised: the bank does that."""
    student: Tensor | None
    """[B, student_dim], not normalised. None if the student is compared with the teacher's anchors."""
    sample_ids: Tensor
    """[B] int64."""


@dataclass(frozen=True)
class StepOutput:
    """Result of the forward pass of one training step."""

    loss: Tensor
    """Scalar, mean over the batch of this process, with gradient; of an objective also the loss of each sample [B]."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log, by name."""
