"""``crossdistill evaluate``: the command line of ``crossdistill.evaluation.evaluate_students``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from crossdistill.evaluation.defaults import NUM_BOOTSTRAP_DRAWS
from crossdistill.export.limits import RuntimeName
from crossdistill.recipes.config import Decoder, Precision, ShortClips
from crossdistill.training.trackers import TrackerName
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.files import require_writable, write_text_atomically

if TYPE_CHECKING:  # --help need not import torch
    from crossdistill.evaluation.evaluate_students import StudentEvaluation
    from crossdistill.evaluation.results import Evaluation

DESCRIPTION = """Evaluate trained students on the splits of a prepared, labelled dataset.

Every number comes with a 95 % confidence interval (bootstrap over test videos, or over groups where the dataset has
them: performers, source films) and the share of the test videos that could be read. Features are computed once and
kept beside the student, so that a second protocol takes seconds. For example:

crossdistill evaluate runs/mine --data data/ucf101 --protocols knn linear retrieval

crossdistill evaluate "runs/mine-{split}" --data data/ucf101 --split 1 2 3 --views 10x3

crossdistill evaluate runs/rgb runs/flow --data data/ucf101 --protocols fusion agreement

Several students also get their gain over the first, with the interval of a paired bootstrap."""


@dataclass(frozen=True)
class Options:
    """Evaluate trained students on the splits of a prepared, labelled dataset."""

    students: tyro.conf.Positional[tuple[Path, ...]]
    """Folder of a run, folder with student.safetensors, repository of the Hugging Face hub, or file of crossdistill
    export (.onnx, .xml, .pt2, .pt); several for fusion and agreement. {split} in a name stands for the split:
    runs/flow-{split} with --split 1 2 3 are three students, each tested on its own split."""
    data: Path
    """Prepared dataset (see python -m data_prep)."""
    split: tuple[str, ...] = ("1",)
    """Official split; several splits give the numbers of each and their mean. 1@s3 and 1@25% test a part of split 1's
    training videos, without which a student was trained with the same --split."""
    protocols: tuple[str, ...] = ("knn", "linear")
    """knn: nearest neighbours by cosine similarity; linear: a linear layer on frozen features, trained by the paper's
    SGD; linear-sweep: linear with the learning rate and weight decay that are best on a held-out part of train;
    attentive: attention with one learned query over frozen tokens, the best of a grid as for linear-sweep (V-JEPA);
    cluster: k-means, one class per cluster; retrieval: whether one of the 1, 5, 10, 20, 50 nearest videos has the
    class; lowshot: linear with few labels; finetune: the whole student learns the labels; calibration: expected
    calibration error of a linear layer, before and after a temperature; robustness: accuracy on perturbed test clips;
    order: classes that are each other's time reversal, shuffled and reversed frames; multi-label: mean average
    precision where a video has several classes; for several students, fusion: averaged probabilities and summed
    similarities, missing-modality: the fusion without each modality, agreement: shared neighbours and CKA."""
    views: str = "1x1"
    """Clips x crops of every test video: 10x3 are ten clips from start to end and three crops along the longer side.
    Features are averaged for knn, cluster and retrieval, class probabilities for linear layers."""
    train_views: str | None = None
    """Clips x crops of every training video; the value of --views by default."""
    k: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours for knn."""
    shots: tuple[str, ...] = ("1%", "10%", "5")
    """For lowshot: labelled share of each class's training clips, or their number."""
    draws: int = 5
    """For lowshot: how often the labelled clips are drawn."""
    families: tuple[str, ...] = ()
    """For robustness: families of perturbations, such as gaussian-noise h264 freeze; all that make sense for the
    student's view by default."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """For robustness: severities, from 1 to 5."""
    class_pairs: tuple[str, ...] = ()
    """For order: classes that are each other's time reversal, such as Open:Close, or one file with a pair on each line;
    found by words of their names (left and right, open and close) by default."""
    label_sets: Path | None = None
    """For multi-label: the classes of every video, JSON {"video": ["class", ...]} or CSV with lines video,class."""
    classifier: Literal["probe", "own"] = "probe"
    """For robustness and order: a linear layer that is trained on clean training clips, or the layer that a student
    with labels was trained with."""
    probe_depth: int = 1
    """For attentive: number of attention layers. The last is cross-attention of one learned query, those before it are
    self-attention of the tokens. V-JEPA has 1, V-JEPA 2 has 4, which costs far more."""
    probe_heads: int | None = None
    """For attentive: heads of each layer, a divisor of a token's features; one for each 64 features if absent. V-JEPA
    2 has 16."""
    probe_lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
    """For attentive: peak learning rates of AdamW that are tried, each with each weight decay, side by side on the same
    batches."""
    probe_weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    """For attentive: weight decays that are tried."""
    probe_epochs: int = 20
    """For attentive: number of passes over the tokens of the training clips."""
    probe_positions: bool = False
    """For attentive: learn a vector for each place and time and add it to the token there. Tokens of transformers say
    where they are, those of convolutions do not."""
    bootstrap: int = NUM_BOOTSTRAP_DRAWS
    """Number of test sets that are drawn for the intervals; 0 for no intervals."""
    seed: int = 0
    """Seed of the order of clips, held-out parts, draws and the bootstrap."""
    features: Path | None = None
    """Folder in which features are kept; the folder features beside the student by default."""
    json: Path | None = None
    """File to which the results are written as well (docs/reference/results_schema.md)."""
    csv: Path | None = None
    """Folder to which confusion matrices, tables of classes and robustness are written as CSV files."""
    finetune_config: str | None = None
    """For finetune: a configuration file of crossdistill train, or its name. finetune (transformers) and finetune_conv
    (convolutional networks) have layer-wise decay, mixup, label smoothing, averaged weights and more; AdamW with a
    cosine and one epoch of warm-up alone if absent."""
    finetune_epochs: int | None = None
    """For finetune: number of passes over the training clips; that of --finetune-config, or 30, if absent."""
    finetune_lr: float | None = None
    """For finetune: peak learning rate of AdamW; that of --finetune-config, or 0.001, if absent."""
    finetune_batch_size: int | None = None
    """For finetune: clips per batch of one process; that of --finetune-config, or 16, if absent."""
    workers: int = 2
    """Number of processes that decode."""
    decoder: Decoder = "pyav"
    """Library that reads the videos; pyav reads the files that the others cannot read exactly."""
    short_clips: ShortClips = "repeat"
    """Videos shorter than a clip: repeat their end frames, loop (start them again), or error (refuse to start)."""
    precision: Precision = "auto"
    """Precision of the student, as in training."""
    runtime: RuntimeName | None = None
    """Runtime of exported files. onnxruntime: .onnx (its default); openvino: .onnx and .xml; pytorch: .pt2 and .pt;
    auto: the fastest that is installed, after a comparison of all on noise."""
    tracker: TrackerName = "tensorboard"
    """Tracker that gets the numbers of a run's student, beside the run's curves."""
    allow_code: bool = False
    """Run the Python file that the folder of a student names (path/to/file.py:function)."""

    def request(self) -> StudentEvaluation:
        """Convert the options to a ``StudentEvaluation``.

        Raises:
            UserError: A value is not allowed.
        """
        from crossdistill.evaluation.evaluate_students import StudentEvaluation
        from crossdistill.evaluation.settings import FineTuning, ProbeSettings, ProtocolSettings, ReadSettings, Shots
        from crossdistill.evaluation.views import TestViews

        inside = (None if folder is None else folder / "file" for folder in (self.features, self.csv))
        for path in (self.json, *inside):
            if path is not None:
                require_writable(path)
        views = TestViews.parse(self.views)
        train_views = views if self.train_views is None else TestViews.parse(self.train_views, option="--train-views")
        return StudentEvaluation(
            students=self.students,
            data=self.data,
            split=self.split,
            protocols=self.protocols,
            reading=ReadSettings(
                views=views,
                train_views=train_views,
                num_workers=self.workers,
                decoder=self.decoder,
                short_clips=self.short_clips,
            ),
            settings=ProtocolSettings(
                ks=self.k,
                shots=tuple(Shots.parse(text) for text in self.shots),
                num_low_shot_draws=self.draws,
                num_bootstrap_draws=self.bootstrap,
                probe=ProbeSettings(
                    depth=self.probe_depth,
                    num_heads=self.probe_heads,
                    lrs=self.probe_lrs,
                    weight_decays=self.probe_weight_decays,
                    num_epochs=self.probe_epochs,
                    has_positions=self.probe_positions,
                ),
                seed=self.seed,
                families=self.families,
                severities=self.severities,
                class_pairs=self.class_pairs,
                label_sets=self.label_sets,
                classifier=self.classifier,
            ),
            fine_tuning=FineTuning(
                **self._finetune_options(),
                workers=self.workers,
                precision=self.precision,
                decoder=self.decoder,
                short_clips=self.short_clips,
                seed=self.seed,
            ),
            features=self.features,
            precision=self.precision,
            tracker=self.tracker,
            allow_code=self.allow_code,
        )

    def _finetune_options(self) -> dict[str, Any]:
        """Return the recipe and what holds of it: an option that was given, the recipe's value, or the default."""
        given = {"epochs": self.finetune_epochs, "lr": self.finetune_lr, "batch_size": self.finetune_batch_size}
        given = {name: value for name, value in given.items() if value is not None}
        if self.finetune_config is None:
            return given
        from crossdistill.recipes.finetune import read_recipe

        recipe, config = read_recipe(self.finetune_config)
        named = {name: getattr(config.optimization, name) for name in recipe.get("optimization", {})}
        held = {name: value for name, value in named.items() if name in ("epochs", "lr", "batch_size")}
        return {**held, **given, "recipe": recipe}


