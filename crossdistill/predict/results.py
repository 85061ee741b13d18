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
        classes = [{"name": score.name, "share": score.share} for score in self.scores.classes]
        nearest = [
            {"name": clip.name, "class": clip.class_name, "similarity": clip.similarity} for clip in self.scores.nearest
        ]
        head = {"video": self.video, "num_clips": self.num_clips, "note": self.note, "basis": self.scores.basis}
        return {**head, "classes": classes, "nearest": nearest}

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
