"""Features on disk: what an encoder has embedded once it never embeds again.

A store is a folder with one safetensors file for each (encoder and weights, view, number of views, precision). A file
holds a row for every video that was embedded, of whichever part or split, with a digest of the stream that it was read
from: so three splits of one dataset embed each video once, and a video that was prepared anew is embedded anew. The key
is in the file's name as a digest and in its header in full; a file whose key differs, or that is damaged, is not used.
Unreadable videos are not kept: they are tried again.

Shapes: N videos, V views of a video, D features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossdistill.data.dataset import Entry
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.weights import weights_hash
from crossdistill.evaluation.features import Features, assemble, extract_features, no_features
from crossdistill.evaluation.views import TestViews
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import sha256_of
from crossdistill.utils.tensor_files import write_tensors

FORMAT = "crossdistill-features"
FORMAT_VERSION = 2  # rises when the same weights come to compute something else
FOLDER_NAME = "features"
FEATURES = "features"
ADVICE = "free space there, or choose another folder with --features"


def feature_key(
    encoder: Encoder, *, execution: Execution, dataset: str, views: TestViews, short_clips: str
) -> dict[str, Any]:
    """What decides a video's features besides the video.

    Args:
        encoder: With its weights.
        execution: How it runs; both precisions give features of their own.
        dataset: Name of the dataset.
        views: Of every video.
        short_clips: What becomes of videos that are shorter than the view.
    """
    network = {
        "weights_sha256": weights_hash(encoder),
        "quantize": encoder.bits,
        "precision": "bf16" if execution.is_bf16 else "fp32",
    }
    if is_from_file(encoder.name):
        network["code_sha256"] = sha256_of(Path(encoder.name.rpartition(":")[0]))
    # Where none is too short, which is what "error" makes sure of, "repeat" does nothing.
    short_clips = "repeat" if short_clips == "error" else short_clips
    return _key(
        network,
        encoder=encoder.name,
        view=encoder.view,
        embed_dim=encoder.embed_dim,
        dataset=dataset,
        views=views,
        short_clips=short_clips,
    )


def exported_key(path: Path, *, encoder: str, view: ViewSpec, embed_dim: int, dataset: str) -> dict[str, Any]:
    """What decides the features that an exported file gives of the middles of videos, besides the video.

    Args:
        path: The file, whose content counts.
        encoder: Name of the encoder in it.
        view: What it sees.
        embed_dim: Numbers of an embedding.
        dataset: Name of the dataset.
    """
    return _key(
        {"file_sha256": sha256_of(path)},
        encoder=encoder,
        view=view,
        embed_dim=embed_dim,
        dataset=dataset,
        views=TestViews(),
        short_clips="repeat",
    )


def _key(
    network: dict[str, Any],
    *,
    encoder: str,
    view: ViewSpec,
    embed_dim: int,
    dataset: str,
    views: TestViews,
    short_clips: str,
) -> dict[str, Any]:
    """A key as it is read from a file: what the network is, and what it is shown."""
    key = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "encoder": encoder,
        **network,
        "view": dataclasses.asdict(view),
        "embed_dim": embed_dim,
        "dataset": dataset,
        "views": str(views),
        "short_clips": short_clips,
    }
    plain: dict[str, Any] = json.loads(json.dumps(key))
    return plain


def video_digest(entry: Entry, stream: str) -> str:
    """Tells two preparations of a video apart, and a file that is there from one that is lost or cut short.

    Returns:
        Empty where there is nothing to read: nothing kept stands in for that.
    """
    if stream not in entry.video.streams:
        return ""
    kept = entry.video.streams[stream]
    try:
        num_bytes = (entry.root / kept.path).stat().st_size
    except OSError:
        return ""
    facts = [kept.path, kept.sha256, num_bytes, kept.width_px, kept.height_px, str(kept.time_base)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(kept.pts.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class FeatureStore:
    """The features of one key in a folder."""

    folder: Path
    key: dict[str, Any]

    @property
    def path(self) -> Path:
        """File of this key."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "-", self.key["encoder"]).strip("-.")
        return self.folder / f"{name}-{self.key['views']}-{digest}.safetensors"

    @property
    def nothing(self) -> Features:
        """The features of no video, in the shape of this key."""
        return no_features(self.key["embed_dim"], TestViews.parse(self.key["views"]))

    def read(self) -> dict[str, tuple[str, Tensor]]:
        """Video to its digest and [V, D]; empty where there is no file, or one that cannot be used, which is said."""
        if not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                key, videos = json.loads(header["key"]), json.loads(header["videos"])
                if key != self.key:
                    raise ValueError("it is of another key")
                rows = file.get_tensor(FEATURES)
            return {name: (digest, row) for (name, digest), row in zip(videos, rows, strict=True)}
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            console.print(
                f"features are computed again: {self.path} cannot be used ({error})", soft_wrap=True, highlight=False
            )
            return {}

    def write(self, rows: dict[str, tuple[str, Tensor]]) -> None:
        """Write all rows, whole or not at all.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        header = {
            "key": json.dumps(self.key),
            "videos": json.dumps([[name, digest] for name, (digest, _) in rows.items()]),
        }
        stacked = torch.stack([row for _, row in rows.values()])
        write_tensors(self.path, {FEATURES: stacked}, metadata=header, advice=ADVICE)


def kept_features(
    encoder: Encoder,
    entries: Sequence[Entry],
    *,
    folder: Path | None,
    dataset: str,
    execution: Execution,
    accelerator: Accelerator,
    views: TestViews | None = None,
    num_workers: int = 2,
    decoder: str = DEFAULT_DECODER,
    short_clips: str = "repeat",
    description: str | None = None,
) -> Features:
    """Give the features of videos, embedding only those that the store has not.

    The arguments are those of ``extract_features``, and:

    Args:
        encoder: With its weights.
        entries: The videos.
        folder: Of the store, read and written by the first process alone; None to keep nothing.
        dataset: Name of the dataset.
        execution: How the encoder runs.
        accelerator: Tells the processes apart.
        views: Of every video; its middle if None.
        num_workers: Processes that decode.
        decoder: Which library reads the videos.
        short_clips: What becomes of videos that are shorter than the view.
        description: What the progress bar says; no bar if None.

    Returns:
        Complete on the first process; with a store, elsewhere what was embedded now.
    """
    views = views or TestViews()

    def extract(chosen: Sequence[Entry]) -> Features:
        return extract_features(
            encoder,
            chosen,
            execution=execution,
            accelerator=accelerator,
            views=views,
            num_workers=num_workers,
            decoder=decoder,
            short_clips=short_clips,
            description=description,
        )

    if folder is None:
        return extract(entries)
    key = feature_key(encoder, execution=execution, dataset=dataset, views=views, short_clips=short_clips)
    store = FeatureStore(folder, key)
    return complete(store, entries, extract, accelerator=accelerator, view=encoder.view, description=description)


def complete(
    store: FeatureStore,
    entries: Sequence[Entry],
    extract: Callable[[Sequence[Entry]], Features],
    *,
    accelerator: Accelerator,
    view: ViewSpec,
    description: str | None,
) -> Features:
    """Give the features of videos: those that a store has, and the others from ``extract``, which are then kept.

    Args:
        store: Read and written by the first process alone.
        entries: The videos.
        extract: Embeds some of them; called by every process, and not at all where the store has all.
        accelerator: Tells the processes apart.
        view: What is embedded of a video.
        description: Starts the line that says where all features were read from; no line if None.

    Returns:
        Complete on the first process; elsewhere what was embedded now.
    """
    kept = store.read() if accelerator.is_main_process else {}
    digests = [video_digest(entry, view.kind.stream) for entry in entries]
    is_kept = [
        digest != "" and entry.video.name in kept and kept[entry.video.name][0] == digest
        for entry, digest in zip(entries, digests, strict=True)
    ]
    is_kept = decide_on_first(accelerator, lambda: is_kept)
    missing = [i for i in range(len(entries)) if not is_kept[i]]
    new = extract([entries[i] for i in missing]) if missing else store.nothing
    if not accelerator.is_main_process:
        return new
    if entries and not missing and description is not None:
        console.print(f"{description}: features read from {store.path}", soft_wrap=True, highlight=False)
    by_name = dict(zip(new.videos, new.views_nvd, strict=True))
    added = {
        entries[i].video.name: (digests[i], by_name[entries[i].video.name])
        for i in missing
        if entries[i].video.name in by_name
    }
    if added:
        store.write({**kept, **added})
    found = {
        i: kept[entry.video.name][1] if is_kept[i] else by_name[entry.video.name]
        for i, entry in enumerate(entries)
        if is_kept[i] or entry.video.name in by_name
    }
    return assemble(found, entries, new.unreadable, store.nothing)
