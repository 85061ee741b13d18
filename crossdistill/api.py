"""The Python API: ``distill`` starts a run, ``Run`` evaluates, exports and applies its student.

Every keyword has the name of an option on the command line and is checked in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdistill.commands import evaluate as evaluate_command
from crossdistill.commands import report as report_command
from crossdistill.errors import UserError, replace_unprintable_characters, require_package
from crossdistill.evaluation.results import Evaluation
from crossdistill.export.export import ExportedFile, export_file
from crossdistill.predict.predictor import predict_files
from crossdistill.predict.results import Prediction
from crossdistill.recipes.config import RunConfig, from_dict, from_keywords
from crossdistill.recipes.data import dataset_of_run, main_dataset
from crossdistill.recipes.run import run
from crossdistill.report.record import read_run
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.command_line import options_from_keywords

if TYPE_CHECKING:
    import pandas


def distill(**keywords: Any) -> Run:
    """Train a student from a teacher without labels, or with ``supervised=True`` an encoder with labels.

    Args:
        keywords: Options of ``crossdistill train`` with underscores, for example ``batch_size=32``; ``config`` names a
            YAML file. Without ``data`` the embedded dataset toyactions is rendered.

    Returns:
        The finished run.

    Raises:
        UserError: A keyword is unknown, or a value, the data or the weights cannot be used.

    Example:
        >>> run = distill(teacher="rgb_r3d18", teacher_weights="kinetics400", student="flow_r3d18",
        ...               data="data/ucf101", out="runs/flow")  # doctest: +SKIP
        >>> run.evaluate(protocols=["knn", "linear"]).top1  # doctest: +SKIP
        0.614
    """
    replace_unprintable_characters()
    return Run(run(from_keywords(**keywords)))


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: The run's folder, as ``distill`` or ``crossdistill train`` made it.

    Example:
        >>> Run("runs/flow").folder.as_posix()
        'runs/flow'
    """

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        object.__setattr__(self, "folder", Path(folder))

    @property
    def config(self) -> RunConfig:
        """The part of the run's configuration that determines the trained weights."""
        path = RunFolder(self.folder).config
        if not path.is_file():
            raise UserError(f"{self.folder} is not a run's folder (no {path.name}): give the folder that --out named")
        return from_dict(json.loads(path.read_text(encoding="utf-8"))["configuration"], source=str(path))

    @property
    def metrics(self) -> pandas.DataFrame:
        """The training curves, one row per logged step; with several rounds those of the last.

        Raises:
            UserError: pandas is not installed, or the folder is not a run's.
        """
        found = require_package("pandas", target="Run.metrics", extra="pandas")
        frame: pandas.DataFrame = found.DataFrame(read_run(self.folder).metrics)
        return frame

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The final evaluation: dataset to role to results; empty if the run was not evaluated."""
        path = RunFolder(self.folder).results
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def to_frame(self) -> pandas.DataFrame:
        """Convert the final evaluation to a pandas DataFrame with one row per dataset, role and protocol.

        Without labels it has one row per dataset, role and teacher.
        The columns are those of ``Evaluation.to_frame``, then ``dataset`` (its folder), ``role`` and ``encoder``.
        Without an evaluation it is empty.

        Raises:
            UserError: pandas is not installed, or the folder is not a run's.

        Example:
            >>> frame = Run("runs/flow").to_frame()  # doctest: +SKIP
            >>> frame[frame.role == "student, distilled"][["protocol", "top1", "low", "high"]]  # doctest: +SKIP
        """
        found = require_package("pandas", target="Run.to_frame()", extra="pandas")
        frames = [
            evaluation.to_frame().assign(dataset=dataset, role=role, encoder=evaluation.encoder)
            for dataset, by_role in read_run(self.folder).results.items()
            for role, evaluation in by_role.items()
        ]
        frame: pandas.DataFrame = found.concat(frames, ignore_index=True) if frames else found.DataFrame()
        return frame

    def evaluate(self, protocols: Sequence[str] = ("knn", "linear"), **options: Any) -> Evaluation:
        """Evaluate the student as ``crossdistill evaluate`` does.

        Args:
            protocols: Names of protocols.
            options: Other options of ``crossdistill evaluate``, for example ``views="10x3"``. By default ``data``
                and ``split`` are those of the run.

        Returns:
            A result with ``top1``, ``interval`` and ``to_frame()``; every number is in ``results``.

        Raises:
            UserError: An option is unknown, or a value is not allowed.
        """
        given = {"data": main_dataset(self.config), "split": (self.config.data.split,), **options}
        options_of_command = options_from_keywords(
            evaluate_command.Options, {"students": (self.folder,), "protocols": tuple(protocols), **given}
        )
        return evaluate_command.evaluate(options_of_command)

    def report(self, out: str | Path | None = None, **options: Any) -> Path:
        """Write the HTML page of ``crossdistill report``, and return its path.

        Args:
            out: The file; ``report.html`` in the run's folder if None.
            options: Other options of the command.
        """
        keywords = {"runs": (self.folder,), "out": out, **options}
        return report_command.report(options_from_keywords(report_command.Options, keywords))

    def export(self, out: str | Path | None = None, *, to: str | None = None, **options: Any) -> ExportedFile:
        """Write the student for another runtime, and compare the file with PyTorch.

        Args:
            out: The file (a folder for ``hf``); by default a file in the run's folder.
            to: The format; by default that of the suffix of ``out``, and otherwise ONNX.
            options: Other options of ``crossdistill export``.
        """
        return export_file(self.folder, out, to=to, **options)

    def predict(self, paths: str | Path | Sequence[str | Path], **options: Any) -> list[Prediction]:
        """Predict the classes of video files.

        Args:
            paths: One file or several.
            options: Options of ``crossdistill predict``, with the same defaults.
        """
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        return predict_files(self.folder, files, **{"data": dataset_of_run(self.folder), **options})
