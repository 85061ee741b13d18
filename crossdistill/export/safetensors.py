"""safetensors: the body's weights, which load strictly into the source library's own class.

The metadata is in the file's header. The source library's class has no layer for the student's classifier, so
``weight`` [N, D] and ``bias`` [N] are in a second file beside the first, with the suffix ``.classifier.safetensors``.
A quantised student has the weights of brevitas' layers; this package builds the network for them.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import load_tensors
from crossdistill.export.metadata import METADATA_KEY, ExportMetadata
from crossdistill.export.network import ExportedStudent, Forward, build_encoder, module_forward
from crossdistill.utils.tensor_files import write_tensors

ADVICE = "free space there and start again"


def classifier_path(path: Path) -> Path:
    """Return the path of the classifier that belongs to a file of weights.

    Example:
        >>> classifier_path(Path("flow.safetensors")).name
        'flow.classifier.safetensors'
    """
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.classifier.safetensors")


def write(student: ExportedStudent, path: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Write the body's tensors."""
    header = {"format": "pt", METADATA_KEY: metadata.to_text()}
    write_tensors(path, student.encoder.body.state_dict(), metadata=header, advice=ADVICE)


def write_classifier(encoder: Encoder, path: Path) -> None:
    """Write the classifier beside a file of weights. Without a classifier, remove that of an earlier export."""
    if encoder.classifier is None:
        classifier_path(path).unlink(missing_ok=True)
        return
    tensors = {"weight": encoder.classifier.weight, "bias": encoder.classifier.bias}
    write_tensors(classifier_path(path), tensors, metadata={"format": "pt"}, advice=ADVICE)


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Build the network again and load the file's weights strictly."""
    return open_weights(load_file(path), path, encoder)


def open_weights(weights: dict[str, Tensor], path: Path, encoder: Encoder) -> Forward:
    """Build the network again and load weights, which were read from a file, strictly."""
    fresh = build_encoder(encoder.name, encoder.view, config=encoder.config, bits=encoder.bits).eval()
    load_tensors(fresh, weights, source=str(path))
    fresh.classifier = encoder.classifier
    return module_forward(ExportedStudent(fresh))
