"""Manifests of former versions become tables, and lines of JSON again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from manifest_lines import to_lines

from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.convert import ConvertOptions, convert_dataset

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
FORMER_DATA = PROJECT_FOLDER / "tests" / "former_version" / "data"
LINES_NAME = "manifest.jsonl"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """A dataset that version 0.1 prepared."""
    return Path(shutil.copytree(FORMER_DATA, tmp_path / "former"))


def test_convert__keeps_content_and_can_print_the_former_lines(former, capsys):
    lines, before = (former / LINES_NAME).read_text(), Manifest.load(former)
    kept = {path: path.read_bytes() for path in former.rglob("*") if path.is_file() and path.name != LINES_NAME}
    main(["convert", str(former)])
    assert f"{former / MANIFEST_NAME}: 24 videos, 0.0 MB (0.0 MB before)" in capsys.readouterr().out
    assert not (former / LINES_NAME).exists() and (former / f"{LINES_NAME}.old").read_text() == lines
    after = Manifest.load(former)
    assert after.content_digest == before.content_digest
    assert [video.to_json() for video in after.videos] == [video.to_json() for video in before.videos]
    assert {path: path.read_bytes() for path in kept} == kept
    main(["inspect", str(former), "--json"])
    assert capsys.readouterr().out == lines
    main(["convert", str(former)])
    assert "has the current format already" in " ".join(capsys.readouterr().out.split())
    table = (former / MANIFEST_NAME).read_bytes()
    (former / MANIFEST_NAME).write_bytes(table[: len(table) // 2])
    with pytest.raises(SystemExit):
        main(["convert", str(former)])
    assert "is damaged or cut short" in capsys.readouterr().err


def test_convert__takes_the_lines_that_are_newer_than_the_table(former):
    main(["convert", str(former)])
    table = (former / MANIFEST_NAME).read_bytes()
    to_lines(former, lambda _, rows: rows.pop())
    (former / MANIFEST_NAME).write_bytes(table)
    os.utime(former / MANIFEST_NAME, (5, 5))
    with pytest.raises(UserError, match=r"has manifest\.arrow and a newer manifest\.jsonl"):
        Manifest.load(former)
    main(["convert", str(former)])
    assert len(Manifest.load(former).videos) == 23


def test_convert__rewrites_the_parts_of_shards(former):
    header, *rows = (former / LINES_NAME).read_text().splitlines(keepends=True)
    (former / LINES_NAME).unlink()
    for i in (1, 2):
        (former / f"manifest.{i}-of-2.jsonl").write_text("".join([header, *rows[i - 1 :: 2]]))
    main(["convert", str(former)])
    parts = [f"manifest.{i}-of-2.{end}" for i in (1, 2) for end in ("arrow", "jsonl.old")]
    assert sorted(path.name for path in former.glob("manifest*")) == parts
    main(["merge", str(former)])
    assert list(Manifest.load(former).lines()) == list(Manifest.load(FORMER_DATA).lines())


def test_merge__reads_parts_of_former_versions(former):
    header, *rows = (former / LINES_NAME).read_text().splitlines(keepends=True)
    (former / LINES_NAME).unlink()
    for i in (1, 2):
        (former / f"manifest.{i}-of-2.jsonl").write_text("".join([header, *rows[i - 1 :: 2]]))
    main(["merge", str(former)])
    assert list(Manifest.load(former).lines()) == list(Manifest.load(FORMER_DATA).lines())


def test_convert__leaves_a_damaged_manifest(former):
    content = (former / LINES_NAME).read_text()[:-40]
    (former / LINES_NAME).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.jsonl line 25 is damaged"):
        convert_dataset(ConvertOptions(folder=former))
    assert (former / LINES_NAME).read_text() == content and not list(former.glob("*.arrow"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:1], "has no video after its first line: bring it back"),
        (lambda lines: [*lines, lines[-1]], "two videos are named"),
        (lambda lines: [b"[1]", *lines[1:]], r"line 1 is damaged \(it is no object\)"),
        (lambda lines: [lines[0].replace(b'"version"', b'"versoin"'), *lines[1:]], "is damaged .KeyError: 'version'"),
        (lambda lines: [*lines[:2], b"\xff" + lines[2]], r"line 3 is damaged \(invalid start byte\)"),
    ],
)
def test_convert__keeps_lines_that_are_no_whole_manifest(former, change, sentence):
    content = b"\n".join(change((former / LINES_NAME).read_bytes().splitlines())) + b"\n"
    (former / LINES_NAME).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        convert_dataset(ConvertOptions(folder=former))
    assert (former / LINES_NAME).read_bytes() == content and not list(former.glob("*.arrow"))


def test_convert__refuses_paths_outside_of_the_folder(former):
    to_lines(former, lambda _, rows: rows[0]["streams"]["rgb"].update(path="../a.mp4"))
    with pytest.raises(UserError, match=r"manifest\.jsonl names the file \.\./a\.mp4 outside the dataset"):
        convert_dataset(ConvertOptions(folder=former))
    assert (former / LINES_NAME).exists()


@pytest.mark.parametrize(("name", "sentence"), [("empty", "is not a prepared dataset"), ("gone", "there is no folder")])
def test_convert__refuses_other_folders(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        convert_dataset(ConvertOptions(folder=tmp_path / name))


def test_inspect__json_of_a_sheet_is_refused(former):
    with pytest.raises(SystemExit):
        main(["inspect", str(former), "--json", "--out", "a.png"])


def test_convert__killed_leaves_a_dataset_that_opens(tmp_path):
    """Killed at any moment, one of the two manifests is whole."""
    header, row, *_ = map(json.loads, (FORMER_DATA / LINES_NAME).read_text().splitlines())
    rows = [{**row, "name": f"video {i}"} for i in range(20_000)]
    content = "".join(json.dumps(line) + "\n" for line in (header, *rows))
    for delay_seconds in (0.0, 0.05, 0.2):
        (tmp_path / MANIFEST_NAME).unlink(missing_ok=True)
        (tmp_path / LINES_NAME).write_text(content)
        command = [sys.executable, "-m", "data_prep", "convert", str(tmp_path)]
        process = subprocess.Popen(command, cwd=PROJECT_FOLDER, stdout=subprocess.DEVNULL)
        try:
            while not list(tmp_path.glob(f".{MANIFEST_NAME}.*.tmp")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay_seconds)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(Manifest.load(tmp_path).videos) == 20_000
