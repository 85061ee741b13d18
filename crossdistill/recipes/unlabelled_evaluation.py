"""The evaluation at the end of a run without labels: embed a sample of clips, and compare the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.clips import entries_without_labels
from crossdistill.evaluation.evaluate import on_first
from crossdistill.evaluation.feature_store import kept_features
from crossdistill.evaluation.features import assemble, no_features
from crossdistill.evaluation.unlabelled import MAX_COMPARED_CLIPS, UnlabelledEvaluation, evaluate_unlabelled
from crossdistill.recipes.context import RunContext


@dataclass(frozen=True)
class StoredEmbeddings:
    """The embeddings of a teacher whose network is not at hand, as of a teacher cache."""

    encoder: str
    """Name of the encoder."""
    embed_dim: int
    rows: Mapping[str, Tensor]
    """``Entry.key`` to the embedding [E]."""


def compare_networks(
    run: RunContext,
    manifest: Manifest,
    networks: Mapping[str, tuple[Encoder, Execution]],
    stored: Mapping[str, StoredEmbeddings],
) -> UnlabelledEvaluation:
    """Compare the networks of a run on clips of a dataset that needs no labels.

    Args:
        run: The run.
        manifest: The dataset.
        networks: Role to the network and how it runs.
        stored: Role to the embeddings of a teacher without a network.
    """
    entries, is_test = entries_without_labels(manifest, run.config.data.split, MAX_COMPARED_CLIPS)
    embedded = {
        role: assemble(
            {i: one.rows[entry.key][None] for i, entry in enumerate(entries) if entry.key in one.rows},
            entries,
            {},
            no_features(one.embed_dim),
        )
        for role, one in stored.items()
    }
    for role, (network, execution) in networks.items():
        embedded[role] = kept_features(
            network,
            entries,
            folder=run.folder.features,
            dataset=manifest.dataset,
            execution=execution,
            accelerator=run.accelerator,
            settings=run.reading,
            description=role,
        )
    encoders = {role: one.encoder for role, one in stored.items()}
    encoders |= {role: network.name for role, (network, _) in networks.items()}
    return on_first(run.accelerator, lambda: evaluate_unlabelled(embedded, encoders, manifest, is_test=is_test))
