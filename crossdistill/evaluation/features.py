"""Extract the features of videos. Shapes: N videos, V views of a video, D features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import Entry
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.defaults import CLIPS_AT_ONCE
from crossdistill.evaluation.embedder import BatchEmbedder, EmbeddedBatches, Embedder, batches_of
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.evaluation.views import MultiViewClips, TestViews
from crossdistill.types import ViewSpec
from crossdistill.utils.distributed import broadcast_buffers, gather_objects


@dataclass(frozen=True)
class Features:
    """Features of the videos that could be read, in the order of the dataset."""

    views_nvd: Tensor
    """[N, V, D] float32 on the CPU; V counts clips, and within a clip its crops."""
    labels: Tensor
    """[N] int64, -1 for a video without a label."""
    unreadable: dict[str, str]
    """Dataset/video to the reason; these videos have no row and are never replaced."""
    videos: tuple[str, ...]
    """[N] names."""
    groups: tuple[str | None, ...]
    """[N] groups, None for a video without a group."""
    views: TestViews = TestViews()  # noqa: RUF009 - frozen

    @property
    def features(self) -> Tensor:
        """[N, D] mean over the views of each video."""
        return self.views_nvd[:, 0] if self.views_nvd.shape[1] == 1 else self.views_nvd.mean(1)

    @property
    def num_clips(self) -> int:
        """Number of videos that were embedded."""
        return len(self.labels)

    @property
    def coverage(self) -> float:
        """Share of the videos that could be read, in [0, 1]."""
        return self.num_clips / max(1, self.num_clips + len(self.unreadable))

    def select(self, positions: Sequence[int]) -> Features:
        """Keep the videos at some positions; ``unreadable`` stays."""
        rows = torch.tensor(positions, dtype=torch.int64)
        return replace(
            self,
            views_nvd=self.views_nvd[rows],
            labels=self.labels[rows],
            videos=tuple(self.videos[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
        )


def no_features(embed_dim: int, views: TestViews | None = None) -> Features:
    """Give empty features of D = ``embed_dim``; None is the view of the middle."""
    views = views or TestViews()
    return Features(torch.empty(0, views.num_views, embed_dim), torch.empty(0).long(), {}, (), (), views)


def assemble(rows: dict[int, Tensor], entries: Sequence[Entry], unreadable: dict[str, str], like: Features) -> Features:
    """Build features from rows of some of the videos, in the order of the dataset.

    ``rows`` maps a position in ``entries`` to [V, D]; ``like`` has the shape and views of the result.
    """
    order = sorted(rows)
    chosen = [entries[i] for i in order]
    return Features(
        views_nvd=torch.stack([rows[i] for i in order]) if rows else like.views_nvd[:0],
        labels=torch.tensor([entry.label for entry in chosen], dtype=torch.int64),
        unreadable=unreadable,
        videos=tuple(entry.video.name for entry in chosen),
        groups=tuple(entry.video.group for entry in chosen),
        views=like.views,
    )


def extract_features(
    encoder: Encoder,
    entries: Sequence[Entry],
    *,
    execution: Execution,
    accelerator: Accelerator,
    settings: ReadSettings | None = None,
    embedder: BatchEmbedder | None = None,
    batch_size: int = CLIPS_AT_ONCE,
    description: str | None = None,
) -> Features:
    """Embed the views of every video; every process embeds its share and returns the features of all.

    The processes take whole batches in turn, so the videos of a batch do not depend on the number of processes: the
    features are equal to the bit, and every video counts once.

    Args:
        encoder: Runs in eval mode; its training flag is restored.
        entries: The videos.
        execution: How the encoder runs.
        accelerator: The processes that share the work.
        settings: How the videos are read; of the views, those of a test video.
        embedder: What embeds a batch, for example a ``TokenEmbedder`` of the encoder; None for its features.
        batch_size: Clips of a batch; a batch holds at least one video.
        description: Text of the progress bar; None for no bar.
    """
    broadcast_buffers(accelerator, encoder)
    return embed_videos(
        embedder or Embedder(encoder, execution),
        entries,
        view=encoder.view,
        accelerator=accelerator,
        settings=settings or ReadSettings(),
        batch_size=batch_size,
        description=description,
    )


def embed_videos(
    embedder: BatchEmbedder,
    entries: Sequence[Entry],
    *,
    view: ViewSpec,
    accelerator: Accelerator,
    settings: ReadSettings,
    batch_size: int = CLIPS_AT_ONCE,
    description: str | None = None,
) -> Features:
    """Embed the views of every video by any network that sees ``view``; see ``extract_features``."""
    views = settings.views
    dataset = MultiViewClips(
        entries,
        view=view,
        views=views,
        decoder=settings.decoder,
        short_clips=settings.short_clips,
        perturbation=settings.perturbation,
    )
    keys = [SampleKey(i, epoch=0) for i in range(len(entries))]
    batches = batches_of(keys, max(1, batch_size // views.num_views))
    walk = EmbeddedBatches(
        dataset,
        batches[accelerator.process_index :: accelerator.num_processes],
        [embedder],
        num_workers=settings.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        description=description if accelerator.is_main_process else None,
    )
    rows: list[tuple[int, Tensor]] = []
    for batch, (embedded,) in walk:
        ids = batch.sample_ids[:: views.num_views].tolist()
        rows += zip(ids, embedded.unflatten(0, (len(ids), views.num_views)), strict=True)
    # One stacked tensor of each process is pickled faster than its rows.
    own = (torch.tensor([i for i, _ in rows]), torch.stack([row for _, row in rows]) if rows else torch.empty(0))
    parts = gather_objects(accelerator, [own])
    found = {int(i): row for ids, stacked in parts for i, row in zip(ids, stacked, strict=True)}
    unreadable = dict(gather_objects(accelerator, list(walk.unreadable.items())))
    return assemble(found, entries, unreadable, no_features(embedder.embed_dim, views))
