"""A folder for ``transformers``: ``config.json``, ``model.safetensors``, and a ``README.md`` that says how to load it.

A student of transformers' or timm's networks is saved as the library's own class. ``AutoModel.from_pretrained`` loads
both without this package, ``timm.create_model`` those of timm. The classifier is in a file beside it, because the
class has no layer for it. Any other student is saved as a ``CrossDistillModel``, which transformers does not know:
``import crossdistill.export.hf_model`` registers it with ``AutoModel``. With ``trust_remote_code=True`` one line of
code in the folder does the same.
"""

from __future__ import annotations

import copy
import functools
import importlib
from pathlib import Path
from typing import Any

from torch import Tensor

from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.huggingface_families import family_of, quiet_transformers
from crossdistill.encoders.timm import is_timm_model, read_folder, write_folder
from crossdistill.encoders.weights import load_tensors
from crossdistill.errors import UserError
from crossdistill.export.metadata import METADATA_KEY, ExportMetadata, first_line
from crossdistill.export.network import ExportedStudent, Forward, module_forward
from crossdistill.export.safetensors import classifier_path, open_weights, write_classifier

WEIGHTS_NAME = "model.safetensors"
CODE_NAME = "modeling_crossdistill.py"
CODE = "from crossdistill.export.hf_model import CrossDistillConfig, CrossDistillModel  # noqa: F401\n"
"""The only code in a folder. transformers runs it with ``trust_remote_code=True``; it needs this package."""

require_transformers = functools.partial(quiet_transformers, "--to hf")


def check(encoder: Encoder) -> None:
    """Raise a ``UserError`` if transformers is missing, or if a Python file builds the network."""
    require_transformers()
    if is_from_file(encoder.name):
        raise UserError(
            f"{encoder.name} is built by a Python file, which a folder for transformers must not run: choose another "
            "format, for example --to torch-export"
        )


def is_transformers_model(encoder: Encoder) -> bool:
    """Whether the body is a class of transformers that loads what it saved."""
    return encoder.bits is None and isinstance(encoder.body, require_transformers().PreTrainedModel)


def is_library_model(encoder: Encoder) -> bool:
    """Whether transformers loads the folder without this package."""
    return is_timm_model(encoder) or is_transformers_model(encoder)


def write(student: ExportedStudent, folder: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Write into an empty folder."""
    encoder = student.encoder
    if is_timm_model(encoder):
        write_folder(encoder, folder, **{METADATA_KEY: metadata.to_json()})
    elif is_transformers_model(encoder):
        _write_transformers_model(encoder, folder, metadata)
    else:
        _write_crossdistill_model(encoder, folder, metadata)
    if is_library_model(encoder):
        write_classifier(encoder, folder / WEIGHTS_NAME)
    head = f"# {encoder.name}\n\nA network trained with crossdistill.\n\n"
    (folder / "README.md").write_text(head + how_to_load(encoder, metadata), encoding="utf-8")


def _write_transformers_model(encoder: Encoder, folder: Path, metadata: ExportMetadata) -> None:
    model: Any = encoder.body
    model.config = copy.deepcopy(model.config)
    setattr(model.config, METADATA_KEY, metadata.to_json())
    model.save_pretrained(folder)


def _write_crossdistill_model(encoder: Encoder, folder: Path, metadata: ExportMetadata) -> None:
    hf_model = importlib.import_module("crossdistill.export.hf_model")  # imports transformers, which is optional
    module = Path(CODE_NAME).stem
    config = hf_model.CrossDistillConfig(
        crossdistill=metadata.to_json(),
        encoder_config=encoder.config,
        auto_map={"AutoConfig": f"{module}.CrossDistillConfig", "AutoModel": f"{module}.CrossDistillModel"},
    )
    model = hf_model.CrossDistillModel(config)
    load_tensors(model.student, encoder.body.state_dict(), source=encoder.name)
    if encoder.classifier is not None:
        model.classifier.load_state_dict({"weight": encoder.classifier.weight, "bias": encoder.classifier.bias})
    model.save_pretrained(folder)
    (folder / CODE_NAME).write_text(CODE, encoding="utf-8")


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Load the folder strictly, with ``timm.create_model`` or with ``AutoModel.from_pretrained``."""
    if is_timm_model(encoder):
        return open_weights(read_folder(path).state_dict(), path, encoder)
    return _open_transformers_model(path, encoder) if is_transformers_model(encoder) else _open_crossdistill(path)


def _open_transformers_model(path: Path, encoder: Encoder) -> Forward:
    body: Any = encoder.body
    model = _from_pretrained(path, **family_of(body.config).build)
    # The model returns all tokens; the rebuilt encoder pools them to features.
    return open_weights(model.state_dict(), path, encoder)


def _open_crossdistill(path: Path) -> Forward:
    importlib.import_module("crossdistill.export.hf_model")
    model = _from_pretrained(path)
    return module_forward(lambda clips: model(clips, return_dict=False))


def _from_pretrained(path: Path, **options: Any) -> Any:
    auto_model = require_transformers().AutoModel
    model, report = auto_model.from_pretrained(
        path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(f"{path} has missing or unexpected weights: {report}")
    return model.eval()


def how_to_load(encoder: Encoder, metadata: ExportMetadata, *, place: str | None = None) -> str:
    """Return Markdown: code that loads the folder, and what the network takes and returns.

    Args:
        encoder: The student.
        metadata: Its metadata.
        place: Name of the repository that holds the folder's files; None for a folder.
    """
    view = metadata.view
    load = f'transformers.AutoModel.from_pretrained("{place or "this folder"}"'
    notes = []
    if is_library_model(encoder):
        code = ["import transformers", f"model = {load})"]
        if is_timm_model(encoder):
            where = f"hf-hub:{place}" if place else "local-dir:this folder"
            code = ["import timm", f'model = timm.create_model("{where}", pretrained=True)', f"# or: {load})"]
            notes.append("It takes pictures; the features of a clip are the mean over those of its frames.")
        else:
            notes.append(f"Features of its output: {_pooling(encoder)}.")
        if encoder.classifier is not None:
            notes.append(f"`{classifier_path(Path(WEIGHTS_NAME))}` holds the linear layer from features to classes.")
    else:
        code = [
            "import transformers  # and crossdistill must be installed",
            f"model = {load}, trust_remote_code=True)",
            "model(clips).embeddings  # clips [B, C, T, H, W]; .logits if it has a classifier",
        ]
        notes.append(
            f"The only code that this runs is the import in `{CODE_NAME}`; after `import crossdistill.export.hf_model` "
            "it is not needed."
        )
    notes += [
        f"Input: {view.modality}, {view.num_frames} frames of stride {view.stride}, {view.size_px} pixels square, "
        f"mean {list(view.mean)}, standard deviation {list(view.std)}; `config.json` describes the whole preprocessing "
        f"under `{METADATA_KEY}`."
    ]
    return "\n\n".join(["\n".join(["```python", *code, "```"]), *notes]) + "\n"


def _pooling(encoder: Encoder) -> str:
    """Return how features are made of the model's output: the first docstring line of the family's function."""
    body: Any = encoder.body
    line = first_line(family_of(body.config).features).removeprefix("Return ").rstrip(".")
    return line[0].lower() + line[1:]
