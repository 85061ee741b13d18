"""Find and read the YAML files of configurations: one's own by path, and those that come with the package by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crossdistill.errors import UserError, unknown_name

SUFFIX = ".yaml"
_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """Return the folder of the files that come with the package: ``configs`` of the checkout, or of the wheel."""
    in_wheel = _PACKAGE / "configs"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Return the names of the recipes that come with the package, for example ``compress/moco_to_resnet18_2q``."""
    folder = configs_folder()
    files = [*folder.glob(f"*{SUFFIX}"), *folder.glob(f"compress/*{SUFFIX}")]
    # compress/recipe is what the others of compress share, no run by itself.
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files if path.stem != "recipe")


def find_config_file(given: str) -> Path:
    """Return the file of ``--config``: a path, or the name of a recipe that comes with the package.

    Raises:
        UserError: There is no such file or recipe.
    """
    path = Path(given)
    if path.is_file():
        return path
    names = config_names()
    if given in names:
        return configs_folder() / f"{given}{SUFFIX}"
    if path.suffix in (SUFFIX, ".yml"):
        raise UserError(f"there is no configuration file {given}: correct the path, or name one of {', '.join(names)}")
    raise unknown_name("configuration", given, names)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections.

    Raises:
        UserError: It is missing, no YAML, or no sections.
    """
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}: correct the path")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}: a configuration is sections of keys and values")
    return values or {}
