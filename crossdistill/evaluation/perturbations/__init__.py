"""Perturbations of test clips: families of five severities, as in UCF101-P and Kinetics400-P.

Schiappa, Biyani, Kamtam, Vyas, Palangi, Vineet, Rawat, "A Large-Scale Robustness Analysis of Video Action Recognition
Models", CVPR 2023. The strengths of noise, blur, JPEG, rotation, sampling rate and freezing are those of the paper's
code; brightness and contrast are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), from which the paper's
families of single pictures come. Deviations: pictures are changed before they are cropped and resized, so lengths in
pixels grow with the stored picture; values are rounded and not cut; a motion blur has one direction for a clip; the
first severity of ``reversal`` is the plain reversal; frames of ``jumble`` are shuffled in segments that grow with the
severity; ``frame-drop``, ``jitter``, ``translation`` and ``occlusion`` have strengths of their own.

A clip of few frames has fewer degrees of its perturbations of time: equal severities then give equal clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossdistill.data.streams import Picture
from crossdistill.errors import UserError
from crossdistill.evaluation.perturbations.blur import defocus_blur, motion_blur, zoom_blur
from crossdistill.evaluation.perturbations.camera import occlusion, rotation, static_rotation, translation
from crossdistill.evaluation.perturbations.clip import Clip
from crossdistill.evaluation.perturbations.compression import h264, jpeg, mpeg2
from crossdistill.evaluation.perturbations.light import brightness, contrast
from crossdistill.evaluation.perturbations.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from crossdistill.evaluation.perturbations.timing import (
    Steps,
    frame_drop,
    freeze,
    jitter,
    jumble,
    reversal,
    sampling_rate,
)
from crossdistill.types import ViewSpec

VERSION = 1
"""Rises when a family gives other clips. It is part of the keys of stored features."""
SEVERITIES = (1, 2, 3, 4, 5)

ChangePictures = Callable[[Clip, float, np.random.Generator], Clip]
ChangeTime = Callable[[int, float, np.random.Generator], Steps]


@dataclass(frozen=True)
class Family:
    """One kind of perturbation: either of pictures, or of time."""

    group: str
    """Families of one group are drawn in one chart."""
    strengths: tuple[float, float, float, float, float]
    """Argument of the function at severities 1 to 5."""
    pictures: ChangePictures | None = None
    """Function of the decoded RGB frames [T, H, W, 3] of a clip."""
    time: ChangeTime | None = None
    """Function from a number of frames to the moment that each frame shows."""

    def why_not(self, view: ViewSpec) -> str:
        """Say why the family makes no sense for a view; empty if it does."""
        if self.pictures is not None:
            return "" if view.kind.is_colour else f"it changes RGB pictures, and {view.modality} is none"
        if view.kind.measures_motion:
            return f"frames of {view.modality} in another order or rate would have to be estimated again"
        return "" if view.num_frames > 1 else "it changes the order of frames, and the view has one frame"


FAMILIES: dict[str, Family] = {
    "gaussian-noise": Family("noise", (0.08, 0.12, 0.18, 0.26, 0.38), gaussian_noise),
    "shot-noise": Family("noise", (250, 100, 50, 30, 15), shot_noise),
    "impulse-noise": Family("noise", (0.03, 0.06, 0.09, 0.17, 0.27), impulse_noise),
    "speckle-noise": Family("noise", (0.15, 0.2, 0.25, 0.3, 0.35), speckle_noise),
    "defocus-blur": Family("blur", (3, 4, 6, 8, 10), defocus_blur),
    "motion-blur": Family("blur", (3, 5, 8, 12, 15), motion_blur),
    "zoom-blur": Family("blur", (1.1, 1.15, 1.2, 1.25, 1.3), zoom_blur),
    "jpeg": Family("compression", (25, 18, 15, 10, 7), jpeg),
    "h264": Family("compression", (27, 33, 39, 45, 51), h264),
    "mpeg2": Family("compression", (4, 8, 14, 22, 31), mpeg2),
    "brightness": Family("light", (0.1, 0.2, 0.3, 0.4, 0.5), brightness),
    "contrast": Family("light", (0.4, 0.3, 0.2, 0.1, 0.05), contrast),
    "rotation": Family("camera", (7, 13, 19, 25, 31), rotation),
    "static-rotation": Family("camera", (7.5, 15, 30, 45, 90), static_rotation),
    "translation": Family("camera", (1 / 32, 2 / 32, 3 / 32, 4 / 32, 5 / 32), translation),
    "occlusion": Family("camera", (0.05, 0.1, 0.2, 0.3, 0.4), occlusion),
    "frame-drop": Family("time", (0.1, 0.2, 0.3, 0.5, 0.7), time=frame_drop),
    "freeze": Family("time", (0.4, 0.2, 0.1, 0.05, 0.0), time=freeze),
    "jitter": Family("time", (0.5, 1, 1.5, 2, 3), time=jitter),
    "jumble": Family("time", (0.125, 0.25, 0.5, 0.75, 1), time=jumble),
    "sampling-rate": Family("time", (2, 4, 8, 16, 32), time=sampling_rate),
    "reversal": Family("time", (1, 2, 4, 8, 16), time=reversal),
}


@dataclass(frozen=True)
class Perturbation:
    """One severity of one family.

    Example:
        >>> str(Perturbation("jpeg", 3)), Perturbation("reversal", 1).of_video("v").steps(0, num_frames=4).tolist()
        ('jpeg-3', [3.0, 2.0, 1.0, 0.0])
    """

    family: str
    """A key of ``FAMILIES``."""
    severity: int
    """From 1 to 5."""
    dataset: str = ""
    """Name of the dataset, on which the draws depend."""

    def __str__(self) -> str:
        return f"{self.family}-{self.severity}"

    @property
    def key(self) -> str:
        """Everything but the video that decides a perturbed clip, for the keys of stored features."""
        return f"{self} version {VERSION}"

    def of_video(self, name: str) -> VideoPerturbation:
        """Return the perturbation of one video of the dataset."""
        return VideoPerturbation(self, name)


@dataclass(frozen=True)
class VideoPerturbation:
    """A perturbation with the draws of one video: it gives the same clips in every process, run and folder."""

    perturbation: Perturbation
    video: str

    def _call(self, clip: int) -> tuple[Family, float, np.random.Generator]:
        chosen = self.perturbation
        family = FAMILIES[chosen.family]
        name = "\n".join((chosen.dataset, self.video, str(chosen), str(clip)))
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return family, family.strengths[chosen.severity - 1], np.random.default_rng(seed)

    def steps(self, clip: int, num_frames: int) -> Steps | None:
        """Return the moments [T] of the frames of the video's n-th clip, in steps; None if time is as it was."""
        family, strength, generator = self._call(clip)
        return None if family.time is None else family.time(num_frames, strength, generator)

    def pictures(self, clip: int, frames: Sequence[Picture]) -> Sequence[Picture]:
        """Change the decoded frames, T arrays [H, W, 3] uint8, of the video's n-th clip."""
        family, strength, generator = self._call(clip)
        return frames if family.pictures is None else list(family.pictures(np.stack(frames), strength, generator))


