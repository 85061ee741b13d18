"""Keep features on disk, so that an encoder embeds every video once.

A store is a folder with one safetensors file for each key: encoder and weights, view, number of views, precision,
decoder, dataset and perturbation; tokens have a file of their own. A file holds a row for every video that was
embedded, of any part or split, with a digest of its stream. Three splits of one dataset therefore embed each video
once, and a video that was prepared again is embedded again. The file's name holds a digest of the key, its header the
whole key; a file that is damaged or whose key differs is not used. Unreadable videos are not kept: they are read again.

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
from crossdistill.data.manifest import Stream
from crossdistill.data.stores import find_store
from crossdistill.data.videos import stream_content
from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import ExportedNetwork, TokenEmbedder
from crossdistill.evaluation.features import Features, assemble, embed_videos, extract_features, no_features
from crossdistill.evaluation.perturbations import Perturbation
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.evaluation.views import TestViews
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import sha256_of
from crossdistill.utils.tensor_files import write_tensors

FORMAT = "crossdistill-features"
FORMAT_VERSION = 2  # rises when the same weights give other features
FEATURES = "features"
ADVICE = "free space there, or choose another folder with --features"


def feature_key(
    encoder: Encoder,
    *,
    execution: Execution,
    dataset: str,
    views: TestViews,
    short_clips: str,
    decoder: str = DEFAULT_DECODER,
    perturbation: Perturbation | None = None,
) -> dict[str, Any]:
    """Describe everything that decides the features of a video, except the video.

    Weights and precision are part of it, and the decoder, because two libraries may convert the same colours
    differently; ``short_clips`` is the rule for videos that are shorter than the view; ``perturbation`` changes the
    clips.
    """
    network = {
        "weights_sha256": weights_hash(encoder),
        "quantize": encoder.bits,
        "precision": execution.precision,
    }
    if decoder != DEFAULT_DECODER:  # stores of version 0.1, which do not name it, are of the default
        network["decoder"] = decoder
    if perturbation is not None:
        network["perturbation"] = perturbation.key
    if is_from_file(encoder.name):
        network["code_sha256"] = sha256_of(Path(encoder.name.rpartition(":")[0]))
    return _key(network, encoder.name, encoder.view, encoder.embed_dim, dataset, views, short_clips)


def exported_key(exported: ExportedNetwork, *, dataset: str, settings: ReadSettings) -> dict[str, Any]:
    """Describe everything that decides the features that an exported file computes, except the video."""
    network = {"file_sha256": sha256_of(exported.path)}
    if exported.runtime != "onnxruntime":  # stores of version 0.2, which do not name it, are of onnxruntime
        network["runtime"] = exported.runtime
    if settings.decoder != DEFAULT_DECODER:
        network["decoder"] = settings.decoder
    name, view, embed_dim = exported.name, exported.view, exported.embed_dim
    return _key(network, name, view, embed_dim, dataset, settings.views, settings.short_clips)


def _key(
    network: dict[str, Any], encoder: str, view: ViewSpec, embed_dim: int, dataset: str, views: TestViews, short: str
) -> dict[str, Any]:
    """Build a key of the types that JSON reads back, so that it compares equal to a key in a file."""
    # "error" makes sure that no video is too short, and then "repeat" changes nothing.
    short = "repeat" if short == "error" else short
    key = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "encoder": encoder,
        **network,
        "view": dataclasses.asdict(view),
        "embed_dim": embed_dim,
        "dataset": dataset,
        "views": str(views),
        "short_clips": short,
    }
    plain: dict[str, Any] = json.loads(json.dumps(key))
    return plain


def video_digest(entry: Entry, stream: str) -> str:
    """Compute a digest of what a prepared video shows, wherever it is; empty if its file is missing or cut short.

    It changes if the video is prepared again, so that stored features are not reused.
    """
    if stream not in entry.video.streams:
        return ""
    kept = entry.video.streams[stream]
    if find_store(entry.root) is None and not _is_whole(kept, entry.root):
        return ""
    return hashlib.sha256(json.dumps(stream_content(kept.to_json())).encode()).hexdigest()[:16]


def former_digest(entry: Entry, stream: str) -> str:
    """Compute the digest that version 0.2 wrote, which depends on the place of the file."""
    kept = entry.video.streams[stream]
    num_bytes = (entry.root / kept.path).stat().st_size
    facts = [kept.path, kept.sha256, num_bytes, kept.width_px, kept.height_px, str(kept.time_base)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(kept.pts.tobytes())
    return digest.hexdigest()[:16]


def _is_of(entry: Entry, stream: str, *, digest: str, written: str) -> bool:
    """Whether features with the digest ``written`` are of a video whose digest is ``digest``."""
    if not digest or not written:
        return False
    return written == digest or (find_store(entry.root) is None and written == former_digest(entry, stream))


def _is_whole(stream: Stream, root: Path) -> bool:
    try:
        num_bytes = (root / stream.path).stat().st_size
    except OSError:
        return False
    return not stream.num_bytes or stream.fits(num_bytes)


@dataclass(frozen=True)
class FeatureStore:
    """One file of stored features. The key determines its name in the folder."""

    folder: Path
    key: dict[str, Any]

    @property
    def path(self) -> Path:
        """Path of the file."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "-", self.key["encoder"]).strip("-.")
        kind = "-tokens" if "tokens" in self.key else ""
        return self.folder / f"{name}{kind}-{self.key['views']}-{digest}.safetensors"

    @property
    def nothing(self) -> Features:
        """Empty features in the shape of this key."""
        return no_features(self.key["embed_dim"], TestViews.parse(self.key["views"]))

    def read(self) -> dict[str, tuple[str, Tensor]]:
        """Read the digest and the row [V, D] of each video; empty with a notice if the file cannot be used."""
        if not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                key, videos = json.loads(header["key"]), json.loads(header["videos"])
                if key != self.key:
                    raise ValueError("it has another key")
                rows = file.get_tensor(FEATURES)
            return {name: (digest, row) for (name, digest), row in zip(videos, rows, strict=True)}
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            notice = f"features are computed again: {self.path} cannot be used ({error})"
            console.print(notice, soft_wrap=True, highlight=False)
            return {}

    def write(self, rows: dict[str, tuple[str, Tensor]]) -> None:
        """Write all rows atomically, or raise a ``UserError`` if the disk is full or read-only."""
        videos = [[name, digest] for name, (digest, _) in rows.items()]
        tensors = {FEATURES: torch.stack([row for _, row in rows.values()])}
        header = {"key": json.dumps(self.key), "videos": json.dumps(videos)}
        write_tensors(self.path, tensors, metadata=header, advice=ADVICE)


