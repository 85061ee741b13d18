"""FileRange: a whole file or some of its bytes, at once and in pieces."""

import hashlib

import pytest

from crossdistill.data import file_range
from crossdistill.data.file_range import FileRange
from crossdistill.errors import UnreadableVideoError

CONTENT = bytes(range(100))


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file of 100 bytes that is read in pieces of 7."""
    monkeypatch.setattr(file_range, "PIECE_BYTES", 7)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path / "a.bin"


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, None), (0, 100), (10, None), (10, 30), (99, 1)])
def test_pieces__are_the_bytes_in_order(path, offset, num_bytes):
    source = FileRange(path, offset, num_bytes)
    expected = CONTENT[offset:][:num_bytes]
    assert b"".join(source.pieces()) == source.read() == expected
    assert max(map(len, source.pieces())) <= 7
    assert source.sha256() == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, 101), (90, 11), (200, 1)])
def test_pieces__of_a_file_that_ends_too_early_are_an_error(path, offset, num_bytes):
    source = FileRange(path, offset, num_bytes)
    for read in (source.read, lambda: list(source.pieces())):
        with pytest.raises(UnreadableVideoError, match=f"ends before byte {offset + num_bytes}"):
            read()


def test_pieces__of_a_missing_file_are_an_error(path):
    with pytest.raises(UnreadableVideoError, match="cannot be opened"):
        next(FileRange(path.with_name("b.bin")).pieces())


def test_sha256__tells_a_file_that_has_grown(path):
    before = FileRange(path, 0, 100).sha256()
    path.write_bytes(CONTENT + b"more")
    assert FileRange(path, 0, 100).sha256() != before
