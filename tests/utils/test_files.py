"""Files are written whole, under names that do not collide, and readable as the umask says."""

import os
import stat

import pytest
import torch

from crossdistill.encoders import create_encoder
from crossdistill.export.formats import export_student
from crossdistill.utils.files import atomic_folder, atomic_path, is_writable, write_text_atomically
from crossdistill.utils.tensor_files import write_tensors


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_privately(path):
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT, 0o600))


def test_every_written_file__has_the_mode_of_the_umask(tmp_path, umask):
    write_text_atomically(tmp_path / "a.json", "{}")
    write_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(2)}, metadata={}, advice="")
    with atomic_path(tmp_path / "c") as temporary:
        write_privately(temporary)
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "inner").mkdir()
        write_privately(folder / "inner" / "e")
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_file()} == {0o666 & ~umask}
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o777 & ~umask}


def test_exported_folder__is_readable_by_others(tmp_path):
    before, clips = os.umask(0o022), torch.randn(2, 2, 2, 32, 32)
    encoder = create_encoder("flow_tiny3d_8", num_frames=2, size_px=32).eval()
    try:
        export_student(encoder, tmp_path / "hf", clips, to="hf")
        export_student(encoder, tmp_path / "x.safetensors", clips, to="safetensors")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in written)
    assert {mode(path) for path in written} == {0o644}


def test_temporary_files__of_one_path_do_not_collide(tmp_path):
    path = tmp_path / "x"
    with atomic_path(path) as one, atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert one != other and path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_is_writable__tries(tmp_path):
    assert is_writable(tmp_path) and not list(tmp_path.iterdir())
    assert not is_writable(tmp_path / "absent") and not is_writable("/proc")
