"""Data of several test files."""

import shutil

import pytest

from crossdistill.data.manifest import Manifest


@pytest.fixture(scope="module")
def data_folder(toy_folder, tmp_path_factory):
    """Toyactions of which one training video has no colour."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    lost = manifest.videos[manifest.select(split="1", part="train")[3]]
    (folder / lost.streams["rgb"].path).unlink()
    return folder
