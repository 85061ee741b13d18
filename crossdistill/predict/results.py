"""Results of a prediction: scores of classes, the nearest training clips, and their text and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from crossdistill.utils.files import write_text_atomically


@dataclass(frozen=True)
class ClassScore:
    """A class with its probability by the classifier, or its share of the nearest clips."""

    name: str
    share: float


@dataclass(frozen=True)
class NearestClip:
    """A training clip that is close to the video, with the cosine of both embeddings."""

    name: str
    class_name: str | None
    similarity: float


@dataclass(frozen=True)
class Scores:
    """Scores of one video, best first."""

    basis: str
    """Meaning of the shares, in words."""
    classes: tuple[ClassScore, ...] = ()
    nearest: tuple[NearestClip, ...] = ()
    """Empty if a classifier gave the scores."""

    def to_json(self) -> dict[str, Any]:
        """Return entries of a JSON object."""
        classes = [{"name": score.name, "share": score.share} for score in self.classes]
        nearest = [
            {"name": clip.name, "class": clip.class_name, "similarity": clip.similarity} for clip in self.nearest
        ]
        return {"basis": self.basis, "classes": classes, "nearest": nearest}


@dataclass(frozen=True)
class Prediction:
    """Prediction for a video: the path of a file, or ``camera N``. The scores are means over ``num_clips`` clips."""

    video: str
    scores: Scores | None
    """None if the video could not be read."""
    num_clips: int = 0
    note: str = ""
    """Defect of the video; the reason if there are no scores."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        if self.scores is None:
            return {"video": self.video, "error": self.note}
        return {"video": self.video, "num_clips": self.num_clips, "note": self.note, **self.scores.to_json()}

    def __str__(self) -> str:
        """Return the video in one line, and one line for each class and clip.

        Example:
            >>> print(Prediction("a.mp4", Scores("votes", (ClassScore("wave", 0.75),)), num_clips=2))
            a.mp4 (2 clips, votes)
               75.0%  wave
        """
        if self.scores is None:
            return f"{self.video}: cannot be read ({self.note})"
        clips = f"{self.num_clips} clip{'s' if self.num_clips > 1 else ''}"
        note = f"; {self.note}" if self.note else ""
        classes = [f"  {score.share:6.1%}  {score.name}" for score in self.scores.classes]
        nearest = [
            f"  {clip.similarity:6.3f}  near {clip.name}{f' ({clip.class_name})' if clip.class_name else ''}"
            for clip in self.scores.nearest
        ]
        return "\n".join([f"{self.video} ({clips}, {self.scores.basis}{note})", *classes, *nearest])


@dataclass(frozen=True)
class Moment:
    """Prediction for the clip of a stream that ends at a time."""

    seconds: float
    """Time of the clip's last frame in the stream."""
    scores: Scores
    latency_seconds: float
    """Time from the last frame, decoded, to the scores."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"seconds": self.seconds, "latency_seconds": self.latency_seconds, **self.scores.to_json()}

    def __str__(self) -> str:
        """Return the time, the classes or else the nearest clips, and the latency in a line.

        Example:
            >>> print(Moment(12.4, Scores("votes", (ClassScore("wave", 0.75), ClassScore("clap", 0.25))), 0.0142))
                12.40 s  75.0% wave  25.0% clap  (14.2 ms)
        """
        found = [f"{score.share:.1%} {score.name}" for score in self.scores.classes]
        found = found or [f"{clip.similarity:.3f} near {clip.name}" for clip in self.scores.nearest]
        return f"{self.seconds:9.2f} s  {'  '.join(found)}  ({1000 * self.latency_seconds:.1f} ms)"


def print_moment(moment: Moment) -> None:
    """Print a prediction along a stream."""
    console.print(str(moment), highlight=False, markup=False, soft_wrap=True)


def print_prediction(prediction: Prediction) -> None:
    """Print a prediction."""
    console.print(str(prediction), highlight=False, markup=False, soft_wrap=True)


def write_predictions(path: Path, student: str, predictions: Sequence[Prediction]) -> None:
    """Write the predictions of a student as JSON."""
    # The keys are those of the first version: programs read these files.
    content = {"student": student, "answers": [prediction.to_json() for prediction in predictions]}
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def require_readable(predictions: Sequence[Prediction], *, is_camera: bool) -> None:
    """Raise a ``UserError`` if a file could not be read, or if no recording of a camera could be read."""
    num_failed = sum(prediction.scores is None for prediction in predictions)
    # The last recording before a camera is unplugged may be too short.
    if num_failed and (not is_camera or num_failed == len(predictions)):
        raise UserError(
            f"{num_failed} of {len(predictions)} videos could not be read, for the reasons above: fix or remove them"
        )