def kept_features(
    encoder: Encoder,
    entries: Sequence[Entry],
    *,
    folder: Path | None,
    dataset: str,
    execution: Execution,
    accelerator: Accelerator,
    settings: ReadSettings | None = None,
    tokens: TokenEmbedder | None = None,
    description: str | None = None,
) -> Features:
    """Return the features of videos. Only videos that the store lacks are embedded; see ``extract_features``.

    ``folder`` is the store's, None to keep nothing; ``dataset`` is the name of the dataset. With ``tokens``, of this
    encoder, a row holds its tokens instead. The first process returns all features, others, with a store, only those
    that were extracted now.
    """
    settings = settings or ReadSettings()

    def extract(chosen: Sequence[Entry]) -> Features:
        return extract_features(
            encoder,
            chosen,
            execution=execution,
            accelerator=accelerator,
            settings=settings,
            embedder=tokens,
            description=description,
        )

    if folder is None:
        return extract(entries)
    key = feature_key(
        encoder,
        execution=execution,
        dataset=dataset,
        views=settings.views,
        short_clips=settings.short_clips,
        decoder=settings.decoder,
        perturbation=settings.perturbation,
    )
    if tokens is not None:
        key |= {"embed_dim": tokens.embed_dim, "tokens": list(tokens.grid)}
    return complete(
        FeatureStore(folder, key), entries, extract, accelerator=accelerator, view=encoder.view, description=description
    )


def exported_features(
    exported: ExportedNetwork,
    entries: Sequence[Entry],
    *,
    folder: Path | None,
    dataset: str,
    accelerator: Accelerator,
    settings: ReadSettings,
    description: str | None = None,
) -> Features:
    """Return the features of videos by an exported file, as ``kept_features`` does by an encoder."""

    def extract(chosen: Sequence[Entry]) -> Features:
        return embed_videos(
            exported,
            chosen,
            view=exported.view,
            accelerator=accelerator,
            settings=settings,
            description=description,
        )

    if folder is None:
        return extract(entries)
    store = FeatureStore(folder, exported_key(exported, dataset=dataset, settings=settings))
    return complete(store, entries, extract, accelerator=accelerator, view=exported.view, description=description)


def _write(rows: dict[str, tuple[str, Tensor]], store: FeatureStore) -> None:
    """Write all rows. The results do not need them: in a folder of somebody else, they are left out with a notice."""
    try:
        store.write(rows)
    except UserError as error:
        console.print(f"features are not kept: {error}", style="yellow", soft_wrap=True, highlight=False)


def complete(
    store: FeatureStore,
    entries: Sequence[Entry],
    extract: Callable[[Sequence[Entry]], Features],
    *,
    accelerator: Accelerator,
    view: ViewSpec,
    description: str | None,
) -> Features:
    """Read stored features, extract the missing ones, and store them.

    ``extract`` embeds some of the videos. Every process calls it, unless the store has all; only the first process
    reads and writes the store. With a ``description`` it prints a notice that all features were read from the store.
    The first process returns all features, others only those that were extracted now.
    """
    kept = store.read() if accelerator.is_main_process else {}
    digests = [video_digest(entry, view.kind.stream) for entry in entries]
    pairs, name = zip(entries, digests, strict=True), view.kind.stream
    is_kept = [_is_of(one, name, digest=digest, written=kept.get(one.video.name, ("",))[0]) for one, digest in pairs]
    is_kept = decide_on_first(accelerator, lambda: is_kept)
    missing = [i for i in range(len(entries)) if not is_kept[i]]
    new = extract([entries[i] for i in missing]) if missing else store.nothing
    if not accelerator.is_main_process:
        return new
    if entries and not missing and description is not None:
        console.print(f"{description}: features read from {store.path}", soft_wrap=True, highlight=False)
    names = [entry.video.name for entry in entries]
    by_name = dict(zip(new.videos, new.views_nvd, strict=True))
    # Unreadable videos have no row.
    found = {i: by_name[names[i]] for i in missing if names[i] in by_name}
    if found:
        _write({**kept, **{names[i]: (digests[i], row) for i, row in found.items() if digests[i]}}, store)
    found |= {i: kept[name][1] for i, name in enumerate(names) if is_kept[i]}
    return assemble(found, entries, new.unreadable, store.nothing)
