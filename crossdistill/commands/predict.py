"""``crossdistill predict``: the classes of video files, or of what a camera sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from crossdistill.errors import UserError
from crossdistill.export.limits import RuntimeName
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console


@dataclass(frozen=True)
class Options:
    """Predict the classes of videos and pictures, by the classifier of the student or the nearest clips of --data.

    With --stream, predict along one long video or a camera.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """The student (a run's folder, the folder with student.safetensors, a repository of the Hugging Face hub,
    organisation/name, or a file of crossdistill export), then videos, pictures or folders of them."""
    onnx: Path | None = None
    """Run this file of crossdistill export in place of the student, which may be left out."""
    runtime: RuntimeName | None = None
    """Runtime of an exported file. onnxruntime: .onnx (its default); openvino: .onnx and .xml; pytorch: .pt2 and .pt,
    and a student's folder; auto: the fastest that is installed, after a comparison of all on noise."""
    camera: int | None = None
    """Number of a camera to watch until Ctrl-C, instead of videos."""
    seconds: float = 3.0
    """Seconds of the camera for one prediction, without --stream."""
    stream: bool = False
    """Predict along one video or the camera: a line for the clip that ends with each --every'th frame. Frames are
    decoded once; latency and frames per second are printed at the end. --json then gets a JSON object per line."""
    every: int | None = None
    """Frames between two predictions of --stream; by default half the length of a clip."""
    data: Path | None = None
    """The prepared dataset that the student was trained on, for class names and training clips. Default: that of the
    run whose folder is given, if the student has no classes."""
    split: str = "1"
    """Split whose training clips are compared."""
    k: int = 5
    """Number of nearest clips that vote. A video is the mean of --clips clips and a training video its middle clip, so
    that a video of the training set need not be its own nearest."""
    clips: int = 10
    """Number of clips per video, spread evenly, that a prediction is averaged over."""
    top: int = 5
    """Number of classes, or of nearest clips, to show; of nearest clips no more than --k."""
    json: Path | None = None
    """Also write the predictions to this file."""
    features: Path | None = None
    """Folder that stores the features of the training clips; by default the folder features beside the student or the
    exported file."""
    workers: int = 2
    """Number of processes that decode the training clips."""
    allow_code: bool = False
    """Run the Python file that a student of a custom network (path/to/file.py:function) names."""

    @property
    def student(self) -> Path | None:
        """The student's folder or exported file; None if --onnx is given and the first path is no folder."""
        is_omitted = self.onnx is not None and not (self.paths and self.paths[0].is_dir())
        return None if is_omitted or not self.paths else self.paths[0]

    @property
    def dataset(self) -> Path | None:
        """``--data``, or the dataset of the run, which a student without classes needs."""
        from crossdistill.recipes.data import dataset_of_run

        is_needed = self.data is None and self.student is not None and self.onnx is None
        return dataset_of_run(self.student) if is_needed and self.student is not None else self.data

    @property
    def videos(self) -> tuple[Path, ...]:
        """The video and picture files, and folders of them."""
        return self.paths if self.student is None else self.paths[1:]


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog=prog)
    if options.stream:
        predict_along(options)
    else:
        predict_each(options)


def predict_each(options: Options) -> None:
    """Predict files, or recordings of a camera."""
    from crossdistill.predict.predictor import predict_files
    from crossdistill.predict.results import print_prediction, require_readable

    if options.every is not None:
        raise UserError(f"--every {options.every} was given without --stream: add --stream, or leave it out")
    shared = {name: value for name, value in vars(options).items() if name not in ("paths", "stream", "every")}
    shared["data"] = options.dataset
    predictions = predict_files(options.student, options.videos, **shared, on_prediction=print_prediction)
    require_readable(predictions, is_camera=options.camera is not None)


def predict_along(options: Options) -> None:
    """Predict along a stream."""
    from crossdistill.predict.results import print_moment
    from crossdistill.predict.stream import predict_stream

    if len(options.videos) > 1:
        raise UserError(f"{len(options.videos)} videos were given: with --stream give one")
    unused = ("paths", "stream", "seconds", "clips")
    for name in ("seconds", "clips"):
        if getattr(options, name) != getattr(Options, name):
            raise UserError(
                f"--{name} has no effect with --stream, which predicts single clips: remove it, or --stream"
            )
    shared = {name: value for name, value in vars(options).items() if name not in unused}
    shared["data"] = options.dataset
    summary = predict_stream(options.student, *options.videos, **shared, on_moment=print_moment)
    console.print(str(summary), highlight=False, soft_wrap=True)
