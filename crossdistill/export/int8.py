"""Turn a float student into int8 with clips of a prepared dataset, and the clips that exports are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.entries import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.quantization.calibrate import calibrate
from crossdistill.quantization.quantize import quantize

INT8 = "w8a8"
INT8_FORMATS = ("onnx", "openvino")
CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class Calibration:
    """How a float student became int8, and how well it agrees with the float student on the compared clips."""

    num_clips: int
    dataset: Path
    min_cosine: float
    """Smallest cosine between the int8 and the float embedding of a clip."""
    mean_cosine: float

    def __str__(self) -> str:
        return (
            f"; calibrated on {self.num_clips} training clips of {self.dataset}: cosine with the float student "
            f"{self.mean_cosine:.4f} in the mean, {self.min_cosine:.4f} at least"
        )


@dataclass(frozen=True)
class KnownClips:
    """Clips that an encoder may be calibrated on."""

    encoder: Encoder
    manifest: Manifest
    positions: np.ndarray
    """Positions of the videos in the dataset."""

    @staticmethod
    def find(encoder: Encoder, manifest: Manifest, split: str) -> KnownClips:
        """Return the training clips of a split, never its test clips; any clips of a dataset without splits.

        Raise a ``UserError`` if the dataset lacks the encoder's stream, the split, or readable training clips.
        """
        wanted_by = f"the calibration of a {encoder.view.modality} student"
        manifest.require_stream(encoder.view.kind.stream, wanted_by=wanted_by)
        whole = np.arange(len(manifest.videos))
        positions = manifest.positions(split=split, part="train") if manifest.splits else whole
        usable = positions[manifest.is_usable[positions]]
        if not len(usable):
            raise UserError(f"{manifest.root} has no readable training clip in split {split}: give another --split")
        return KnownClips(encoder, manifest, usable)

    def read(self, num_clips: int) -> Tensor:
        """Return normalised clips [B, C, T, H, W], spread evenly over the dataset; fewer if it has fewer."""
        steps = np.linspace(0, len(self.positions) - 1, min(num_clips, len(self.positions)))
        return clips_at(self.encoder, self.manifest, self.positions[steps.round().astype(int)])


def quantise_with(known: KnownClips, num_clips: int, compared: Tensor, *, min_cosine: float) -> Calibration:
    """Turn the float encoder of ``known`` into int8, in place, and compare its embeddings with those that it had.

    Args:
        known: The encoder and its calibration clips.
        num_clips: Number of clips to calibrate on.
        compared: Normalised clips [B, C, T, H, W] to compare on.
        min_cosine: Smallest allowed mean over clips of the cosine between both embeddings.

    Raises:
        UserError: The encoder is quantised already, no clip can be read, or the embeddings differ too much.
    """
    encoder = known.encoder
    if encoder.bits is not None:
        raise UserError(
            f"{encoder.name} is quantised to {encoder.bits} already: remove --int8 and --calibrate, its file has int8 "
            "arithmetic without them"
        )
    expected = _embed(encoder, compared)
    quantize(encoder, INT8).eval()
    num_known = calibrate(encoder, known.read(num_clips).split(CLIPS_AT_ONCE))
    cosines = F.cosine_similarity(_embed(encoder, compared), expected, eps=1e-12)
    found = Calibration(num_known, known.manifest.root, float(cosines.min()), float(cosines.mean()))
    if not found.mean_cosine >= min_cosine:  # false for NaN
        raise UserError(
            f"int8 changes the embeddings of {encoder.name} (mean cosine with the float student "
            f"{found.mean_cosine:.4f}, allowed {min_cosine}), so nothing was written: calibrate on more clips "
            "(--calibration-clips), train the student with --bits w8a8, or allow a smaller cosine (--min-cosine)"
        )
    return found


@torch.no_grad()
def _embed(encoder: Encoder, clips: Tensor) -> Tensor:
    return torch.cat([encoder(batch) for batch in clips.split(CLIPS_AT_ONCE)])


def dataset_clips(encoder: Encoder, manifest: Manifest, num_clips: int) -> Tensor:
    """Return normalised clips [B, C, T, H, W] of the first readable videos of a prepared dataset.

    Raise a ``UserError`` if the dataset has no stream for the encoder, or if none of these videos can be decoded.
    """
    manifest.require_stream(encoder.view.kind.stream, wanted_by=f"a {encoder.view.modality} encoder")
    return clips_at(encoder, manifest, np.flatnonzero(manifest.is_usable)[:num_clips])


def clips_at(encoder: Encoder, manifest: Manifest, positions: np.ndarray) -> Tensor:
    """Return normalised clips [B, C, T, H, W]: the middle of each readable video at some positions of a dataset.

    Raise a ``UserError`` if none of these videos can be decoded.
    """
    dataset = PairedClips(entries_of(manifest, positions), student_view=encoder.view)
    keys = [SampleKey(i, epoch=0) for i in range(len(dataset))]
    (batch,) = make_loader(dataset, [keys], num_workers=0)  # all clips in one batch
    if len(batch) == 0:
        raise UserError(
            f"none of {len(keys)} videos of {manifest.root} can be decoded ({batch.unreadable[0][1]}): check "
            "them with python -m data_prep verify"
        )
    return normalise(batch.student, encoder.view)
