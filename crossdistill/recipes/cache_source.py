"""What a teacher cache is made from: the teachers, the training clips, and the pass of all teachers over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.cache_key import describe_clips, describe_teacher
from crossdistill.distillation.teachers import CrossFittedTeacher, FrozenTeacher, Targets
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.recipes.alignment import align_folds
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.context import RunContext, choose_execution
from crossdistill.recipes.data import count_training_clips, select_training_clips
from crossdistill.recipes.run import weights_finder
from crossdistill.recipes.sizes import fit_to_data
from crossdistill.recipes.teachers import FoldedSource, create_networks, teacher_sources
from crossdistill.training.run_folder import RunFolder
from crossdistill.types import PairedBatch, ViewSpec
from crossdistill.utils.records import fingerprint


@dataclass(frozen=True)
class CachedNetwork:
    """A teacher whose outputs are stored: one frozen network, or one for each fold."""

    teacher: FrozenTeacher | CrossFittedTeacher
    weights: tuple[str, ...]
    """Name of the weights of each network."""

    @property
    def encoder(self) -> Encoder:
        """The network; the first one with folds."""
        return self.teacher.encoder

    @property
    def precision(self) -> str:
        """Precision of the forward pass."""
        first = self.teacher.members[0] if isinstance(self.teacher, CrossFittedTeacher) else self.teacher
        return first.execution.precision

    @property
    def classifier(self) -> Classifier | None:
        """The classifier on the stored features.

        The classifiers of folds are several, and the cache does not say which clip is of which fold.
        """
        return None if isinstance(self.teacher, CrossFittedTeacher) else self.encoder.classifier

    @property
    def facts(self) -> dict[str, Any]:
        """Everything of the teacher that decides its outputs."""
        found = describe_teacher(self.encoder, weights=self.weights, weights_hashes=self.teacher.identity[1:])
        if isinstance(self.teacher, CrossFittedTeacher):
            found["folds"] = fingerprint(self.teacher.folds_n.tolist())
        return found


@dataclass(frozen=True)
class CacheInput:
    """Teachers and the training clips that they embed."""

    networks: list[CachedNetwork]
    clips: PairedClips
    split: str
    batch_size: int
    num_workers: int
    accelerator: Accelerator

    @property
    def name(self) -> str:
        """The teachers in words."""
        return " and ".join(network.encoder.name for network in self.networks)

    def facts(self, number: int) -> dict[str, Any]:
        """Return the fields of a cache's key that the teacher of a position and the clips decide."""
        return {**self.networks[number].facts, **describe_clips(self.clips, split=self.split)}

    def aligned(self, folder: Path) -> CacheInput:
        """With folds, map the features into one space; the maps are kept in a folder."""
        networks = [
            replace(
                network,
                teacher=align_folds(
                    network.teacher,
                    self.clips,
                    accelerator=self.accelerator,
                    batch_size=self.batch_size,
                    num_workers=self.num_workers,
                    folder=folder,
                ),
            )
            if isinstance(network.teacher, CrossFittedTeacher)
            else network
            for network in self.networks
        ]
        return replace(self, networks=networks)

    def embed(
        self, batches: Sequence[list[SampleKey]], *, with_tokens: bool
    ) -> Iterator[tuple[PairedBatch, list[Targets]]]:
        """Read batches of clips once, and yield each with the outputs of every teacher; no outputs of no clips.

        Clips that cannot be read are left out of a batch and reported in it.
        """
        device = self.accelerator.device
        pins = device.type == "cuda" and self.num_workers > 0
        clips = self.clips.of_teachers()
        for batch in make_loader(clips, batches, num_workers=self.num_workers, pin_memory=pins):
            on_device = batch.to(device)
            networks = self.networks if len(batch) else []
            yield batch, [network.teacher.embed(on_device, with_tokens=with_tokens) for network in networks]


def open_input(
    config: RunConfig,
    manifests: list[Manifest],
    *,
    student_view: ViewSpec,
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
    trains_folds: bool = True,
) -> CacheInput:
    """Load the teachers of a configuration and select the training clips.

    Args:
        config: Configuration of the training that uses the cache.
        manifests: Its datasets.
        student_view: What the student sees.
        batch_size: Clips per forward pass.
        accelerator: The processes.
        folder: The cache's folder, beside which missing teachers of folds are trained.
        trains_folds: Whether they are; otherwise missing ones are a ``UserError``.
    """
    if config.pair.folds is None:
        networks = []
        for number, (encoder, name) in enumerate(create_networks(config, student_view)):
            execution = choose_execution(config, encoder, accelerator)
            networks.append(CachedNetwork(FrozenTeacher(encoder, execution, number=number), (name,)))
    else:
        networks = [_open_folds(config, manifests, student_view, RunFolder(folder), accelerator, trains=trains_folds)]
    clips = select_training_clips(
        config,
        manifests,
        student_view=student_view,
        teacher_views=[network.encoder.view for network in networks],
        uses_labels=False,
        accelerator=accelerator,
    )
    for network in networks:
        clips = network.teacher.select_clips(clips)
    return CacheInput(networks, clips, config.data.split, batch_size, config.machine.workers, accelerator)


def _open_folds(
    config: RunConfig,
    manifests: list[Manifest],
    student_view: ViewSpec,
    folder: RunFolder,
    accelerator: Accelerator,
    *,
    trains: bool,
) -> CachedNetwork:
    """Load the networks of all folds, and train those without weights first."""
    num_clips = count_training_clips(config, manifests, uses_labels=False)
    config, batches = fit_to_data(config, num_clips, folder, accelerator)
    run = RunContext(config, manifests, folder, accelerator, batches)
    (source,) = teacher_sources(config)
    source.check_data(config, manifests)
    if not (trains or source.is_known):
        raise UserError("--estimate trains no teachers: give --teacher-weights for each of the --folds")
    found = source.with_weights(weights_finder(run))
    assert isinstance(found, FoldedSource)
    return CachedNetwork(found.load(run, student_view, number=0), found.weights)
