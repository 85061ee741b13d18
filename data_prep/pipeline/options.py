"""The options that all datasets share, and their checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from crossdistill.errors import UserError, unknown_name
from data_prep.flow import FLOW_PRESETS
from data_prep.pipeline.readers import MIN_SIDE_PX
from data_prep.pipeline.transcode import DERIVED, check_source
from data_prep.recipe import AnyRecipe, PictureRecipe, Recipe

# Options of the datasets that name folders of source files.
SOURCE_FOLDER_OPTIONS = ("videos", "pictures", "depth", "skeleton", "replacement", "shifts")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that all datasets share, of videos and of pictures."""

    noun: ClassVar[str] = "files"
    """What a source is called, for messages."""
    suffix: ClassVar[str] = ""
    """End of the names of the files that are written."""

    out: Path
    """Folder of the prepared dataset. Nothing is written outside it."""
    max_bad: float = 0.05
    """Share of the found files that may be unusable before the command fails, from 0 to 1."""
    time_limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 600.0
    """Skip a file that takes longer: decoders can hang on damaged files."""
    retry: bool = False
    """Try again the files that an earlier run skipped."""
    replace: bool = False
    """Allow that what --out holds is made again with other options or from other files, or leaves the dataset because
    this command does not name it."""
    workers: int | None = None
    """Number of files prepared at a time. If not given: one per core, or the capacity of the cluster."""
    engine: Literal["local", "dask", "ray"] = "local"
    """Where files are prepared: on this machine, or on a cluster whose machines see the same folders."""
    address: str | None = None
    """Address of the cluster's scheduler, for example tcp://head-node:8786."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Prepare part I of N only, for job arrays. Afterwards, join the parts with python -m data_prep merge."""
    dry_run: bool = False
    """Print the number and size of the files and an estimate of the time. Write nothing."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams to make."""
        raise NotImplementedError

    @property
    def recipe(self) -> AnyRecipe:
        """The options that decide the content of the streams."""
        raise NotImplementedError

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the packages that the content of the streams depends on."""
        raise NotImplementedError

    def check_inputs(self, inputs: Collection[Mapping[str, object]]) -> None:
        """Raise a ``UserError`` if the inputs (modality to file) of a source do not suffice for the streams."""

    def check(self) -> None:
        """Raise a ``UserError`` if a value is invalid, an option has no effect, or a library or weights are missing."""
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad {self.max_bad} is invalid: give a share from 0 to 1")
        if self.time_limit <= 0:
            raise UserError(f"--time-limit {self.time_limit:g} is invalid: give a number of seconds above 0")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(RunOptions):
    """The options that all datasets of videos share."""

    noun: ClassVar[str] = "videos"
    suffix: ClassVar[str] = ".mp4"

    modalities: tuple[Literal["rgb", "flow", "depth"], ...] = ("rgb", "flow")
    """Streams to make. Streams that an earlier run made with the same options are kept."""
    short_side_px: Annotated[int, tyro.conf.arg(name="short-side", metavar="PX")] = 256
    """Short side of the stored pictures in pixels, an even number. Smaller videos keep their size. 128 is enough for
    crops of 112 pixels."""
    keep_original: bool = False
    """Do not re-encode colour: use the source files as the rgb stream. They are slower to read, and the prepared
    dataset needs them at the same path."""
    flow: Literal["dis", "farneback", "tvl1", "raft", "motion-vectors"] = "dis"
    """Method that estimates optical flow. motion-vectors reads the vectors of the video codec: coarse, in half the
    time of dis."""
    flow_preset: Literal["ultrafast", "fast", "medium"] = "fast"
    """Effort of --flow dis."""
    flow_weights: str | None = None
    """Weights of --flow raft: a file, or a name in torchvision such as raft_small."""
    depth_model: str | None = None
    """Network that estimates depth from colour, with --modalities depth: a model name on Hugging Face, or the folder
    of a saved model."""
    min_frames: int = 8
    """Skip videos with fewer readable frames."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams to make."""
        return self.modalities

    @property
    def recipe(self) -> Recipe:
        """The options that decide the content of the streams.

        An option without effect on the chosen streams keeps its default, so that it does not invalidate them.
        """
        makes_flow, is_dis = "flow" in self.modalities, self.flow == "dis"
        return Recipe(
            short_side_px=self.short_side_px,
            min_frames=self.min_frames,
            keep_original=self.keep_original,
            flow=self.flow if makes_flow else Recipe.flow,
            flow_preset=self.flow_preset if makes_flow and is_dis else Recipe.flow_preset,
            flow_weights=self.flow_weights if makes_flow and self.flow == "raft" else None,
            depth_model=self.depth_model if "depth" in self.modalities else None,
        )

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the packages that the content of the streams depends on."""
        recipe, libraries = self.recipe, ["av", "numpy", "opencv-contrib-python-headless"]
        libraries += ["torch", "torchvision"] if recipe.flow == "raft" else []
        libraries += ["torch", "transformers"] if recipe.depth_model else []
        return tuple(libraries)

    def check_inputs(self, inputs: Collection[Mapping[str, object]]) -> None:
        """Check the inputs; see ``RunOptions.check_inputs``."""
        for of_video in inputs:
            for stream in self.modalities:
                check_source(stream, of_video, self.recipe)  # one error now instead of a failure per file
        if self.depth_model is not None and inputs and all("depth" in of_video for of_video in inputs):
            raise UserError(f"--depth-model {self.depth_model} has no effect: all videos come with depth; remove it")

    def check(self) -> None:
        """Check the values; see ``RunOptions.check``."""
        super().check()
        if self.short_side_px < MIN_SIDE_PX or self.short_side_px % 2:
            raise UserError(f"--short-side {self.short_side_px} is invalid: give an even number >= {MIN_SIDE_PX}")
        if self.min_frames < 2:
            raise UserError(f"--min-frames {self.min_frames} is invalid: give 2 or more (flow needs a pair of frames)")
        if not self.modalities:
            raise UserError("--modalities is empty: give at least one of rgb, flow, depth")
        if self.flow_preset not in FLOW_PRESETS:
            raise unknown_name("flow preset", self.flow_preset, FLOW_PRESETS)
        _check_options_have_effect(self)
        for stream in self.modalities:
            if stream in DERIVED:
                DERIVED[stream].check(self.recipe)


@dataclass(frozen=True, kw_only=True)
class PictureOptions(RunOptions):
    """The options that all datasets of still pictures share."""

    noun: ClassVar[str] = "pictures"
    suffix: ClassVar[str] = ".jpg"

    short_side_px: Annotated[int | None, tyro.conf.arg(name="short-side", metavar="PX")] = None
    """Write each picture as a JPEG file with this short side in pixels; smaller pictures keep their size. If not given,
    the pictures stay where they are: the prepared dataset needs them at the same path."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The only stream, colour. Image encoders read it from videos too."""
        return ("rgb",)

    @property
    def recipe(self) -> PictureRecipe:
        """The options that decide the content of the pictures."""
        return PictureRecipe(short_side_px=self.short_side_px)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the packages that the content of the pictures depends on."""
        return "numpy", "opencv-contrib-python-headless", "pillow"

    def check(self) -> None:
        """Check the values; see ``RunOptions.check``."""
        super().check()
        if self.short_side_px is not None and self.short_side_px < MIN_SIDE_PX:
            raise UserError(f"--short-side {self.short_side_px} is invalid: give a number >= {MIN_SIDE_PX}")


def _check_options_have_effect(options: PrepareOptions) -> None:
    """Refuse an option without effect: the user expects another result than the run would give."""
    # Option, value, default, the stream that it belongs to, the flow method that reads it (None: all of them).
    rows = (
        ("--flow", options.flow, PrepareOptions.flow, "flow", None),
        ("--flow-preset", options.flow_preset, PrepareOptions.flow_preset, "flow", "dis"),
        ("--flow-weights", options.flow_weights, None, "flow", "raft"),
        ("--depth-model", options.depth_model, None, "depth", None),
    )
    for name, value, default, stream, method in rows:
        if value == default:
            continue
        if stream not in options.modalities:
            raise UserError(f"{name} {value} has no effect without {stream} in --modalities: add it, or remove {name}")
        if method is not None and options.flow != method:
            raise UserError(f"{name} {value} has no effect with --flow {options.flow}: remove it, or use {method}")


def check_out_is_apart(options: RunOptions) -> None:
    """Raise a ``UserError`` if --out is in a folder of sources: the next run would find its streams as sources."""
    for name in SOURCE_FOLDER_OPTIONS:
        folder = getattr(options, name, None)
        # With `--videos .`, every relative --out would be inside it.
        if folder is None or not folder.is_dir() or folder.resolve() == Path.cwd():
            continue
        if options.out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--out {options.out} is inside --{name} {folder}: give a folder outside it")
