"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation pictures of 1,000 classes.

Download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org after you registered, and unpack
them (--pictures):

* train/<class>/: one folder for each class, called like n01440764. ILSVRC2012_img_train.tar holds one .tar of each
  class, which has to be unpacked too.
* val/: all pictures in one folder, or in folders by class.
* test/, if it is there: its pictures have no published class and are not used.

If val/ is one folder, the classes of its pictures are needed (--annotations), one of

* ILSVRC2012_devkit_t12, unpacked: the folder with data/meta.mat and data/ILSVRC2012_validation_ground_truth.txt;
* LOC_val_solution.csv, from Kaggle;
* a text file with the class (n01440764) of each picture, one per line, in the order of the file names.

Tar shards as WebDataset writes them also do, with train or val in their names and the class as a number from 0 to 999.
The pictures stay where they are unless --short-side is given. The class index is the sorted class folders, as
everywhere else. The split is "1": train, and val as test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.class_folders import PARTS, part_folders, require_full, with_test_part
from data_prep.pipeline.picture_files import FoundPicture, find_pictures, labels_of_shards
from data_prep.pipeline.prepare import PictureOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import read_lines

CLASS_NAME = re.compile(r"n\d{8}")
NUM_CLASSES = 1000
META_NAME, TRUTH_NAME = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True, kw_only=True)
class ImagenetOptions(PictureOptions):
    """Options of ``python -m data_prep imagenet``."""

    pictures: Path
    """Folder that holds train and val, or the tar shards."""
    annotations: Path | None = None
    """Classes of the validation pictures, if these are in one folder: a folder or file as above."""


def prepare(options: ImagenetOptions) -> Manifest:
    """Prepare ImageNet, or the part of it that was downloaded."""
    classes, sources = read_pictures(options)
    return prepare_videos("imagenet", sources, classes=classes, options=options)


def read_pictures(options: ImagenetOptions) -> tuple[list[str], list[SourceVideo]]:
    """Find the pictures; return the class names and the pictures in the order of their names.

    Raises:
        UserError: The folders have another layout, or the classes of the validation pictures are missing or wrong.
    """
    _require_unpacked(options.pictures)
    found = find_pictures(options.pictures, out=options.out)
    if found[0].byte_range is not None:
        _say_unused(options, "shards hold")
        return _from_shards(found)
    part_of = part_folders(options.pictures)
    if not part_of:
        raise UserError(
            f"{options.pictures} has no folder train: give the folder that holds train and val; for other pictures, "
            f"type python -m data_prep images --pictures {options.pictures} --out {options.out}"
        )
    found, part_of = _without_challenge(found, part_of)
    places = [picture.name.split("/", 2) for picture in found]
    train = sorted({place[1] for place in places if len(place) == 3 and part_of.get(place[0]) == "train"})
    _check_classes(train, options)
    require_full(options.pictures, part_of, {(place[0], place[1]) for place in places if len(place) == 3}, "picture")
    labels = {name: label for label, name in enumerate(train)}
    flat = [
        picture.name
        for picture, place in zip(found, places, strict=True)
        if len(place) == 2 and part_of.get(place[0]) == "test"
    ]
    if not flat:
        _say_unused(options, "folders give")
    truth = _validation_classes(options, flat) if flat else {}
    sources = []
    for picture, place in zip(found, places, strict=True):
        part = part_of.get(place[0])
        name = place[1] if len(place) == 3 else truth.get(picture.name)
        if part is None or name is None:
            raise _no_class(options, picture.name, is_listed=part == "test" and len(place) == 2)
        if name not in labels:
            raise UserError(
                f"{options.pictures / picture.name} has the class {name}, which has no training picture: unpack "
                f"{name}.tar of ILSVRC2012_img_train.tar into {options.pictures}/train/{name}"
            )
        sources.append(SourceVideo(picture.name, {"rgb": picture.path}, label=labels[name], splits=PARTS[part]))
    return train, sources


def _say_unused(options: ImagenetOptions, source: str) -> None:
    if options.annotations is not None:
        console.print(
            f"--annotations {options.annotations} is not read, because the {source} the classes of all pictures"
        )


def _without_challenge(found: list[FoundPicture], part_of: dict[str, str]) -> tuple[list[FoundPicture], dict[str, str]]:
    """Leave out pictures of a flat folder ``test``, which have no published class, if there is ``val`` to test on."""
    tests = {folder for folder, part in part_of.items() if part == "test"}
    if "val" not in part_of.values():
        return found, part_of
    kept = [picture for picture in found if picture.name.count("/") > 1 or picture.name.partition("/")[0] not in tests]
    if len(kept) == len(found):
        return found, part_of
    tests -= {picture.name.partition("/")[0] for picture in kept}  # a folder by class stays
    num_left_out = len(found) - len(kept)
    console.print(f"{num_left_out} pictures of the folder test have no published class and are not used")
    parts = {folder: part for folder, part in part_of.items() if folder not in tests}
    return kept, dict(zip(parts, with_test_part(parts.values()), strict=True))


