"""Fingerprints, differences and versions of JSON records."""

import hashlib
import json

import pytest

from crossdistill.errors import UserError
from crossdistill.utils.records import fingerprint, first_difference, read_versioned_json


def test_fingerprint__is_sha256_of_sorted_json():
    expected = hashlib.sha256(b'{"a": [1, null], "b": "x"}').hexdigest()
    assert fingerprint({"b": "x", "a": (1, None)}) == expected[:16]
    assert fingerprint({"a": [1, None], "b": "x"}, num_digits=64) == expected
    assert fingerprint({"a": [1, None], "b": "y"}, num_digits=64) != expected


@pytest.mark.parametrize(
    ("found", "wanted", "difference", "without_extra"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, None, None),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4, "d": 5}, "a": 0}, ("b.c", 2, 4), ("b.c", 2, 4)),
        ({}, {"a": {"b": 1}}, ("a", None, {"b": 1}), ("a", None, {"b": 1})),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", 2, None), None),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, ("a.c", 2, None), None),
    ],
)
def test_first_difference(found, wanted, difference, without_extra):
    assert first_difference(found, wanted) == difference
    assert first_difference(found, wanted, ignores_extra=True) == without_extra


def read(path):
    return read_versioned_json(path, absent="there is none", version=2, remedy="write it again", format_name="ours")


def test_read_versioned_json__reads_this_version_and_older_ones(tmp_path):
    for version in (1, 2):
        (tmp_path / "x.json").write_text(json.dumps({"format": "ours", "version": version}))
        assert read(tmp_path / "x.json") == {"format": "ours", "version": version}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", r"x\.json is damaged \(.*\): write it again$"),
        (b"[1]", r"x\.json is damaged"),
        (b"\xff{}", r"x\.json is damaged"),
        (b'{"format": "ours"}', r"x\.json is damaged \('version'\)"),
        (b'{"format": "ours", "version": null}', r"x\.json is damaged"),
        (b'{"format": "theirs", "version": 1}', r"x\.json has the format 'theirs', not 'ours': write it again$"),
        (
            b'{"format": "ours", "version": 3}',
            r"has format version 3, this crossdistill reads up to 2: update crossdistill$",
        ),
    ],
)
def test_read_versioned_json__refuses_other_content(tmp_path, content, sentence):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "x.json")


def test_read_versioned_json__absent_file_is_the_callers_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^there is none$"):
        read(tmp_path / "x.json")
