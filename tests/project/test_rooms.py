"""The rooms: CONTRIBUTING.md, the contracts of import-linter and the folders tell the same story."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGES = ("crossdistill", "data_prep")


def contracts():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["importlinter"]["contracts"]


def layers_of(package):
    """The floors of a package, from the top; rooms that share a floor may not import each other."""
    (contract,) = [one for one in contracts() if one["type"] == "layers" and one["containers"] == [package]]
    assert contract["exhaustive"] is True
    return [[room.strip(" ()") for room in layer.split("|")] for layer in contract["layers"]]


def table_of(package):
    """The rooms of a package in the table of CONTRIBUTING.md, row by row."""
    table = PAGE.partition(f"| room of `{package}` |")[2].partition("\n\n")[0]
    return [re.findall(r"`([\w.]+)`", row.split("|")[1]) for row in table.splitlines()[2:]]


def rooms_on_disk(package):
    paths = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return {path.stem for path in paths} - {"__init__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_table__has_the_order_of_the_contract(package):
    assert table_of(package) == layers_of(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_contract__names_every_room_on_disk(package):
    (contract,) = [one for one in contracts() if one["type"] == "layers" and one["containers"] == [package]]
    optional = {layer.strip("()") for layer in contract["layers"] if layer.startswith("(")}
    rooms = {room for layer in layers_of(package) for room in layer}
    assert rooms - optional <= rooms_on_disk(package) <= rooms


def test_no_contract_ignores_an_import():
    assert not [one["name"] for one in contracts() if one.get("ignore_imports") or one.get("unmatched_ignore_imports")]


def test_data_prep__imports_only_the_rooms_that_the_page_names():
    (contract,) = [one for one in contracts() if one.get("source_modules") == ["data_prep"]]
    forbidden = {name.removeprefix("crossdistill.") for name in contract["forbidden_modules"]}
    rooms = [room for layer in layers_of("crossdistill") for room in layer]
    allowed = set(rooms) - forbidden - {"__main__", "api"}
    assert allowed == {"data", "utils", *rooms[-3:]}
    assert "`data_prep` uses only `data`, `utils` and the last three rooms of `crossdistill`" in PAGE


def test_tests__have_a_folder_for_every_room_with_modules():
    rooms = {room for room in rooms_on_disk("crossdistill") if (ROOT / "crossdistill" / room).is_dir()} - {"commands"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert rooms | {"data_prep", "project"} <= folders


def test_recipes__name_files_that_exist():
    recipes = PAGE.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    for path in set(re.findall(r"`((?:crossdistill|data_prep|tests|configs|scripts|docs)/[\w/.]+)`", recipes)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("crossdistill/modalities.py", "class Modality"),
        ("crossdistill/data/streams.py", "class StreamFormat"),
        ("crossdistill/encoders/registry.py", "ARCHITECTURES"),
        ("crossdistill/objectives/__init__.py", "OBJECTIVES"),
        ("crossdistill/distillation/heads.py", "class Adapter"),
        ("crossdistill/data/decoders/__init__.py", "class Decoder"),
        ("crossdistill/evaluation/protocols/__init__.py", "PROTOCOLS"),
        ("crossdistill/evaluation/settings.py", "class ProtocolSettings"),
        ("crossdistill/evaluation/embedded_split.py", "class EmbeddedSplit"),
        ("crossdistill/export/formats.py", "class Format"),
        ("crossdistill/commands/main.py", "COMMANDS"),
        ("data_prep/__main__.py", "DATASETS"),
        ("data_prep/flow/base.py", "class FlowMethod"),
    ],
)
def test_recipes__name_tables_and_classes_that_exist(file, name):
    assert name.removeprefix("class ") in PAGE
    assert re.search(rf"^{name}\b", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE), file
