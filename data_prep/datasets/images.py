"""Your own pictures in folders or tar shards: by split and class, by class, or without labels in any order.

--pictures has one of these layouts. Class folders may contain folders; files that are not pictures are ignored.

* <split>/<class>/<picture>: the split folders are called train (or training) and test (or testing, val, valid,
  validation). If there are both test and val, results are measured on test, and val is kept as the part "val".
* <class>/<picture>: all pictures are training pictures. With --test-share 0.2, that share of each class is drawn at
  random for testing.
* Tar shards as WebDataset writes them: a picture and a file of the same name with its class, .cls (a number or a name)
  or .json (with the key label, cls or class). The shards of a split are in a folder called like it, or have its name in
  theirs (train-0001.tar). --classes names numbered classes.
* Any of these, with --unlabelled: no classes and no splits. All pictures are training data for distillation.

Pictures are .jpg, .png, .webp, .gif, .bmp, .tif and other files that Pillow reads. They stay where they are unless
--short-side is given. A picture's name is its path below --pictures. The class index is the sorted names of the class
folders. The split is "1".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.class_folders import PARTS, check_test_share, labels_of_folders
from data_prep.pipeline.picture_files import FoundPicture, find_pictures, labels_of_shards
from data_prep.pipeline.prepare import PictureOptions, SourceVideo, check_out_is_apart, prepare_videos
from data_prep.pipeline.sources import read_class_names


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(PictureOptions):
    """Options of ``python -m data_prep images``."""

    pictures: Path
    """Folder of the pictures or tar shards."""
    unlabelled: bool = False
    """Prepare all pictures without classes, in any layout of folders."""
    test_share: float | None = None
    """Share of each class that is drawn for testing, between 0 and 1. For pictures without splits only."""
    seed: int = 0
    """Seed of the draw of --test-share."""
    classes: Path | None = None
    """File with one class name per line, for tar shards with numbered classes. The first has the number 0."""


def prepare(options: ImagesOptions) -> Manifest:
    """Prepare a folder of pictures."""
    classes, sources = read_pictures(options)
    return prepare_videos("images", sources, classes=classes, options=options)


def read_pictures(options: ImagesOptions) -> tuple[list[str], list[SourceVideo]]:
    """Find the pictures; return the class names and the pictures in the order of their names.

    Raises:
        UserError: There is no picture, or the folders have none of the layouts above.
    """
    check_out_is_apart(options)
    check_test_share(options.test_share, unlabelled=options.unlabelled)
    found = find_pictures(options.pictures, out=options.out)
    in_shards = found[0].byte_range is not None
    if options.classes is not None and (options.unlabelled or not in_shards):
        raise UserError(f"--classes {options.classes} is for tar shards with classes: remove it")
    if options.unlabelled:
        return [], [_source(picture, None, None) for picture in found]
    if in_shards:
        names = None if options.classes is None else read_class_names(options.classes)
        labels = labels_of_shards(found, names, test_share=options.test_share, seed=options.seed)
    else:
        labels = labels_of_folders(
            [picture.name for picture in found],
            options.pictures,
            test_share=options.test_share,
            seed=options.seed,
            noun="picture",
        )
    rows = zip(found, labels.labels, labels.parts, strict=True)
    return labels.classes, [_source(picture, label, part) for picture, label, part in rows]


def _source(picture: FoundPicture, label: int | None, part: str | None) -> SourceVideo:
    inputs = {"rgb": picture.path}
    return SourceVideo(picture.name, inputs, label=label, splits=PARTS[part], byte_range=picture.byte_range)
