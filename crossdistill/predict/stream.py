"""Predictions along a stream, a long video or a camera: one for each clip that ends with a newest frame.

Every frame is decoded once, and cropped once if a clip needs it. A network that sees frames one at a time embeds each
of them once; other networks run on whole clips.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdistill.data.manifest import Manifest
from crossdistill.data.transforms import centre_crop, cut_view
from crossdistill.errors import UnreadableVideoError, UserError, ended_by_ctrl_c, require_at_least, require_num_workers
from crossdistill.evaluation.evaluate_students import is_exported
from crossdistill.export.network import Outputs
from crossdistill.predict.camera import open_camera
from crossdistill.predict.clip_runners import choose_runner
from crossdistill.predict.frames import ClipWindow, Frame, camera_frames, read_ahead, video_frames
from crossdistill.predict.predictor import default_features
from crossdistill.predict.results import Moment
from crossdistill.predict.runtimes import Runtime, open_runtime
from crossdistill.predict.scorers import Scorer, choose_scorer
from crossdistill.predict.video_clips import COLOUR_VIDEO, is_picture
from crossdistill.types import View, ViewSpec
from crossdistill.utils.files import require_writable

MAX_LATENCIES = 100_000
"""Newest predictions whose latency is kept, because a camera may run for weeks."""
EARLY_PREDICTIONS = 10
"""Predictions after which the use of memory should not grow."""


@dataclass(frozen=True)
class StreamSummary:
    """What predictions along a stream cost, and what was wrong with it."""

    num_frames: int
    stream_seconds: float
    """Length of the stream."""
    seconds: float
    """Time that passed."""
    num_predictions: int
    latencies_seconds: tuple[float, ...]
    """For the newest predictions, the time from their last decoded frame to their scores."""
    memory_growth_bytes: int
    """By how much the highest use of memory rose after the tenth prediction."""
    note: str = ""
    """Damage of the video; empty if it is intact."""

    def __str__(self) -> str:
        """Return the figures in a line.

        Example:
            >>> summary = StreamSummary(300, 10.0, 2.0, 4, (0.01, 0.01, 0.01, 0.02), memory_growth_bytes=0)
            >>> print(str(summary).split(";")[0])
            300 frames in 2.0 s: 150 frames/s, 5.0 times real time
        """
        median, late, longest = (1000 * float(np.percentile(self.latencies_seconds, q)) for q in (50, 95, 100))
        return (
            f"{self.num_frames} frames in {self.seconds:.1f} s: {self.num_frames / self.seconds:.0f} frames/s, "
            f"{self.stream_seconds / self.seconds:.1f} times real time; {self.num_predictions} predictions, "
            f"latency {median:.1f} ms (median), {late:.1f} ms (95 %), {longest:.1f} ms (longest); memory grew by "
            f"{self.memory_growth_bytes / 1e6:.0f} MB{f'; {self.note}' if self.note else ''}"
        )


class StreamPredictor:
    """Predicts along a stream of frames, once.

    Raises:
        UserError: ``every`` does not fit the student's stride.
    """

    def __init__(self, runtime: Runtime, scorer: Scorer, *, every: int | None = None, top: int = 5) -> None:
        view = self._view = runtime.view
        every = every or default_every(view)
        self._runner = choose_runner(runtime, every)
        self._scorer, self._top = scorer, top
        self._window = ClipWindow[Any](num_frames=view.num_frames, stride=view.stride, every=every)
        self._latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._num_predictions = 0
        self._num_frames, self._last_seconds, self._seconds, self._note = 0, 0.0, 0.0, ""
        self._early_memory = 0

    def predict(self, frames: Iterator[Frame]) -> Iterator[Moment]:
        """Yield a prediction for each clip; the first once a whole clip has passed."""
        started = time.perf_counter()
        try:
            for frame in read_ahead(frames):
                decoded = time.perf_counter()
                outputs = self._outputs(self._num_frames, frame)
                self._num_frames, self._last_seconds = self._num_frames + 1, frame.seconds
                if outputs is not None:
                    scores = self._scorer.score(outputs, top=self._top)
                    self._latencies.append(time.perf_counter() - decoded)
                    self._num_predictions += 1
                    if self._num_predictions <= EARLY_PREDICTIONS:
                        self._early_memory = highest_memory_bytes()
                    yield Moment(frame.seconds, scores, self._latencies[-1])
        except UnreadableVideoError as error:
            self._note = str(error)  # of a damaged file, all frames have been seen
        finally:
            self._seconds = time.perf_counter() - started

    def _outputs(self, position: int, frame: Frame) -> Outputs | None:
        if not self._window.wants(position):
            return None
        picture, view = frame.picture(), self._view
        crop = centre_crop(width_px=picture.shape[1], height_px=picture.shape[0], fraction=view.centre_fraction)
        cut = cut_view([picture], crop, modality=view.kind, size_px=view.size_px)
        stored = View(cut.values[None], torch.from_numpy(cut.channel_scale)[None])
        clip = self._window.push(position, self._runner.of_frame(stored))
        return self._runner.of_clip(clip) if clip else None

    def summary(self) -> StreamSummary:
        """Say what the predictions so far cost; raise a ``UserError`` if there are none."""
        if not self._latencies:
            reason = f" ({self._note})" if self._note else ""
            raise UserError(
                f"the stream has {self._num_frames} frames{reason}, and a clip of this student spans "
                f"{self._window.first_end + 1}: predict without --stream, which repeats frames of short videos"
            )
        return StreamSummary(
            self._num_frames,
            self._last_seconds,
            self._seconds,
            self._num_predictions,
            tuple(self._latencies),
            memory_growth_bytes=highest_memory_bytes() - self._early_memory,
            note=self._note,
        )


def default_every(view: ViewSpec) -> int:
    """Return half the length of a clip, in frames of the stream."""
    return max(1, view.num_frames // 2) * view.stride


def highest_memory_bytes() -> int:
    """Return the highest use of memory of this process so far."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def predict_stream(
    student: str | Path | None,
    video: str | Path | None = None,
    *,
    onnx: str | Path | None = None,
    runtime: str | None = None,
    camera: int | None = None,
    every: int | None = None,
    data: str | Path | None = None,
    split: str = "1",
    k: int = 5,
    top: int = 5,
    json: str | Path | None = None,
    features: str | Path | None = None,
    workers: int = 2,
    allow_code: bool = False,
    on_moment: Callable[[Moment], None] | None = None,
) -> StreamSummary:
    """Predict along a long video, or along what a camera sees until Ctrl-C.

    Args:
        student: A run's folder, or the folder with ``student.safetensors``; not needed with ``onnx``.
        video: A colour video of any length.
        onnx: A file of ``crossdistill export`` to run instead of the student.
        runtime: Runtime of an exported file, as for ``predict_files``.
        camera: Number of a camera to watch instead of a video.
        every: Distance between two predictions in frames of the stream; by default half the length of a clip.
        data: The prepared dataset that the student was trained on, for class names and training clips.
        split: Split whose training clips are compared.
        k: Number of nearest clips that vote.
        top: Number of classes, or of nearest clips, in a prediction.
        json: A file that gets each prediction at once, a JSON object in a line.
        features: Folder that stores the features of the training clips, as for ``predict_files``.
        workers: Number of processes that decode the training clips.
        allow_code: Whether to run the Python file that a student of a custom network names.
        on_moment: Called with each prediction at once, for example ``print``.

    Returns:
        Frames per second, latency and memory.

    Raises:
        UserError: An argument is invalid, the video or camera cannot be read, the student does not see colour, or the
            stream is shorter than one clip.
    """
    for name, number in {"k": k, "top": top, **({} if every is None else {"every": every})}.items():
        require_at_least(f"--{name}", number, 1)
    require_num_workers(workers)
    source = _require_source(None if video is None else Path(video), camera)
    if json is not None:
        require_writable(Path(json))
    student_path, onnx_path = (None if path is None else Path(path) for path in (student, onnx))
    manifest = None if data is None else Manifest.load(Path(data))
    exported = onnx_path or (student_path if student_path is not None and is_exported(student_path) else None)
    opened = open_runtime(student_path, exported=exported, runtime=runtime, manifest=manifest, allow_code=allow_code)
    if opened.view.kind.stream != COLOUR_VIDEO:
        raise UserError(
            f"{opened.name} sees {opened.view.kind.stream}, and a stream has colour alone: choose a student that "
            "sees colour, or predict without --stream, which computes the student's stream"
        )
    with ExitStack() as stack:
        device = None if camera is None else stack.enter_context(open_camera(camera))
        store = (
            Path(features)
            if features is not None
            else default_features(exported if student_path is None else student_path)
        )
        scorer = choose_scorer(opened, manifest, split=split, k=k, workers=workers, features=store)
        predictor = StreamPredictor(opened, scorer, every=every, top=top)
        frames = video_frames(source) if device is None else camera_frames(device)
        write = _line_writer(stack, None if json is None else Path(json))
        # Ctrl-C ends a stream; what was predicted stays.
        with ended_by_ctrl_c():
            for moment in predictor.predict(frames):
                write(moment)
                if on_moment is not None:
                    on_moment(moment)
    return predictor.summary()


def _require_source(video: Path | None, camera: int | None) -> Path:
    """Return the video, or a name for the camera; raise a ``UserError`` unless there is exactly one of them."""
    if (video is None) == (camera is None):
        given = "neither a video nor --camera was" if video is None else f"--camera {camera} and {video} were"
        raise UserError(f"{given} given: with --stream give one video, or --camera 0")
    if video is None:
        return Path(f"camera {camera}")
    if not video.is_file() or is_picture(video):
        raise UserError(f"{video} is no video file: with --stream give one video, or --camera 0")
    return video


def _line_writer(stack: ExitStack, path: Path | None) -> Callable[[Moment], object]:
    """Return what adds a prediction to the file, which the stack closes."""
    if path is None:
        return lambda moment: None
    file = stack.enter_context(path.open("w", encoding="utf-8", buffering=1))  # a line is there once it is written
    return lambda moment: file.write(dumps(moment.to_json()) + "\n")
