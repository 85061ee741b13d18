"""Embed a dataset with a network of a run, and evaluate it by the protocols that need only features.

Features come from the store that ``crossdistill evaluate`` fills too, so most of them exist already.
"""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from crossdistill.data.dataset import check_entries
from crossdistill.data.manifest import Manifest
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.clips import check_dataset, entries_without_labels
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluate import EvaluatedEncoder, embed_split
from crossdistill.evaluation.evaluations import evaluation_of_split
from crossdistill.evaluation.feature_store import kept_features
from crossdistill.evaluation.protocols import apply_protocols
from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.settings import ProtocolSettings, ReadSettings
from crossdistill.recipes.config import RunConfig
from crossdistill.report.networks import Network
from crossdistill.report.options import ReportOptions
from crossdistill.report.record import UnavailableError
from crossdistill.utils.distributed import create_accelerator

PROTOCOLS = ("knn", "linear", "retrieval")


@dataclass(frozen=True)
class Embedding:
    """Features of both parts of a split by one network; without labels, both parts are the same clips."""

    network: Network
    split: EmbeddedSplit
    evaluation: Evaluation
    """Results with the outcome of every clip; none without labels."""
    is_complete: bool
    """Whether all clips were embedded, so that the results hold for the whole dataset."""

    @property
    def role(self) -> str:
        """Role of the network."""
        return self.network.role


def embed(
    network: Network, manifest: Manifest, config: RunConfig | None, options: ReportOptions, *, description: str
) -> Embedding:
    """Embed and evaluate both parts of the split of the run that trained the network with ``config``.

    Raises:
        UnavailableError: The dataset lacks labels, the split or the network's stream, or a clip is too short.
    """
    split = "1" if config is None else config.data.split
    accelerator = create_accelerator()
    execution, reading = _execution(network, config, accelerator), _reading(config, options)
    evaluated = EvaluatedEncoder(
        network.encoder, execution, features_folder=network.features_folder, description=description
    )
    settings = ProtocolSettings()
    try:
        check_dataset(manifest, network.encoder.view, split, wanted_by=f"the {network.role}")
        embedded = embed_split(evaluated, manifest, split, reading, accelerator)
        results = apply_protocols(embedded, PROTOCOLS, settings)
    except UserError as error:
        raise UnavailableError(f"{error}.") from error
    evaluation = evaluation_of_split(network.encoder.name, manifest, split, embedded, results, settings)
    largest = max(len(manifest.positions(split=split, part=part)) for part in ("train", "test"))
    return Embedding(network, embedded, evaluation, is_complete=largest <= options.clips)


def embed_without_labels(
    network: Network, manifest: Manifest, config: RunConfig | None, options: ReportOptions, *, description: str
) -> Embedding:
    """Embed the clips that the final evaluation of a run without labels takes.

    Raises:
        UnavailableError: The dataset lacks the network's stream, a clip is too short, or no clip can be read.
    """
    split = "1" if config is None else config.data.split
    entries, _ = entries_without_labels(manifest, split, options.clips)
    num_usable = len(entries_without_labels(manifest, split, len(manifest.videos))[0])
    accelerator, reading = create_accelerator(), _reading(config, options)
    try:
        manifest.require_stream(network.encoder.view.kind.stream, wanted_by=f"the {network.role}")
        check_entries(entries, [network.encoder.view], short_clips=reading.short_clips)
        features = kept_features(
            network.encoder,
            entries,
            folder=network.features_folder,
            dataset=manifest.dataset,
            execution=_execution(network, config, accelerator),
            accelerator=accelerator,
            settings=reading,
            description=description,
        )
    except UserError as error:
        raise UnavailableError(f"{error}.") from error
    if not features.num_clips:
        raise UnavailableError(f"no clip of {manifest.root} can be read.")
    evaluation = Evaluation(
        encoder=network.encoder.name,
        dataset=manifest.dataset,
        split="",
        num_train=0,
        num_test=features.num_clips,
        unreadable=features.unreadable,
        results={},
    )
    embedded = EmbeddedSplit(features, features, len(manifest.classes))
    return Embedding(network, embedded, evaluation, is_complete=num_usable <= options.clips)


def _execution(network: Network, config: RunConfig | None, accelerator: Accelerator) -> Execution:
    precision = "auto" if config is None else config.machine.precision
    return Execution.choose(network.encoder, device=accelerator.device, precision=precision)


def _reading(config: RunConfig | None, options: ReportOptions) -> ReadSettings:
    short_clips = "repeat" if config is None else config.data.short_clips
    return ReadSettings(max_clips=options.clips, num_workers=options.workers, short_clips=short_clips)
