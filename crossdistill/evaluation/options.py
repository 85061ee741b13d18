"""The command line of ``crossdistill evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from crossdistill.errors import UserError
from crossdistill.evaluation.finetune import FineTuning
from crossdistill.evaluation.held_out import Shots
from crossdistill.evaluation.intervals import NUM_DRAWS
from crossdistill.evaluation.protocols import Settings
from crossdistill.evaluation.views import TestViews
from crossdistill.training.trackers import TrackerName
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.files import require_writable

SPLIT_MARK = "{split}"
DESCRIPTION = """Evaluate trained students on the splits of a prepared, labelled dataset.

Every number stands beside a 95 % confidence interval (bootstrap over test videos, or over groups where the dataset has
them: performers, source films) and the share of the test videos that could be read. Features are computed once and
kept beside the student, so a second protocol costs seconds. For example:

crossdistill evaluate runs/mine --data data/ucf101 --protocols knn linear retrieval

crossdistill evaluate "runs/mine-{split}" --data data/ucf101 --split 1 2 3 --views 10x3

crossdistill evaluate runs/rgb runs/flow --data data/ucf101 --protocols fusion agreement"""


@dataclass(frozen=True)
class Options:
    """Evaluate trained students on the splits of a prepared, labelled dataset."""

    students: tyro.conf.Positional[tuple[Path, ...]]
    """A run's folder, or the folder with student.safetensors; several for fusion and agreement. {split} in a name
    stands for the split: runs/flow-{split} with --split 1 2 3 are three students, each tested on its own split."""
    data: Path
    """A prepared dataset (see python -m data_prep)."""
    split: tuple[str, ...] = ("1",)
    """Which official split; of several, each and their mean."""
    protocols: tuple[str, ...] = ("knn", "linear")
    """knn: nearest neighbours by cosine similarity; linear: a linear layer on frozen features, by the paper's SGD;
    linear-sweep: with the learning rate and weight decay that are best on a held-out part of train; cluster: k-means,
    and each cluster one class; retrieval: is a video of the class among the 1, 5, 10, 20, 50 nearest; lowshot: linear
    with few labels; finetune: the student itself learns the labels; of several students, fusion: probabilities
    averaged and similarities summed, agreement: common neighbours and CKA."""
    views: str = "1x1"
    """Clips x crops of every test video: 10x3 are ten clips from start to end and three crops along the longer side.
    Features are averaged for knn, cluster and retrieval, class probabilities for linear layers."""
    train_views: str | None = None
    """Clips x crops of every training video; as --views if absent."""
    k: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours for knn."""
    shots: tuple[str, ...] = ("1%", "10%", "5")
    """For lowshot: the labelled share of each class's training clips, or their number."""
    draws: int = 5
    """For lowshot: how often the labelled clips are drawn."""
    bootstrap: int = NUM_DRAWS
    """Test sets that are drawn for the intervals; 0: no intervals."""
    seed: int = 0
    """Of the order of clips, held-out parts, draws and the bootstrap."""
    features: Path | None = None
    """Folder in which features are kept; the folder features beside the student if absent."""
    json: Path | None = None
    """Write the results there as well (docs/results_schema.md)."""
    finetune_epochs: int = 30
    """For finetune: passes over the training clips."""
    finetune_lr: float = 1e-3
    """For finetune: peak learning rate of AdamW."""
    finetune_batch_size: int = 16
    """For finetune: clips per batch of one process."""
    workers: int = 2
    """Processes that decode."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Which library reads the videos; pyav reads what another cannot give exactly."""
    short_clips: Literal["repeat", "loop", "error"] = "repeat"
    """Videos shorter than a clip: repeat their end frames, loop (start them again), or error (refuse to start)."""
    mixed_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As in training."""
    tracker: TrackerName = "tensorboard"
    """Where the numbers of a run's student go as well, beside the run's curves."""
    allow_code: bool = False
    """Run the Python file that a student of one's own network (path/to/file.py:function) names."""

    def check(self) -> None:
        """Raise a ``UserError`` for the first wrong value; not while tyro parses, which would put it into a box."""
        if self.json is not None:
            require_writable(self.json)
        if self.features is not None:
            require_writable(self.features / "features")
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}: give 0 (decode in this process) or more")
        if not self.students:
            raise UserError("no student was given: name a run's folder, or several")
        if len(set(self.students)) < len(self.students):
            raise UserError("a student was named twice: leave one out")
        for name in ("split", "protocols"):
            given = getattr(self, name)
            if not given:
                raise UserError(f"--{name} is empty: name one or more")
            if len(set(given)) < len(given):
                raise UserError(f"--{name} {' '.join(given)}: name one or more, each once")
        for path in self.folders:
            if path.is_file():
                raise UserError(
                    f"{path} is a file, and a student is a folder with student.json and student.safetensors: give a "
                    "run's folder (weights alone become one with train.py --student-weights; pickles are never run)"
                )
        # Wrong values are named before anything is read.
        _ = (self.test_views, self.training_views, self.settings, self.fine_tuning)

    @property
    def folders(self) -> dict[Path, tuple[str, ...]]:
        """Student's folder to the splits that it is tested on."""
        splits: dict[Path, tuple[str, ...]] = {}
        for path in self.students:
            for split in self.split:
                folder = folder_for(path, split)
                splits[folder] = (*splits.get(folder, ()), split)
        return splits

    @property
    def test_views(self) -> TestViews:
        """Of every test video."""
        return TestViews.parse(self.views)

    @property
    def training_views(self) -> TestViews:
        """Of every training video."""
        return (
            self.test_views if self.train_views is None else TestViews.parse(self.train_views, option="--train-views")
        )

    @property
    def settings(self) -> Settings:
        """Of the protocols."""
        return Settings(
            ks=self.k,
            shots=tuple(Shots.parse(text) for text in self.shots),
            num_low_shot_draws=self.draws,
            num_bootstrap_draws=self.bootstrap,
            seed=self.seed,
        )

    @property
    def fine_tuning(self) -> FineTuning:
        """How the student itself learns the labels."""
        return FineTuning(
            epochs=self.finetune_epochs,
            lr=self.finetune_lr,
            batch_size=self.finetune_batch_size,
            workers=self.workers,
            mixed_precision=self.mixed_precision,
            decoder=self.decoder,
            short_clips=self.short_clips,
            seed=self.seed,
        )


def folder_for(path: Path, split: str) -> Path:
    """The student of a split: {split} in a folder's name stands for the split's."""
    return Path(str(path).replace(SPLIT_MARK, split))


def parse(arguments: Sequence[str]) -> Options:
    """The command line as options; ``--help`` explains them."""
    options = parse_options(Options, arguments, prog="crossdistill evaluate", description=DESCRIPTION)
    options.check()
    return options
