"""Metadata of an exported file: its input, its outputs, and the preprocessing that it expects.

One JSON text, stored where each format keeps metadata. It holds all that a user of the file alone needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec
from crossdistill.utils.records import parse_versioned_json

FORMAT = "crossdistill-export"
FORMAT_VERSION = 1
METADATA_KEY = "crossdistill"  # under which a file stores the text
METADATA_FILE = "crossdistill.json"  # name of the text in files of torch.export and TorchScript
EMBEDDINGS, LOGITS = "embeddings", "logits"
INPUT = "clips"
VIEW_FIELDS = ("modality", "num_frames", "stride", "size_px", "centre_fraction")
MODALITY_FIELDS = ("unit", "value_scale", "value_offset", "interpolation", "is_picture")
PREPROCESSING_STEPS = (
    "take num_frames frames of the modality, every stride-th; crop the centred square whose side is centre_fraction of "
    "the shorter side (the whole array if is_picture is false); resize to size_px by area when shrinking, linearly "
    "when enlarging, by the nearest pixel if interpolation says so; value = stored * value_scale + value_offset; "
    "multiply each channel by the stretch of its axis in stretched_axes; do per_clip; (value - mean) / std"
)


@dataclass(frozen=True)
class ExportMetadata:
    """Input, preprocessing and outputs of an exported file."""

    encoder: str
    view: ViewSpec
    takes: str
    """Input of the bare body in a file of weights: ``clip`` or ``frames``. All other files take clips."""
    embed_dim: int
    num_classes: int = 0
    """Width of the output ``logits``; 0 without a classifier."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty if unknown."""
    bits: str | None = None
    """Bit widths of a quantised student, for example ``w4a8``."""

    @staticmethod
    def from_encoder(encoder: Encoder, classes: Sequence[str] = ()) -> ExportMetadata:
        """Return the metadata of a student; raise a ``UserError`` if the numbers of names and of classes differ."""
        num_classes = 0 if encoder.classifier is None else len(encoder.classifier.bias)
        if num_classes and classes and len(classes) != num_classes:
            raise UserError(
                f"the classifier of {encoder.name} has {num_classes} classes, but {len(classes)} names were given: "
                "give the dataset that the student was trained on, or none"
            )
        return ExportMetadata(
            encoder=encoder.name,
            view=encoder.view,
            takes=encoder.takes,
            embed_dim=encoder.embed_dim,
            num_classes=num_classes,
            classes=tuple(classes) if num_classes else (),
            bits=encoder.bits,
        )

    @property
    def outputs(self) -> dict[str, int]:
        """Name of each output [B, width] to its width."""
        return {EMBEDDINGS: self.embed_dim, **({LOGITS: self.num_classes} if self.num_classes else {})}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that ``from_json`` reads."""
        view, kind = self.view, self.view.kind
        shape = [kind.channels, view.num_frames, view.size_px, view.size_px]
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "encoder": self.encoder,
            "quantize": self.bits,  # the name of the key is part of format version 1
            "input": {"name": INPUT, "shape": ["batch", *shape], "layout": "BCTHW", "type": "float32"},
            "outputs": {name: ["batch", width] for name, width in self.outputs.items()},
            "body": {"takes": self.takes, "layout": view.layout},
            "preprocessing": {
                **{name: getattr(view, name) for name in VIEW_FIELDS},
                "mean": list(view.mean),
                "std": list(view.std),
                **{name: getattr(kind, name) for name in MODALITY_FIELDS},
                "stretched_axes": list(kind.resize_axes),
                # A user without this package reads it, so words replace the function.
                "per_clip": kind.normalise_clip and first_line(kind.normalise_clip),
                "steps": PREPROCESSING_STEPS,
            },
            "classes": list(self.classes),
        }

    def to_text(self) -> str:
        """Return ``to_json`` as text."""
        return json.dumps(self.to_json())

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ExportMetadata:
        """Read the object that ``to_json`` returns; raise ``KeyError``, ``TypeError`` or ``ValueError`` for another."""
        given = data["preprocessing"]
        view = ViewSpec(
            **{name: given[name] for name in VIEW_FIELDS},
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
            layout=data["body"]["layout"],
        )
        return ExportMetadata(
            encoder=data["encoder"],
            view=view,
            takes=data["body"]["takes"],
            embed_dim=data["outputs"][EMBEDDINGS][1],
            num_classes=data["outputs"].get(LOGITS, (0, 0))[1],
            classes=tuple(data["classes"]),
            bits=data["quantize"],
        )

    @staticmethod
    def from_text(text: str | None, *, source: str) -> ExportMetadata:
        """Read the text that ``to_text`` returns; a missing, damaged or newer text is a ``UserError``."""
        remedy = "give a file that crossdistill export wrote"
        if text is None:
            raise UserError(f"{source} has no crossdistill metadata, so its preprocessing is unknown: {remedy}")
        source = f"the metadata of {source}"
        data = parse_versioned_json(text, source=source, version=FORMAT_VERSION, remedy=remedy)
        try:
            return ExportMetadata.from_json(data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{source} is damaged ({error}): {remedy}") from error


def first_line(function: Callable[..., Any]) -> str:
    """Return the first line of a function's docstring."""
    return str(function.__doc__).strip().split("\n", 1)[0]
