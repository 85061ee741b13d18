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
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.sampling import SampleKey
from crossdistill.distributed import broadcast_buffers, gather_objects
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
    """Dataset/video to reason: left out, never replaced."""

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
    decoder: str = DEFAULT_DECODER,
    short_clips: str = "repeat",
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
        decoder: Which library reads the videos.
        short_clips: What becomes of videos that are shorter than the view: one of ``SHORT_CLIPS``.
        description: What the progress bar says; no bar if None.
    """
    dataset = PairedClips(entries, student_view=encoder.view, decoder=decoder, short_clips=short_clips)
    mine = range(accelerator.process_index, len(entries), accelerator.num_processes)
    keys = [SampleKey(i, epoch=0) for i in mine]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    loader = make_loader(dataset, batches, num_workers=num_workers, pin_memory=accelerator.device.type == "cuda")
    ids: list[int] = []
    labels: list[int] = []
    chunks: list[Tensor] = [torch.empty(0, encoder.embed_dim)]
    unreadable: list[tuple[str, str]] = []
    broadcast_buffers(accelerator, encoder)
    was_training = encoder.training
    encoder.eval()
    is_shown = accelerator.is_main_process and description is not None
    with torch.inference_mode(), progress_bar(unit="batches", is_shown=is_shown) as bar:
        for batch in bar.track(loader, total=len(batches), description=description or ""):
            unreadable += batch.unreadable
            if len(batch) == 0:
                continue
            chunks.append(execution.embed(encoder, batch.student.to(execution.device)).cpu())
            ids += batch.sample_ids.tolist()
            labels += batch.labels.tolist()
    encoder.train(was_training)
    parts = gather_objects(accelerator, [(ids, labels, torch.cat(chunks))])
    order = torch.tensor([i for part in parts for i in part[0]], dtype=torch.int64).argsort()
    return Features(
        features=torch.cat([part[2] for part in parts])[order],
        labels=torch.tensor([label for part in parts for label in part[1]], dtype=torch.int64)[order],
        unreadable=dict(gather_objects(accelerator, unreadable)),
    )
