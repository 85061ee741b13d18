"""Features of a part of a dataset, each video once, on one or several processes.

Shapes: N clips, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.console import progress_bar
from crossdistill.data.dataset import Entry, PairedClips, make_loader
from crossdistill.data.sampling import SampleKey
from crossdistill.distributed import gather_objects
from crossdistill.encoders import Encoder
from crossdistill.runner import Execution


@dataclass(frozen=True)
class Features:
    """Embeddings of the videos that could be read, in the order of the dataset."""

    features: Tensor
    """[N, D] float32 on the CPU."""
    labels: Tensor
    """[N] int64, -1 where a video has none."""
    unreadable: dict[str, str]
    """Video to reason: left out, never replaced."""

    @property
    def num_clips(self) -> int:
        """How many were embedded."""
        return len(self.labels)


def extract_features(
    encoder: Encoder,
    entries: Sequence[Entry],
    *,
    execution: Execution,
    accelerator: Accelerator,
    batch_size: int = 32,
    num_workers: int = 2,
    description: str | None = None,
) -> Features:
    """Embed the middle of every video.

    Args:
        encoder: Put into eval mode for the time being.
        entries: The videos; every process takes its share of them.
        execution: How the encoder runs.
        accelerator: Tells the processes apart.
        batch_size: Clips at a time.
        num_workers: Processes that decode.
        description: What the progress bar says; no bar if None.
    """
    dataset = PairedClips(entries, student_view=encoder.view)
    mine = range(accelerator.process_index, len(entries), accelerator.num_processes)
    keys = [SampleKey(i, epoch=0) for i in mine]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    loader = make_loader(dataset, batches, num_workers=num_workers, pin_memory=accelerator.device.type == "cuda")
    rows: list[tuple[int, int, Tensor]] = []
    unreadable: list[tuple[str, str]] = []
    was_training = encoder.training
    encoder.eval()
    is_shown = accelerator.is_main_process and description is not None
    with torch.inference_mode(), progress_bar(unit="batches", is_shown=is_shown) as bar:
        for batch in bar.track(loader, total=len(batches), description=description or ""):
            unreadable += batch.unreadable
            if len(batch) == 0:
                continue
            features = execution.embed(encoder, batch.student.to(execution.device)).cpu()
            rows += zip(batch.sample_ids.tolist(), batch.labels.tolist(), features, strict=True)
    encoder.train(was_training)
    rows = sorted(gather_objects(accelerator, rows), key=lambda row: row[0])
    return Features(
        features=torch.stack([row[2] for row in rows]) if rows else torch.empty(0, encoder.embed_dim),
        labels=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        unreadable=dict(gather_objects(accelerator, unreadable)),
    )
