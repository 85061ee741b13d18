"""safetensors: the bare weights, which load strictly into the source library's own class.

The description is in the file's header. The classifier, which that class does not have, lies beside it under the same
name with ``.classifier.safetensors``: ``weight`` [N, D] and ``bias`` [N]. A quantised student's weights are those of
brevitas' layers, for which this package builds the network.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.weights import load_tensors
from crossdistill.export.description import METADATA_KEY, Description
from crossdistill.export.network import ExportedStudent, Runner, body_runner
from crossdistill.quantization.quantize import parse_bit_widths, quantize
from crossdistill.utils.tensor_files import write_tensors

ADVICE = "free space there and start again"


def classifier_path(path: Path) -> Path:
    """Where the classifier of a file of weights lies."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.classifier.safetensors")


def write(student: ExportedStudent, path: Path, examples: Tensor, description: Description) -> None:
    """Write the body's tensors."""
    metadata = {"format": "pt", METADATA_KEY: description.to_text()}
    write_tensors(path, student.encoder.body.state_dict(), metadata=metadata, advice=ADVICE)


def write_classifier(encoder: Encoder, path: Path) -> None:
    """Write the classifier, if there is one, beside a file of weights; one of an earlier file goes."""
    if encoder.classifier is None:
        classifier_path(path).unlink(missing_ok=True)
        return
    tensors = {"weight": encoder.classifier.weight, "bias": encoder.classifier.bias}
    write_tensors(classifier_path(path), tensors, metadata={"format": "pt"}, advice=ADVICE)


def rebuild(encoder: Encoder) -> Encoder:
    """The same network with fresh weights, built as ``load_student`` builds it."""
    view = encoder.view
    fresh = create_encoder(
        encoder.name, num_frames=view.num_frames, stride=view.stride, size_px=view.size_px, config=encoder.config
    )
    fresh.view = view
    if encoder.bits is not None:
        quantize(fresh, parse_bit_widths(encoder.bits))
    return fresh.eval()


def open_file(path: Path, encoder: Encoder) -> Runner:
    """The weights in a freshly built network, into which they have to load strictly."""
    fresh = rebuild(encoder)
    load_tensors(fresh, load_file(path), source=str(path))
    return body_runner(fresh, encoder.classifier)


def read_description(path: Path) -> Description:
    """What a file says of itself; a ``UserError`` if it says nothing."""
    with safe_open(path, framework="pt") as file:
        return Description.from_text((file.metadata() or {}).get(METADATA_KEY), source=str(path))
