"""Evaluate one encoder on one split: embed both parts once, then apply protocols to the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from crossdistill.data.dataset import check_entries
from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.clips import check_dataset, check_names, entries_of_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluations import evaluation_of_split
from crossdistill.evaluation.feature_store import kept_features
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.perturbations import Perturbation
from crossdistill.evaluation.protocols import PROTOCOLS, apply_protocols
from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.settings import ProtocolSettings, ReadSettings
from crossdistill.evaluation.views import TestViews
from crossdistill.utils.distributed import decide_on_first

Result = TypeVar("Result")


@dataclass(frozen=True)
class EvaluatedEncoder:
    """An encoder with everything that embedding a split needs."""

    encoder: Encoder
    execution: Execution
    features_folder: Path | None = None
    """Folder of the feature store; None to store no features."""
    description: str | None = None
    """Start of the text of the progress bars; None for no bars."""

    def embed(self, manifest: Manifest, split: str, settings: ReadSettings, accelerator: Accelerator) -> EmbeddedSplit:
        """Embed both parts of a split; the result is complete on the first process only."""
        entries = {name: entries_of_part(manifest, split, name, settings.max_clips) for name in ("train", "test")}
        # Both parts are checked before the first is embedded, which may take hours.
        check_entries([*entries["train"], *entries["test"]], [self.encoder.view], short_clips=settings.short_clips)

        def part(name: str, views: TestViews) -> Features:
            return kept_features(
                self.encoder,
                entries[name],
                folder=self.features_folder,
                dataset=manifest.dataset,
                execution=self.execution,
                accelerator=accelerator,
                settings=replace(settings, views=views),
                description=None if self.description is None else f"{self.description}, {name} clips",
            )

        train, test = part("train", settings.train_views), part("test", settings.views)
        return EmbeddedSplit(train, test, len(manifest.classes), description=self.description)

    def embed_perturbed(
        self,
        manifest: Manifest,
        split: str,
        settings: ReadSettings,
        accelerator: Accelerator,
        perturbations: Sequence[Perturbation],
    ) -> dict[Perturbation, Features]:
        """Embed the test part once for each perturbation; the features are complete on the first process only.

        Each is stored when it is finished, so that a second evaluation goes on after the last one.
        """
        entries, found = entries_of_part(manifest, split, "test", settings.max_clips), {}
        for number, perturbation in enumerate(perturbations, start=1):
            which = f"{perturbation} ({number} of {len(perturbations)})"
            found[perturbation] = kept_features(
                self.encoder,
                entries,
                folder=self.features_folder,
                dataset=manifest.dataset,
                execution=self.execution,
                accelerator=accelerator,
                settings=replace(settings, perturbation=replace(perturbation, dataset=manifest.dataset)),
                description=None if self.description is None else f"{self.description}, {which}",
            )
        return found


def evaluate_encoder(
    encoder: Encoder,
    manifest: Manifest,
    *,
    split: str,
    execution: Execution,
    accelerator: Accelerator,
    protocols: Sequence[str] = ("knn", "linear"),
    ks: Sequence[int] = (1, 5, 20),
    reading: ReadSettings | None = None,
    description: str | None = None,
    features_folder: Path | None = None,
) -> Evaluation:
    """Embed every video of both parts of a split once and apply protocols to the features.

    The encoder runs in eval mode; its training flag is restored. Every process returns the same result.

    Args:
        encoder: The encoder.
        manifest: A labelled dataset with the encoder's stream.
        split: Name of the split: its ``train`` part is trained on, its ``test`` part is tested on.
        execution: How the encoder runs.
        accelerator: The processes that share the work.
        protocols: Names in ``PROTOCOLS``.
        ks: Numbers of neighbours for k-NN.
        reading: How the videos are read.
        description: Start of the text of the progress bars; None for no bars.
        features_folder: Folder in which features are kept for the next evaluation; None to keep nothing.

    Raises:
        UserError: An unknown protocol or split, no labels, not the encoder's stream, or an empty part.
    """
    check_names("protocol", protocols, PROTOCOLS)
    check_dataset(manifest, encoder.view, split, wanted_by=encoder.name)
    settings = ProtocolSettings(ks=tuple(ks))
    student = EvaluatedEncoder(encoder, execution, features_folder=features_folder, description=description)
    embedded = student.embed(manifest, split, reading or ReadSettings(), accelerator)

    def evaluate() -> Evaluation:
        results = apply_protocols(embedded, protocols, settings)
        return evaluation_of_split(encoder.name, manifest, split, embedded, results, settings)

    return on_first(accelerator, evaluate)


def on_first(accelerator: Accelerator, compute: Callable[[], Result]) -> Result:
    """Compute on the first process, with the CPU threads of all processes, and give every process the result.

    With the same number of threads, one process and several give the same numbers to the last digit: matrix products
    may depend on the number of threads.
    """

    def with_all_threads() -> Result:
        before = torch.get_num_threads()
        if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
            torch.set_num_threads(before * accelerator.num_processes)
        try:
            return compute()
        finally:
            torch.set_num_threads(before)

    return decide_on_first(accelerator, with_all_threads)
