"""Embed training clips before training, to fit maps of the teachers' features. Shapes: N clips, E teacher features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.teachers import Teacher
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import BatchEmbedder, EmbeddedBatches, batches_of
from crossdistill.types import PairedBatch
from crossdistill.utils.distributed import gather_objects

# Enough for the covariance of a few hundred features; more features than clips leave directions without variance.
MAX_CLIPS = 4096


@dataclass(frozen=True)
class TeacherEmbedder:
    """Adapts a teacher to ``EmbeddedBatches``."""

    teacher: Teacher
    device: torch.device

    @property
    def embed_dim(self) -> int:
        """Number of features, E."""
        return self.teacher.encoder.embed_dim

    def embed_batch(self, batch: PairedBatch) -> Tensor:
        """Return the teacher's features [B, E] on the CPU."""
        return self.teacher.embed(batch.to(self.device))["features"].cpu()


def spread_positions(num_clips: int) -> list[int]:
    """Return at most ``MAX_CLIPS`` positions that are spread evenly over the clips."""
    num_drawn = min(num_clips, MAX_CLIPS)
    return [i * num_clips // num_drawn for i in range(num_drawn)]


def embed_training_clips(
    embedders: Sequence[BatchEmbedder],
    dataset: PairedClips,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    option: str,
    description: str,
) -> tuple[Tensor, list[Tensor]]:
    """Embed at most ``MAX_CLIPS`` training clips, spread evenly, as they look in the first epoch.

    Args:
        embedders: What embeds the teachers' views.
        dataset: The training clips.
        accelerator: Its processes share the clips.
        batch_size: Number of clips per forward pass.
        num_workers: Number of decoding processes.
        option: Option that needs the features, for the error.
        description: Text of the bar.

    Returns:
        Positions [N] of the clips that could be read, and the features [N, E] of each embedder; on every process.
    """
    positions = spread_positions(len(dataset))
    mine = [SampleKey(i, epoch=0) for i in positions[accelerator.process_index :: accelerator.num_processes]]
    found: list[list[Tensor]] = [[] for _ in range(1 + len(embedders))]
    embedded = EmbeddedBatches(
        dataset.of_teachers(),
        batches_of(mine, batch_size),
        embedders,
        num_workers=num_workers,
        description=description if accelerator.is_main_process else None,
    )
    for batch, features in embedded:
        if len(batch):
            for rows, own in zip(found, [batch.sample_ids, *features], strict=True):
                rows.append(own)
    of_all = [gather_objects(accelerator, rows) for rows in found]
    if not all(of_all):
        raise UserError(
            f"none of the {len(positions)} clips that {option} needs could be read: check them with "
            "python -m data_prep verify"
        )
    sample_ids, *features = (torch.cat(rows) for rows in of_all)
    return sample_ids, features
