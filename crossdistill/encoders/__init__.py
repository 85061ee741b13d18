"""Encoders: networks that map views of a modality to features.

``registry.py`` lists them. ``torchvision.py``, ``pytorchvideo.py``, ``tsm.py`` and ``small.py`` build them;
``timm.py`` and ``huggingface.py`` build every network of a library by its own name. ``weights.py`` loads weights,
``hardware.py`` decides precision and memory layout, and ``execution.py`` applies them.
"""

from crossdistill.encoders.architecture import Architecture
from crossdistill.encoders.base import Encoder, wrap_encoder, wrap_module
from crossdistill.encoders.registry import ARCHITECTURES, create_encoder, list_encoders
from crossdistill.encoders.user_file import is_from_file, require_code_allowed

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Encoder",
    "create_encoder",
    "is_from_file",
    "list_encoders",
    "require_code_allowed",
    "wrap_encoder",
    "wrap_module",
]
