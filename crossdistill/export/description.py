"""What an exported file says of itself: its input, its outputs, and the preprocessing that it wants.

One JSON text, kept where each format keeps metadata: whoever has the file alone can feed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

FORMAT = "crossdistill-export"
FORMAT_VERSION = 1
METADATA_KEY = "crossdistill"
"""Under which files keep the text."""
EMBEDDINGS, LOGITS = "embeddings", "logits"
INPUT = "clips"
PREPROCESSING_STEPS = (
    "take num_frames frames of the modality, every stride-th; cut the centred square of centre_fraction of the "
    "shorter side (all of it where is_picture is false); resize to size_px by area where the picture shrinks, linearly "
    "where it grows, by the nearest pixel where interpolation says so; value = stored * value_scale + value_offset; "
    "multiply each channel by the stretch of its axis in stretched_axes; do per_clip; (value - mean) / std"
)


@dataclass(frozen=True)
class Description:
    """Everything that a reader of an exported file has to know."""

    encoder: str
    view: ViewSpec
    takes: str
    """``clip`` or ``frames``: what the bare body in a file of weights is given; all others take clips."""
    embed_dim: int
    num_classes: int = 0
    """Of the output ``logits``; 0 where there is none."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty where they are not known."""
    quantize: str | None = None
    """For example w4a8."""

    @property
    def outputs(self) -> dict[str, int]:
        """Name of each output to its width: outputs are [batch, width]."""
        return {EMBEDDINGS: self.embed_dim, **({LOGITS: self.num_classes} if self.num_classes else {})}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        view, kind = self.view, self.view.kind
        shape = [kind.channels, view.num_frames, view.size_px, view.size_px]
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "encoder": self.encoder,
            "quantize": self.quantize,
            "input": {"name": INPUT, "shape": ["batch", *shape], "layout": "BCTHW", "type": "float32"},
            "outputs": {name: ["batch", width] for name, width in self.outputs.items()},
            "body": {"takes": self.takes, "layout": view.layout},
            "preprocessing": {
                "modality": view.modality,
                "num_frames": view.num_frames,
                "stride": view.stride,
                "size_px": view.size_px,
                "centre_fraction": view.centre_fraction,
                "mean": list(view.mean),
                "std": list(view.std),
                "unit": kind.unit,
                "value_scale": kind.value_scale,
                "value_offset": kind.value_offset,
                "interpolation": kind.interpolation,
                "is_picture": kind.is_picture,
                "stretched_axes": list(kind.resize_axes),
                "per_clip": _first_line(kind.normalise_clip),
                "steps": PREPROCESSING_STEPS,
            },
            "classes": list(self.classes),
        }

    def to_text(self) -> str:
        """``to_json`` as text."""
        return json.dumps(self.to_json())

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Description:
        """Read what ``to_json`` wrote; a ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        asked = data["preprocessing"]
        view = ViewSpec(
            **{name: asked[name] for name in ("modality", "num_frames", "stride", "size_px", "centre_fraction")},
            mean=tuple(asked["mean"]),
            std=tuple(asked["std"]),
            layout=data["body"]["layout"],
        )
        return Description(
            encoder=data["encoder"],
            view=view,
            takes=data["body"]["takes"],
            embed_dim=data["outputs"][EMBEDDINGS][1],
            num_classes=data["outputs"].get(LOGITS, (0, 0))[1],
            classes=tuple(data["classes"]),
            quantize=data["quantize"],
        )

    @staticmethod
    def from_text(text: str | None, *, source: str) -> Description:
        """Read what ``to_text`` wrote.

        Args:
            text: None if the file holds none.
            source: The file, for errors.

        Raises:
            UserError: There is no such text, it is damaged, or a newer version wrote it.
        """
        advice = "give a file that crossdistill export wrote"
        if text is None:
            raise UserError(f"{source} does not say which preprocessing it wants: {advice}")
        try:
            data = json.loads(text)
            version = int(data["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the description in {source} is damaged ({error}): {advice}") from error
        if version > FORMAT_VERSION:
            raise UserError(
                f"{source} has format version {version}, this crossdistill reads up to {FORMAT_VERSION}: update it"
            )
        try:
            return Description.from_json(data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"the description in {source} is damaged ({error}): {advice}") from error


def _first_line(function: Callable[..., Any] | None) -> str | None:
    return None if function is None else str(function.__doc__).strip().split("\n", 1)[0]


def describe(encoder: Encoder, classes: Sequence[str] = ()) -> Description:
    """The description of a student.

    Args:
        encoder: The student.
        classes: Names of its classifier's classes, if they are known.

    Raises:
        UserError: There are not as many names as classes.
    """
    description = Description(
        encoder.name, encoder.view, encoder.takes, embed_dim=encoder.embed_dim, quantize=encoder.bits
    )
    if encoder.classifier is None:
        return description
    num_classes = len(encoder.classifier.bias)
    if classes and len(classes) != num_classes:
        raise UserError(
            f"the classifier of {encoder.name} has {num_classes} classes and the data has {len(classes)}: give the "
            "dataset that it was trained on, or none"
        )
    return replace(description, num_classes=num_classes, classes=tuple(classes))
