"""Prediction for video files and cameras: what ``crossdistill predict`` and a notebook call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.data.pictures import PICTURE_SUFFIXES
from crossdistill.errors import UnreadableVideoError, UserError, ended_by_ctrl_c, require_at_least, require_num_workers
from crossdistill.evaluation.evaluate_students import is_exported
from crossdistill.predict.camera import open_camera, recordings
from crossdistill.predict.results import Prediction, write_predictions
from crossdistill.predict.runtimes import Runtime, open_runtime, run_in_batches
from crossdistill.predict.scorers import Scorer, choose_scorer
from crossdistill.predict.video_clips import read_video_clips, recipe_for, require_source
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.files import is_writable, require_writable
from data_prep.pipeline.sources import VIDEO_SUFFIXES, walk_files
from data_prep.recipe import Recipe


def predict_files(
    student: str | Path | None,
    paths: Sequence[str | Path] = (),
    *,
    onnx: str | Path | None = None,
    runtime: str | None = None,
    camera: int | None = None,
    seconds: float = 3.0,
    data: str | Path | None = None,
    split: str = "1",
    k: int = 5,
    clips: int = 10,
    top: int = 5,
    json: str | Path | None = None,
    features: str | Path | None = None,
    workers: int = 2,
    allow_code: bool = False,
    on_prediction: Callable[[Prediction], None] | None = None,
) -> list[Prediction]:
    """Predict the classes of videos and pictures, or of what a camera sees until Ctrl-C.

    The student's own classifier gives the classes. Without one, the nearest training clips of ``data`` do.

    Args:
        student: A run's folder, the folder with ``student.safetensors``, or a file of ``crossdistill export`` (.onnx,
            .xml, .pt2, .pt).
        paths: Video files, of any kind that PyAV reads or of a prepared dataset; pictures; folders of both.
        onnx: A file of ``crossdistill export`` to run instead of the student, whose folder then keeps the features.
        runtime: Runtime of an exported file: ``onnxruntime``, ``openvino``, ``pytorch``, or ``auto`` for the fastest
            that is installed. None is onnxruntime for .onnx, and the only one for other files.
        camera: Number of a camera to watch instead of files.
        seconds: Seconds of the camera for one prediction.
        data: The prepared dataset that the student was trained on, for class names and training clips.
        split: Split whose training clips are compared.
        k: Number of nearest clips that vote.
        clips: Number of clips per video, spread evenly, that a prediction is averaged over.
        top: Number of classes, or of nearest clips, in a prediction.
        json: A file to write the predictions to.
        features: Folder that stores the features of the training clips; by default ``features`` beside the student or
            the exported file.
        workers: Number of processes that decode the training clips.
        allow_code: Whether to run the Python file that a student of a custom network (path/to/file.py:function) names.
        on_prediction: Called with each prediction at once, for example ``print``.

    Returns:
        One prediction per file, or per recording of the camera. A file that cannot be decoded has one without scores.

    Raises:
        UserError: An argument is invalid, a file is missing, or the student sees a modality that a file cannot give.
    """
    videos = [file for path in paths for file in files_of(Path(path))]
    student_path, onnx_path, data_path, json_path, features_path = (
        None if path is None else Path(path) for path in (student, onnx, data, json, features)
    )
    _check_numbers(k=k, clips=clips, top=top, workers=workers, seconds=seconds)
    _check_sources(videos, camera)
    for output in (json_path, None if features_path is None else features_path / "features"):
        if output is not None:
            require_writable(output)
    manifest = None if data_path is None else Manifest.load(data_path)
    exported = onnx_path or (student_path if student_path is not None and is_exported(student_path) else None)
    opened = open_runtime(student_path, exported=exported, runtime=runtime, manifest=manifest, allow_code=allow_code)
    recipe = recipe_for(opened.view, manifest)
    # A camera's recordings are colour videos, like a file of this name.
    for path in videos or [Path(f"camera {camera}")]:
        require_source(path, opened.view, recipe)
    with contextlib.ExitStack() as stack:
        # A camera that cannot be opened is an error before the gallery is embedded, which may take long.
        device = None if camera is None else stack.enter_context(open_camera(camera))
        store = features_path or default_features(exported if student_path is None else student_path)
        scorer = choose_scorer(opened, manifest, split=split, k=k, workers=workers, features=store)
        predictor = VideoPredictor(opened, scorer, recipe, num_clips=clips, top=top)
        found = predictor.predict_all(videos) if device is None else predictor.watch(device, camera, seconds=seconds)
        predictions: list[Prediction] = []
        # Ctrl-C ends the predictions of a camera.
        with contextlib.nullcontext() if device is None else ended_by_ctrl_c():
            predictions.extend(_told(found, on_prediction))
    if json_path is not None:
        write_predictions(json_path, opened.name, predictions)
    return predictions


def _told(found: Iterator[Prediction], on_prediction: Callable[[Prediction], None] | None) -> Iterator[Prediction]:
    """Hand each prediction on before the next one is made."""
    for prediction in found:
        if on_prediction is not None:
            on_prediction(prediction)
        yield prediction


def files_of(path: Path) -> list[Path]:
    """Return the videos and pictures of a folder and its subfolders, sorted; a file by itself."""
    if not path.is_dir():
        return [path]
    files = [file for file in walk_files(path) if file.suffix.lower() in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)]
    if not files:
        raise UserError(f"the folder {path} holds no video and no picture: give files, or a folder of them")
    return files


def _check_numbers(*, workers: int, seconds: float, **counts: int) -> None:
    for name, number in counts.items():
        require_at_least(f"--{name}", number, 1)
    require_num_workers(workers)
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds}: give more than 0")


def _check_sources(videos: Sequence[Path], camera: int | None) -> None:
    """Raise a ``UserError`` unless there are either existing files or a camera."""
    if camera is None and not videos:
        raise UserError("no video was given: give videos or pictures after the student, or --camera 0")
    if camera is not None and videos:
        raise UserError(f"--camera and {len(videos)} video files were given: give one or the other")
    for path in videos:
        if not path.is_file():
            raise UserError(f"the video {path} does not exist: give videos or pictures after the student")


def default_features(student: Path | None) -> Path | None:
    """Return the default folder of the feature store, or None if it cannot be written.

    It is the one that ``crossdistill evaluate`` uses for the student's folder or exported file.
    """
    assert student is not None
    folder = RunFolder(student.parent) if student.is_file() else RunFolder.of_student(student)
    features = folder.features
    return features if is_writable(features if features.is_dir() else folder.path) else None


@dataclass(frozen=True)
class VideoPredictor:
    """Reads clips of videos and scores them; the recipe computes the student's stream from another modality."""

    runtime: Runtime
    scorer: Scorer
    recipe: Recipe
    num_clips: int
    top: int

    def predict(self, path: Path, *, name: str) -> Prediction:
        """Predict one file; the name is that of the video in the prediction."""
        try:
            clips = read_video_clips(path, self.runtime.view, num_clips=self.num_clips, recipe=self.recipe)
        except UnreadableVideoError as error:
            # The error names the file, and so does the prediction.
            return Prediction(name, None, note=str(error).removeprefix(f"{path}: "))
        scores = self.scorer.score(run_in_batches(self.runtime, clips.view), top=self.top)
        return Prediction(name, scores, num_clips=len(clips.view.values), note=clips.note)

    def predict_all(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """Predict one file after the other."""
        with progress_bar(unit="videos", is_shown=len(paths) > 1) as bar:
            for path in bar.track(paths, description="predict"):
                yield self.predict(path, name=str(path))

    def watch(self, device: Any, camera: int | None, *, seconds: float) -> Iterator[Prediction]:
        """Predict recordings of an opened camera until it gives no more pictures.

        Raise a ``UserError`` if it gives none at all.
        """
        path = None
        for path in recordings(device, seconds=seconds):
            yield self.predict(path, name=f"camera {camera}")
        if path is None:
            raise UserError(f"camera {camera} gives no picture: check it with another program")
        console.print(f"camera {camera} gives no more pictures", highlight=False)
