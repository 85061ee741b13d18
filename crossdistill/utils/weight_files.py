"""Read weight files as people have them, without executing code in them.

The first bytes decide what a file is, because names lie: safetensors are called ``.bin``, and a download that failed is
a web page called ``.pth``. A file that holds no weights is named for what it is.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.utils.console import say_once

# Keys of the state dict in the larger dictionaries that training scripts save; of several the first is taken.
NESTED_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "teacher",  # DINO's authors evaluate the teacher
    "student",
    "module",
    "network",
    "net",
    "backbone",
    "encoder",
    "weights",
    "params",
)
NUM_FIRST_BYTES = 512
MAX_HEADER_BYTES = 100_000_000  # the largest that safetensors reads
_AGAIN = "get the file itself again"
# First bytes to what such a file is, and what to do.
OTHER_FILES: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "run git lfs pull in its repository"),
    b"<": ("a web page, not a weight file", f"its download failed or needs a login, so {_AGAIN}"),
    b"{": ("JSON, not a weight file", "give the file with the weights beside it"),
    b"\x89HDF": ("an HDF5 file (Keras)", "convert it to PyTorch's state_dict() first"),
    b"\x93NUMPY": ("a NumPy array", "save the network's state_dict() as .safetensors"),
    b"GGUF": ("a GGUF file", "give the network's .safetensors"),
    b"\x1f\x8b": ("a gzip archive", "unpack it and give the weight file in it"),
    b"BZh": ("a bzip2 archive", "unpack it and give the weight file in it"),
    b"\xfd7zXZ": ("an xz archive", "unpack it and give the weight file in it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it and give the weight file in it"),
}
TAR_MARK, TAR_MARK_AT = b"ustar", 257


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors file or of ``torch.save``, on the CPU, without executing code in it.

    Raises:
        UserError: The file is missing, damaged, a pickle with more than tensors, or something else.
    """
    if not path.is_file():
        raise UserError(
            f"there is no weight file {path}: give a .safetensors, .pth or .pt file, or a run's student folder"
        )
    with open(path, "rb") as file:
        start = file.read(NUM_FIRST_BYTES)
    # safetensors: 8 bytes length of the header, then the header in JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a complete safetensors file ({error}): get it again") from error
    is_zip = start.startswith(b"PK")
    if is_zip:
        _require_saved_by_torch(path)
    if is_zip or start.startswith(b"\x80"):  # the second is a pickle, PyTorch's format before 1.6
        return _tensors_in(_load_pickle(path), path)
    raise UserError(f"{path} is {_describe_other(path, start)}")


def _describe_other(path: Path, start: bytes) -> str:
    """Describe a file that holds no weights, and what to do, as the end of a sentence."""
    if not start:
        return "empty: get it again"
    if start[TAR_MARK_AT:].startswith(TAR_MARK):
        return "a tar archive: unpack it and give the weight file in it"
    for first, (kind, remedy) in OTHER_FILES.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(first):
            return f"{kind}: {remedy}"
    if path.suffix == ".safetensors":
        return "not a complete safetensors file: get it again"
    return f"no weight file, it starts with {start[:8]!r}: give a .safetensors file, or one that torch.save wrote"


def _require_saved_by_torch(path: Path) -> None:
    """Raise a ``UserError`` for a zip file that ``torch.save`` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is not a complete PyTorch file ({error}): get it again") from error
    if "constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript program, not a dictionary of tensors: save "
            f"torch.jit.load({path.name!r}).state_dict() with torch.save, and give that file"
        )
    if "data.pkl" not in names:
        raise UserError(
            f"{path} is a zip archive that torch.save did not write (it holds {', '.join(names[:3]) or 'nothing'}): "
            "give the weight file in it, or the network's state_dict()"
        )


@contextlib.contextmanager
def _plain_values_allowed() -> Iterator[None]:
    """Allow values that training scripts save beside the weights and that execute nothing: options and numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    # Files of NumPy 1 name the function's module as it was called then.
    names = (f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    with torch.serialization.safe_globals(
        [argparse.Namespace, np.dtype, *numbers, *((scalar, name) for name in names)]
    ):
        yield


def _load_pickle(path: Path) -> Any:
    try:
        # Opened here, because given a path torch goes by its suffix.
        with warnings.catch_warnings(), _plain_values_allowed(), open(path, "rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # about pickles; the error below replaces it
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"{path} contains more than tensors{f' ({found[1]})' if found else ''} and could execute unknown code: "
            "save only the state_dict(), preferably as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a complete PyTorch file ({error}): get it again") from error


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved; one key may be inside another."""
    while isinstance(content, Mapping) and not _is_state(content):
        inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
        states = [key for key, value in inner.items() if _is_state(value)]
        known = [key for key in NESTED_KEYS if key in inner]
        if not known and len(states) != 1:
            keys = ", ".join(map(str, list(content)[:8]))
            raise UserError(
                f"{path} is not a dictionary of tensors (its keys are {keys or 'none'}): save the network's "
                "state_dict()"
            )
        chosen = (known or states)[0]
        others = [key for key in known if key != chosen and key in states]
        if others:
            say_once(f"{path}: the weights under {chosen!r} are taken, and {', '.join(map(repr, others))} left out")
        content = inner[chosen]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors: save state_dict()")
    return {str(name): value for name, value in content.items()}


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())
