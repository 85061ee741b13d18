"""The protocols on changed test clips, ``robustness`` and ``order``: embed the clips, then measure on one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluate import EvaluatedEncoder
from crossdistill.evaluation.perturbations import FAMILIES, Perturbation, choose_families, reason_texts
from crossdistill.evaluation.protocols import ORDER, ROBUSTNESS
from crossdistill.evaluation.protocols import order as order_of
from crossdistill.evaluation.protocols.frozen_classifier import FrozenClassifier
from crossdistill.evaluation.protocols.order import find_pairs, measure_order, read_pairs
from crossdistill.evaluation.protocols.robustness import measure_robustness
from crossdistill.evaluation.results import ProtocolResult
from crossdistill.evaluation.settings import ProtocolSettings, ReadSettings
from crossdistill.types import ViewSpec


@dataclass(frozen=True)
class PerturbedPlan:
    """Which clips of a view are changed how, for the protocols that ask for it."""

    robustness: tuple[Perturbation, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    """Families that make no sense for the view, with the reason."""
    order: tuple[tuple[str, Perturbation], ...] = ()
    """``shuffled`` and ``reversed``, with the perturbation."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Classes that are each other's time reversal."""

    @staticmethod
    def of(
        view: ViewSpec, protocols: Sequence[str], settings: ProtocolSettings, classes: Sequence[str], *, wanted_by: str
    ) -> PerturbedPlan:
        """Plan what ``protocols`` ask for.

        Raises:
            UserError: No perturbation makes sense for the view, or one that was named does not; ``wanted_by`` names the
                student.
        """
        perturbations: tuple[Perturbation, ...] = ()
        left_out: dict[str, str] = {}
        if ROBUSTNESS in protocols:
            families, left_out = choose_families(view, settings.families, wanted_by=wanted_by)
            perturbations = tuple(Perturbation(name, severity) for name in families for severity in settings.severities)
        changes: list[tuple[str, Perturbation]] = []
        pairs: list[tuple[int, int]] = []
        if ORDER in protocols:
            pairs = read_pairs(settings.class_pairs, classes) if settings.class_pairs else find_pairs(classes)
            for name, (family, severity) in order_of.PERTURBATIONS.items():
                if not FAMILIES[family].why_not(view):
                    changes.append((name, Perturbation(family, severity)))
            if not changes and not pairs:
                reason = FAMILIES["reversal"].why_not(view)
                raise UserError(
                    f"the order of frames cannot be tested on {wanted_by}: {reason}, and no two classes are each "
                    "other's time reversal by their names; give --class-pairs, or remove order from --protocols"
                )
        return PerturbedPlan(perturbations, tuple(left_out.items()), tuple(changes), tuple(pairs))

    def notices(self, student: str, view: ViewSpec, protocols: Sequence[str], classes: Sequence[str]) -> list[str]:
        """Say what is left out, and which classes were taken for pairs."""
        said = [f"{student}: robustness leaves out {text}" for text in reason_texts(dict(self.left_out))]
        if ORDER in protocols:
            if not self.order:
                reason = FAMILIES["reversal"].why_not(view)
                said.append(f"{student}: order leaves out shuffled and reversed clips: {reason}")
            named = ", ".join(f"{classes[a]} and {classes[b]}" for a, b in self.pairs)
            none = "none; give --class-pairs"
            said.append(f"classes taken for each other's time reversal: {named or none}")
        return said

    def embed(
        self,
        student: EvaluatedEncoder,
        manifest: Manifest,
        split: str,
        reading: ReadSettings,
        accelerator: Accelerator,
        embedded: EmbeddedSplit,
        settings: ProtocolSettings,
    ) -> Callable[[], list[ProtocolResult]]:
        """Embed the changed clips on every process; the function that is returned classifies on the first process."""
        wanted = list(dict.fromkeys([*self.robustness, *(change for _, change in self.order)]))
        if not wanted and not self.pairs:
            return list
        own = own_classifier(student) if settings.classifier == "own" else None  # before clips are embedded for hours
        found = student.embed_perturbed(manifest, split, reading, accelerator, wanted)

        def measure() -> list[ProtocolResult]:
            classifier = FrozenClassifier.of(embedded, own, seed=settings.seed)
            results = []
            if self.robustness:
                perturbed = {change: found[change] for change in self.robustness}
                results.append(measure_robustness(embedded, perturbed, classifier, left_out=dict(self.left_out)))
            if self.order or self.pairs:
                changed = {name: found[change] for name, change in self.order}
                of_order = measure_order(embedded, changed, classifier, pairs=self.pairs, classes=manifest.classes)
                results += of_order
            return results

        return measure


def own_classifier(student: EvaluatedEncoder) -> Classifier:
    """Return the layer with which a student was trained.

    Raises:
        UserError: It was trained without labels.
    """
    classifier = student.encoder.classifier
    if classifier is None:
        raise UserError(
            f"the student {student.encoder.name} has no classifier of its own, because it was trained without labels: "
            "choose --classifier probe"
        )
    return classifier
