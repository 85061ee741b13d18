"""Evaluate one encoder on one split: embed both parts once, then apply protocols to the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator

from crossdistill.data.dataset import Entry, check_entries
from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.hardware import free_memory_bytes
from crossdistill.errors import UserError
from crossdistill.evaluation.clips import check_dataset, check_names, entries_of_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit, EmbeddedTokens
from crossdistill.evaluation.embedder import ExportedNetwork, TokenEmbedder
from crossdistill.evaluation.evaluations import evaluation_of_split
from crossdistill.evaluation.feature_store import exported_features, kept_features
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.perturbations import Perturbation
from crossdistill.evaluation.protocols import PROTOCOLS, TOKEN_PROTOCOLS, apply_protocols
from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.settings import ProbeSettings, ProtocolSettings, ReadSettings
from crossdistill.evaluation.views import TestViews
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import bytes_text

Result = TypeVar("Result")
TOKEN_BYTES = 2
"""Bytes of a feature of a token, in memory and on the disk."""
COPIES_OF_TOKENS = 3
"""Copies of the tokens of one part that embedding or reading them holds at its peak."""


class EvaluatedNetwork(Protocol):
    """A network that is evaluated: an encoder in PyTorch, or an exported file in its runtime."""

    @property
    def name(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def view(self) -> ViewSpec:
        """What the network sees."""
        ...

    @property
    def description(self) -> str | None:
        """Start of the text of the progress bars; None for no bars."""
        ...

    def features(
        self,
        entries: Sequence[Entry],
        *,
        dataset: str,
        accelerator: Accelerator,
        settings: ReadSettings,
        description: str | None,
    ) -> Features:
        """Embed videos of a dataset; the result is complete on the first process only."""
        ...


@dataclass(frozen=True)
class EvaluatedEncoder:
    """An encoder with everything that embedding a split needs."""

    encoder: Encoder
    execution: Execution
    features_folder: Path | None = None
    """Folder of the feature store; None to store no features."""
    description: str | None = None
    """Start of the text of the progress bars; None for no bars."""

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.encoder.name

    @property
    def view(self) -> ViewSpec:
        """What the encoder sees."""
        return self.encoder.view

    def features(self, entries: Sequence[Entry], **options: Any) -> Features:
        """Embed videos of a dataset; see ``EvaluatedNetwork``."""
        return kept_features(self.encoder, entries, folder=self.features_folder, execution=self.execution, **options)

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

    def check_tokens(self, probe: ProbeSettings) -> None:
        """Raise a ``UserError`` if the encoder has no tokens, or none that the heads of a probe divide."""
        if self.encoder.info.token_layer is None:
            raise UserError(
                f"{self.encoder.name} has no features before pooling (tokens), and the protocol attentive pools them: "
                "remove attentive from --protocols, or name another student"
            )
        probe.heads_of(TokenEmbedder(self.encoder, self.execution).grid[0])

    def with_tokens(
        self, embedded: EmbeddedSplit, manifest: Manifest, split: str, settings: ReadSettings, accelerator: Accelerator
    ) -> EmbeddedSplit:
        """Add the tokens of the clips; ``embedded`` and the other arguments are those of ``embed``.

        Tokens are kept in the feature store as features are, in a file of their own.

        Raises:
            UserError: The tokens do not fit into memory, or a video could be read once and not again.
        """
        embedder = TokenEmbedder(self.encoder, self.execution)
        decide_on_first(accelerator, lambda: self._announce_tokens(embedder, embedded))

        def part(name: str, views: TestViews) -> Features:
            return kept_features(
                self.encoder,
                entries_of_part(manifest, split, name, settings.max_clips),
                folder=self.features_folder,
                dataset=manifest.dataset,
                execution=self.execution,
                accelerator=accelerator,
                settings=replace(settings, views=views),
                tokens=embedder,
                description=None if self.description is None else f"{self.description}, tokens of {name} clips",
            )

        train, test = part("train", settings.train_views), part("test", settings.views)
        tokens = EmbeddedTokens(train, test, embedder.grid[0], self.execution.device)

        def check() -> None:
            if (train.videos, test.videos) != (embedded.train.videos, embedded.test.videos):
                raise UserError(
                    "a video could be read for its features and not for its tokens, or not again: try again"
                )

        decide_on_first(accelerator, check)
        return replace(embedded, tokens=tokens)

    def _announce_tokens(self, embedder: TokenEmbedder, embedded: EmbeddedSplit) -> None:
        """Say how large the tokens are, or raise a ``UserError`` if they do not fit into memory."""
        sizes = [
            features.views_nvd.shape[:2].numel() * embedder.embed_dim * TOKEN_BYTES
            for features in (embedded.train, embedded.test)
        ]
        size, num_tokens = embedder.grid[0], embedder.embed_dim // embedder.grid[0]
        what = f"{num_tokens} tokens of {size} features a view are {bytes_text(sum(sizes))}"
        needed = sum(sizes) + (COPIES_OF_TOKENS - 1) * max(sizes)
        free = free_memory_bytes(torch.device("cpu"))
        if free is not None and needed > free:
            raise UserError(
                f"{what}, and embedding them needs {bytes_text(needed)} of memory, of which {bytes_text(free)} are "
                "free: lower --train-views or --views, or remove attentive from --protocols"
            )
        if self.description is not None:
            kept = "" if self.features_folder is None else f", and as much on the disk in {self.features_folder}"
            console.print(f"{self.description}: {what} in memory{kept}", soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class EvaluatedFile:
    """An exported file with everything that embedding a split needs."""

    exported: ExportedNetwork
    features_folder: Path | None = None
    description: str | None = None

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.exported.name

    @property
    def view(self) -> ViewSpec:
        """What the network sees."""
        return self.exported.view

    def features(self, entries: Sequence[Entry], **options: Any) -> Features:
        """Embed videos of a dataset; see ``EvaluatedNetwork``."""
        return exported_features(self.exported, entries, folder=self.features_folder, **options)


def embed_split(
    network: EvaluatedNetwork, manifest: Manifest, split: str, settings: ReadSettings, accelerator: Accelerator
) -> EmbeddedSplit:
    """Embed both parts of a split; the result is complete on the first process only."""
    entries = {name: entries_of_part(manifest, split, name, settings.max_clips) for name in ("train", "test")}
    # Both parts are checked before the first is embedded, which may take hours.
    check_entries([*entries["train"], *entries["test"]], [network.view], short_clips=settings.short_clips)

    def part(name: str, views: TestViews) -> Features:
        return network.features(
            entries[name],
            dataset=manifest.dataset,
            accelerator=accelerator,
            settings=replace(settings, views=views),
            description=None if network.description is None else f"{network.description}, {name} clips",
        )

    train, test = part("train", settings.train_views), part("test", settings.views)
    return EmbeddedSplit(train, test, len(manifest.classes), description=network.description)


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
    reading = reading or ReadSettings()
    uses_tokens = not set(protocols).isdisjoint(TOKEN_PROTOCOLS)
    if uses_tokens:
        student.check_tokens(settings.probe)
    embedded = embed_split(student, manifest, split, reading, accelerator)
    if uses_tokens:
        embedded = student.with_tokens(embedded, manifest, split, reading, accelerator)

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