def evaluate(options: Options) -> Evaluation:
    """Evaluate, write the JSON file and track the numbers; every process returns the same result."""
    from crossdistill.data.manifest import Manifest
    from crossdistill.evaluation.csv_tables import write_tables
    from crossdistill.evaluation.evaluate_students import evaluate_students, track_students
    from crossdistill.predict.exported import open_exported
    from crossdistill.recipes.finetune import fine_tune
    from crossdistill.utils.distributed import create_accelerator

    request, accelerator = options.request(), create_accelerator()
    opener = partial(open_exported, runtime=options.runtime)
    evaluation = evaluate_students(request, fine_tune=fine_tune, open_exported=opener, accelerator=accelerator)
    if accelerator.is_main_process:
        if options.json is not None:
            write_text_atomically(options.json, json.dumps(evaluation.to_json(), indent=2) + "\n")
        if options.csv is not None:
            write_tables(evaluation, options.csv, Manifest.load(options.data).classes)
        track_students(request, evaluation)
    return evaluation


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    evaluation = evaluate(parse_options(Options, arguments, prog=prog, description=DESCRIPTION))
    from crossdistill.evaluation.tables import print_evaluation
    from crossdistill.utils.distributed import create_accelerator

    if create_accelerator().is_main_process:
        print_evaluation(evaluation)