def _no_class(options: ImagenetOptions, name: str, *, is_listed: bool) -> UserError:
    path = options.pictures / name
    if is_listed:
        return UserError(f"{options.annotations} does not have {path.stem}: give the whole file of all pictures")
    return UserError(f"{path} has no class: put it into a folder by class, such as train/n01440764")


def _require_unpacked(folder: Path) -> None:
    """Raise a ``UserError`` if the archive of a class was not unpacked; it would be taken for a shard."""
    packed = next((path for path in folder.glob("*/n*.tar") if CLASS_NAME.fullmatch(path.stem)), None)
    if packed is not None and not packed.with_suffix("").is_dir():
        raise UserError(
            f"{packed} is not unpacked: type for t in {packed.parent}/n*.tar; "
            'do mkdir "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done'
        )


def _check_classes(train: Sequence[str], options: ImagenetOptions) -> None:
    wrong = next((name for name in train if not CLASS_NAME.fullmatch(name)), None)
    if not train or wrong is not None:
        given = f"the class folder {wrong}" if wrong else "no class folder"
        raise UserError(
            f"{options.pictures}/train has {given}, and those of ImageNet are called like n01440764: for other "
            f"pictures, type python -m data_prep images --pictures {options.pictures} --out {options.out}"
        )


def _from_shards(found: Sequence[FoundPicture]) -> tuple[list[str], list[SourceVideo]]:
    labels = labels_of_shards(found, [str(i) for i in range(NUM_CLASSES)], test_share=None, seed=0)
    sources = [
        SourceVideo(picture.name, {"rgb": picture.path}, label=label, splits=PARTS[part], byte_range=picture.byte_range)
        for picture, label, part in zip(found, labels.labels, labels.parts, strict=True)
    ]
    return labels.classes, sources


def _validation_classes(options: ImagenetOptions, names: Sequence[str]) -> dict[str, str]:
    """Return the class of each validation picture in ``names``, which are sorted."""
    path = options.annotations
    if path is None:
        raise UserError(
            f"{options.pictures / names[0]} is in no class folder: give the classes of the validation pictures with "
            "--annotations (ILSVRC2012_devkit_t12 or LOC_val_solution.csv)"
        )
    if path.is_dir():
        classes = _devkit_classes(path)
    else:
        lines = [line for _, line in read_lines(path)]
        if lines and "," in lines[0]:  # ImageId,PredictionString, and then name,n01440764 and boxes
            by_stem = {line.split(",")[0]: line.split(",")[1].split(" ")[0] for line in lines[1:] if "," in line}
            return {name: by_stem[Path(name).stem] for name in names if Path(name).stem in by_stem}
        if lines and all(line.isdecimal() for line in lines):
            raise UserError(
                f"{path} has numbers, and data/meta.mat of the devkit says which class each is: give the folder of the "
                "devkit, such as ILSVRC2012_devkit_t12, as --annotations"
            )
        classes = lines
    if len(classes) != len(names):
        raise UserError(
            f"{path} has the classes of {len(classes)} pictures, and {options.pictures / names[0]} is one of "
            f"{len(names)}: unpack all validation pictures, or give LOC_val_solution.csv"
        )
    return dict(zip(names, classes, strict=True))


def _devkit_classes(folder: Path) -> list[str]:
    """Return the class of each validation picture in the order of their file names, from the development kit."""
    truth = next(iter(sorted(folder.rglob(TRUTH_NAME))), None)
    meta = next(iter(sorted(folder.rglob(META_NAME))), None)
    if truth is None or meta is None:
        raise UserError(f"{folder} does not hold {META_NAME} and {TRUTH_NAME}: give ILSVRC2012_devkit_t12, unpacked")
    try:
        rows = scipy.io.loadmat(meta, squeeze_me=True, struct_as_record=False)["synsets"]
        name_of = {str(row.ILSVRC2012_ID): str(row.WNID) for row in rows}
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"{meta} does not hold the classes of ImageNet ({error}): unpack the devkit again") from error
    classes = []
    for place, line in read_lines(truth):
        if line not in name_of:
            raise UserError(f"{place} has the class {line!r}, which {meta} lacks: unpack the devkit again")
        classes.append(name_of[line])
    return classes
