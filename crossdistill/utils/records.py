"""JSON records: fingerprints, the first field in which two records differ, and files with a format version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError


def fingerprint(record: Any, *, num_digits: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a record. The order of its keys has no effect.

    Example:
        >>> fingerprint({"split": "1", "seed": 0}, num_digits=8)
        '9de0674b'
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:num_digits]


def first_difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, ignores_extra: bool = False
) -> tuple[str, Any, Any] | None:
    """Return the first field in which two nested records differ, in the order of ``wanted``; None if they agree.

    The result is the dotted name of the field, and its value in both, None if absent. With ``ignores_extra`` a field
    that only ``found`` has is no difference.

    Example:
        >>> first_difference({"data": {"split": "1"}}, {"data": {"split": "2"}})
        ('data.split', '1', '2')
    """
    extra = [] if ignores_extra else [name for name in found if name not in wanted]
    for name in [*wanted, *extra]:
        has, wants = found.get(name), wanted.get(name)
        if isinstance(has, Mapping) and isinstance(wants, Mapping):
            inner = first_difference(has, wants, ignores_extra=ignores_extra)
            if inner is not None:
                return f"{name}.{inner[0]}", *inner[1:]
        elif has != wants:
            return name, has, wants
    return None


def without(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a nested record without the field of a dotted name.

    Example:
        >>> without({"data": {"split": "1", "data": "x"}}, "data.data")
        {'data': {'split': '1'}}
    """
    first, _, rest = name.partition(".")
    if not rest:
        return {key: value for key, value in record.items() if key != first}
    return {**record, first: without(record[first], rest)}


def parse_versioned_json(
    text: str, *, source: str, version: int, remedy: str, format_name: str | None = None
) -> dict[str, Any]:
    """Parse a JSON object with a field ``version``, and check that this version of crossdistill can read it.

    A damaged text, another format than ``format_name`` (None allows any) or a newer version than ``version`` is a
    ``UserError``, which names the ``source`` of the text and the ``remedy`` for a damaged one.
    """
    try:
        record: dict[str, Any] = json.loads(text)
        has_version, has_format = int(record["version"]), record.get("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is damaged ({error}): {remedy}") from error
    if format_name is not None and has_format != format_name:
        raise UserError(f"{source} has the format {has_format!r}, not {format_name!r}: {remedy}")
    if has_version > version:
        raise UserError(
            f"{source} has format version {has_version}, this crossdistill reads up to {version}: update crossdistill"
        )
    return record


def read_versioned_json(
    path: Path, *, absent: str, version: int, remedy: str, format_name: str | None = None
) -> dict[str, Any]:
    """Read a JSON file with a field ``version``; see ``parse_versioned_json``.

    If there is no such file, ``absent`` is the text of the ``UserError``, as a whole sentence.
    """
    if not path.is_file():
        raise UserError(absent)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    return parse_versioned_json(text, source=str(path), version=version, remedy=remedy, format_name=format_name)