def choose_families(view: ViewSpec, names: Sequence[str], *, wanted_by: str) -> tuple[list[str], dict[str, str]]:
    """Choose the families for a view.

    Args:
        view: What the encoder sees.
        names: Keys of ``FAMILIES``; empty for all that make sense for the view.
        wanted_by: Name of the encoder, for errors.

    Returns:
        The families, and the reason for each of those that were left out.

    Raises:
        UserError: A name makes no sense for the view, or no family does.
    """
    reasons = {name: reason for name in names or FAMILIES if (reason := FAMILIES[name].why_not(view))}
    chosen = [name for name in names or FAMILIES if name not in reasons]
    if names and reasons:
        name, reason = next(iter(reasons.items()))
        raise UserError(f"--families {name} cannot perturb the clips of {wanted_by}: {reason}; remove it")
    if not chosen:
        raise UserError(
            f"no family of perturbations makes sense for the {view.modality} clips of {wanted_by}: "
            f"{next(iter(reasons.values()))}; remove robustness from --protocols"
        )
    return chosen, reasons


def reason_texts(left_out: Mapping[str, str]) -> list[str]:
    """Write each reason once, with its families.

    Example:
        >>> reason_texts({"h264": "it changes RGB", "freeze": "it has one frame", "jpeg": "it changes RGB"})
        ['h264, jpeg: it changes RGB', 'freeze: it has one frame']
    """
    by_reason: dict[str, list[str]] = {}
    for family, reason in left_out.items():
        by_reason.setdefault(reason, []).append(family)
    return [f"{', '.join(families)}: {reason}" for reason, families in by_reason.items()]
