"""Embed a dataset with a network of a run, and evaluate it by the protocols that need only features.

Features come from the store that ``crossdistill evaluate`` fills too, so most of them exist already.
"""

from __future__ import annotations

from dataclasses import dataclass

from crossdistill.data.manifest import Manifest
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.clips import check_dataset
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluate import EvaluatedEncoder
from crossdistill.evaluation.evaluations import evaluation_of_split
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
    """Features of both parts of a split by one network."""

    network: Network
    split: EmbeddedSplit
    evaluation: Evaluation
    """Results with the outcome of every clip."""
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
    precision = "auto" if config is None else config.machine.precision
    execution = Execution.choose(network.encoder, device=accelerator.device, precision=precision)
    evaluated = EvaluatedEncoder(
        network.encoder, execution, features_folder=network.features_folder, description=description
    )
    reading = ReadSettings(
        max_clips=options.clips,
        num_workers=options.workers,
        short_clips="repeat" if config is None else config.data.short_clips,
    )
    settings = ProtocolSettings()
    try:
        check_dataset(manifest, network.encoder.view, split, wanted_by=f"the {network.role}")
        embedded = evaluated.embed(manifest, split, reading, accelerator)
        results = apply_protocols(embedded, PROTOCOLS, settings)
    except UserError as error:
        raise UnavailableError(f"{error}.") from error
    evaluation = evaluation_of_split(network.encoder.name, manifest, split, embedded, results, settings)
    largest = max(len(manifest.select(split=split, part=part)) for part in ("train", "test"))
    return Embedding(network, embedded, evaluation, is_complete=largest <= options.clips)
