"""A folder for ``transformers``: ``config.json``, ``model.safetensors`` and a ``README.md`` that says how to load it.

A student of Hugging Face's networks is saved as the library's own class, and ``AutoModel.from_pretrained`` gives it
back without this package; its classifier, which that class does not have, lies beside it. Every other student is a
``CrossDistillModel``: the library has no class for it, and code in the folder would need ``trust_remote_code``, so
``AutoModel`` knows it once ``crossdistill.export.hf_model`` is imported.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.weights import load_tensors
from crossdistill.errors import UserError
from crossdistill.export.description import EMBEDDINGS, LOGITS, METADATA_KEY, Description
from crossdistill.export.network import ExportedStudent, Outputs, Runner, body_runner
from crossdistill.export.safetensors import classifier_path, rebuild, write_classifier

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"


def check(encoder: Encoder) -> None:
    """Raise a ``UserError`` if transformers is absent, or the network is one that a folder cannot name."""
    _require_transformers()
    if is_from_file(encoder.name):
        raise UserError(
            f"{encoder.name} is built by a Python file, which a folder for transformers must not run: choose another "
            "format, for example --to torch-export"
        )


def _require_transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"--to hf needs transformers, which cannot be imported ({error}): pip install 'crossdistill[hf]'"
        ) from error


def is_of_library(encoder: Encoder) -> bool:
    """Whether the body is a class of transformers that loads what it saved."""
    return encoder.bits is None and isinstance(encoder.body, _require_transformers().PreTrainedModel)


def write(student: ExportedStudent, folder: Path, examples: Tensor, description: Description) -> None:
    """Write the folder, which exists and is empty."""
    encoder = student.encoder
    with _quiet():
        if is_of_library(encoder):
            _write_of_library(encoder, folder, description)
        else:
            _write_of_ours(encoder, folder, description)
    (folder / CARD_NAME).write_text(_card(encoder, description), encoding="utf-8")


def _write_of_library(encoder: Encoder, folder: Path, description: Description) -> None:
    model: Any = encoder.body
    model.config = copy.deepcopy(model.config)
    setattr(model.config, METADATA_KEY, description.to_json())
    model.save_pretrained(folder)
    write_classifier(encoder, folder / WEIGHTS_NAME)


def _write_of_ours(encoder: Encoder, folder: Path, description: Description) -> None:
    ours = importlib.import_module("crossdistill.export.hf_model")
    config = ours.CrossDistillConfig(crossdistill=description.to_json(), encoder_config=encoder.config)
    model = ours.CrossDistillModel(config)
    load_tensors(model.student, encoder.body.state_dict(), source=encoder.name)
    if encoder.classifier is not None:
        model.classifier.load_state_dict({"weight": encoder.classifier.weight, "bias": encoder.classifier.bias})
    model.save_pretrained(folder)


def open_file(path: Path, encoder: Encoder) -> Runner:
    """The folder through ``AutoModel.from_pretrained``, nothing missing and nothing left over."""
    with _quiet():
        return _open_of_library(path, encoder) if is_of_library(encoder) else _open_of_ours(path)


def _open_of_library(path: Path, encoder: Encoder) -> Runner:
    from crossdistill.encoders.huggingface import FAMILIES, OTHER

    body: Any = encoder.body
    model = _load(path, **FAMILIES.get(body.config.model_type, OTHER).build)
    fresh = rebuild(encoder)  # which knows what features of the model's output are
    load_tensors(fresh, model.state_dict(), source=str(path))
    return body_runner(fresh, encoder.classifier)


def _open_of_ours(path: Path) -> Runner:
    importlib.import_module("crossdistill.export.hf_model")
    model = _load(path)

    def run(clips: Tensor) -> Outputs:
        with torch.no_grad():
            output = model(clips)
        return {name: output[name] for name in (EMBEDDINGS, LOGITS) if name in output}

    return run


def _load(path: Path, **options: Any) -> Any:
    auto = _require_transformers().AutoModel
    model, report = auto.from_pretrained(
        path, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(f"{path} does not load as a whole: {report}")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars and remarks."""
    chatter = _require_transformers().utils.logging
    level = chatter.get_verbosity()
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)


def read_description(path: Path) -> Description:
    """What a folder says of itself; a ``UserError`` if it says nothing."""
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8")).get(METADATA_KEY)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no readable config.json ({error}): give a folder of --to hf") from error
    return Description.from_text(None if content is None else json.dumps(content), source=str(path))


def _card(encoder: Encoder, description: Description) -> str:
    """How to load it, for whoever finds the folder."""
    view = description.view
    load = 'model = transformers.AutoModel.from_pretrained("this folder")'
    if is_of_library(encoder):
        code, notes = [load], [f"Its features are {_pooling(encoder)} of its output."]
        if encoder.classifier is not None:
            notes.append(f"`{classifier_path(Path(WEIGHTS_NAME))}` holds the layer from them to classes.")
    else:
        code = [
            "import crossdistill.export.hf_model  # AutoModel then knows this kind; the folder holds no code",
            load,
            "model(clips).embeddings  # clips [B, C, T, H, W]; .logits where it has a classifier",
        ]
        notes = []
    notes += [
        f"It sees {view.modality}: {view.num_frames} frames of stride {view.stride}, {view.size_px} pixels square, "
        f"mean {list(view.mean)}, deviation {list(view.std)}; `config.json` says all of it under `{METADATA_KEY}`."
    ]
    head = [f"# {encoder.name}", "", "A network that was trained with crossdistill.", ""]
    return "\n".join([*head, "```python", "import transformers", *code, "```", "", *notes]) + "\n"


def _pooling(encoder: Encoder) -> str:
    from crossdistill.encoders.huggingface import FAMILIES, OTHER

    model: Any = encoder.body
    family = FAMILIES.get(model.config.model_type, OTHER)
    sentence = str(family.features.__doc__).strip().split("\n", 1)[0].rstrip(".")
    return sentence[0].lower() + sentence[1:]
