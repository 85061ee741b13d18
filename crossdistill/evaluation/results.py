"""Results of protocols: how accuracies are computed from class scores, and how results are stored.

``Evaluation.to_json`` returns the JSON of an evaluation. ``docs/reference/results_schema.md`` explains its fields, and
``json_schema`` returns its JSON Schema. New fields may be added, but no field is renamed. ``SCHEMA_VERSION`` increases
when the meaning of a field changes.

Shapes: B test clips, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema
from torch import Tensor

from crossdistill.errors import UserError, require_package
from crossdistill.evaluation.spread import FeatureSpread

if TYPE_CHECKING:
    import pandas

SCHEMA_FORMAT = "crossdistill-evaluation"
SCHEMA_VERSION = 1
NUM_RANKED = 5
"""Ranks that count for top-5 accuracy."""
TOP1, TOP5, MEAN_CLASS = "top1", "top5", "mean_class"
MEAN_AVERAGE_PRECISION = "mean_average_precision"
_COLUMNS = ("protocol", "top1", "low", "high", "top5", "mean_class", "num_test", "coverage")
_UNLABELLED_COLUMNS = (
    *("teacher", "overlap", "low", "high", "cka"),
    *("effective_rank", "uniformity", "num_test", "coverage"),
)
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracies:
    """Fractions in [0, 1]."""

    top1: float
    """Share of clips whose best class is the right one."""
    top5: float
    """Share of clips whose right class is among the best min(5, C)."""
    mean_class: float
    """Top-1 within each class, averaged over the classes that the test set holds."""


@dataclass(frozen=True)
class Units:
    """What a bootstrap draws, by name, so that test sets that share videos or groups are drawn together."""

    kind: str
    """``video`` or ``group``."""
    names: tuple[str, ...]
    """[B] unit of each test clip."""


class SetMeasure(Protocol):
    """A measure of a test set that is no mean over its clips, for the bootstrap. R draws at once, J figures."""

    def of_draws(self, weights_rb: Floats) -> Floats:
        """Compute [R, J] figures, the measure first, of test sets that hold clip b ``weights_rb[r, b]`` times.

        NaN where a test set has no value.
        """
        ...

    def interval(self, drawn_rj: Floats, whole_j: Floats, level: float) -> tuple[float, float]:
        """Give the ends of the interval from the figures of all draws, and of the test set itself."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Which clips a protocol got right; accuracies and their intervals follow from it."""

    hits: dict[str, Tensor]
    """Measure to [B] float64 in [0, 1]: 1 where a clip is right; between 0 and 1 for a mean over several draws."""
    labels_b: Tensor
    """[B] int64 on the CPU."""
    predicted_b: Tensor | None = None
    """[B] int64 best class of each clip; None where a protocol predicts no class."""
    units: Units | None = None
    """What the bootstrap draws; None until the videos are known."""
    positions_b: Tensor | None = None
    """[B] int64 positions of the clips in the test set, if the protocol is about some of them; None for all."""
    set_measures: Mapping[str, SetMeasure] = field(default_factory=dict)
    """Further measures that get an interval, by name."""

    def with_units(self, units: Units) -> Outcome:
        """Give every clip its unit, of the units of the whole test set."""
        if self.positions_b is None:
            return dataclasses.replace(self, units=units)
        names = tuple(units.names[i] for i in self.positions_b.tolist())
        return dataclasses.replace(self, units=Units(units.kind, names))

    def accuracies(self) -> Accuracies:
        """Average the hits over clips, and top-1 over classes."""
        top1_b = self.hits[TOP1]
        count_c = torch.bincount(self.labels_b)
        hits_c = torch.zeros(len(count_c), dtype=torch.float64).index_add_(0, self.labels_b, top1_b)
        recall = hits_c[count_c > 0] / count_c[count_c > 0]
        return Accuracies(top1_b.mean().item(), self.hits[TOP5].mean().item(), recall.mean().item())


@dataclass(frozen=True)
class ProtocolResult:
    """The outcome of one protocol on one test set; accuracies are fractions in [0, 1]."""

    __pydantic_config__ = _STRICT

    protocol: str
    """For example ``1-nn`` or ``linear``."""
    top1: float
    """Share of test clips whose best class is the right one; for retrieval R@1."""
    top5: float
    """Share of test clips whose right class is among the best five. With C < 5 classes it is among the best C, which is
    1 if every class has training clips. For retrieval R@5."""
    mean_class: float
    """Top-1 within each class, averaged over the classes of the test set."""
    num_test: int
    """Number of test clips that were evaluated."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else the number depends on; every value can be written as JSON."""
    coverage: float = 1.0
    """Share of the test videos that could be read and were evaluated, in [0, 1]."""
    views: str = "1x1"
    """Clips x crops of every test video, which were averaged."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Measure (``top1``, ``top5``, ``mean_class``, for retrieval also ``recall_at_10`` …, for calibration ``ece`` and
    ``ece_scaled``, for multi-label ``mean_average_precision``) to the ends of its confidence interval."""
    hits: str = ""
    """One digit for each of the evaluation's ``test_videos``: 1 where top-1 is right, else 0. Empty for a mean over
    splits, draws or perturbations, and for a part of the test clips."""
    outcome: SkipJsonSchema[Any] = field(default=None, compare=False, repr=False)
    """The ``Outcome``; not written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary that ``json.dumps`` takes."""
        values = dataclasses.asdict(dataclasses.replace(self, outcome=None))
        del values["outcome"]
        return {**values, "intervals": {name: list(ends) for name, ends in self.intervals.items()}}


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals were made: percentiles of the same measure on resampled test sets."""

    __pydantic_config__ = _STRICT

    unit: str
    """What is drawn: ``video``, or ``group`` if the test videos have groups (performers, source films). Clips of one
    group are alike, so they are drawn together."""
    num_units: int
    """Number of units. With fewer than about 20 an interval is itself rough, and rather too narrow."""
    num_draws: int
    """Number of test sets that were drawn."""
    level: float
    """0.95: from the 2.5th to the 97.5th percentile."""
    seed: int
    """Seed of the draws."""


def _accuracy_row(result: ProtocolResult) -> tuple[Any, ...]:
    ends = result.intervals.get(TOP1, (math.nan, math.nan))
    return (result.protocol, result.top1, *ends, result.top5, result.mean_class, result.num_test, result.coverage)


@dataclass(frozen=True)
class Gain:
    """How much better one network is than another in top-1, on the test clips of both."""

    __pydantic_config__ = _STRICT

    students: tuple[str, str]
    """The network and the one that it is compared with; for several students by their names in
    ``Evaluation.students``."""
    protocol: str
    """For example ``1-nn`` or ``linear``."""
    gain: float
    """Difference of the two accuracies, in [-1, 1]."""
    interval: tuple[float, float] | None
    """Confidence interval by a paired bootstrap: both networks are measured on the same drawn clips. None for a point
    estimate: the hits of single clips are not known, or there is no bootstrap."""
    num_test: int
    """Number of test clips on which both were evaluated; for several splits the sum."""
    bootstrap: Bootstrap | None = None
    """How the interval was made; None for a point estimate."""

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary that ``json.dumps`` takes."""
        ends = None if self.interval is None else list(self.interval)
        return {**dataclasses.asdict(self), "students": list(self.students), "interval": ends}


@dataclass(frozen=True)
class AgreementResult:
    """How similarly two students arrange the same test clips."""

    __pydantic_config__ = _STRICT

    students: tuple[str, str]
    """The two students, by their names in ``Evaluation.students``; in a run without labels, a student and a teacher by
    their roles."""
    num_test: int
    """Number of test clips that both students could read."""
    coverage: float
    """Share of the test videos that both could read."""
    views: str
    """Clips x crops of every test video."""
    k: int
    """Number of neighbours that are compared."""
    overlap: float
    """Mean share of a clip's k nearest other test clips that both students have in common."""
    overlap_interval: tuple[float, float] | None
    """Confidence interval of the overlap: clips are drawn, their neighbours stay; None without a bootstrap."""
    chance_overlap: float
    """Overlap of unrelated spaces."""
    cka: float
    """Linear CKA, unbiased: 1 for equal spaces, about 0 for unrelated ones. It has no interval: a clip that is drawn
    twice would be its own perfect neighbour."""
    overlap_by_class: dict[str, float]
    """Class name to the mean overlap of its clips."""

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary that ``json.dumps`` takes."""
        ends = self.overlap_interval
        values = {"students": list(self.students), "overlap_interval": None if ends is None else list(ends)}
        return {**dataclasses.asdict(self), **values}


@dataclass(frozen=True)
class Evaluation:
    """Results of one encoder on one split, the mean over several splits, or the late fusion of several students.

    Example:
        >>> knn = ProtocolResult("1-nn", top1=0.5, top5=1.0, mean_class=0.5, num_test=4, intervals={"top1": (0.2, 0.8)})
        >>> evaluation = Evaluation(
        ...     "rgb_r3d18", "ucf101", "1", num_train=8, num_test=4, unreadable={}, results={"1-nn": knn}
        ... )
        >>> evaluation.top1, evaluation.interval
        (0.5, (0.2, 0.8))
    """

    __pydantic_config__ = _STRICT

    encoder: str
    """Name of the encoder; for several students their names, joined by ``+``."""
    dataset: str
    """Name of the prepared dataset."""
    split: str
    """Name of the split; for a mean of splits their names, joined by ``+``; empty in a run without labels."""
    num_train: int
    """Number of training clips that were embedded."""
    num_test: int
    """Number of test clips that were embedded and evaluated; for several splits the sum."""
    unreadable: dict[str, str]
    """Videos of both parts that could not be read, with the reason; they are left out."""
    results: dict[str, ProtocolResult]
    """By protocol; for several students, of their fusion. Empty in a run without labels, which has ``agreement`` and
    ``spread`` instead."""
    coverage: float = 1.0
    """Share of the test videos that were evaluated, in [0, 1]."""
    views: str = "1x1"
    """Clips x crops of every test video."""
    train_views: str = "1x1"
    """Clips x crops of every training video."""
    bootstrap: Bootstrap | None = None
    """How the intervals of all results were computed; None if there are none."""
    agreement: list[AgreementResult] = field(default_factory=list)
    """One for each pair of students; in a run without labels, one for each teacher of a student."""
    spread: FeatureSpread | None = None
    """In a run without labels: how the embedding spreads the clips; otherwise None."""
    gains: list[Gain] = field(default_factory=list)
    """For several students: the gain of each over the first, for every protocol of both."""
    test_videos: list[str] = field(default_factory=list)
    """Names of the test videos that were evaluated, in the order of ``ProtocolResult.hits``; empty for a mean of
    splits."""
    test_groups: list[str | None] = field(default_factory=list)
    """Group of each of ``test_videos``; None for a video without a group."""
    splits: dict[str, Evaluation] = field(default_factory=dict)
    """For a mean of splits: the evaluation of each."""
    students: dict[str, Evaluation] = field(default_factory=dict)
    """For several students: the evaluation of each, by its folder."""
    num_unreadable: int = 0
    """Length of ``unreadable``."""
    num_test_seen: int = 0
    """Number of test clips that the student was trained on, as training clips of another split or in a run without
    labels. Such a number is no test result. For several splits the sum; for several students the largest."""
    format: str = SCHEMA_FORMAT
    """``crossdistill-evaluation``."""
    version: int = SCHEMA_VERSION
    """Version of this schema."""

    @property
    def first(self) -> ProtocolResult:
        """Result of the first protocol.

        Raises:
            UserError: There are no results of single protocols, for example after ``agreement`` alone.
        """
        if not self.results:
            raise UserError(f"the evaluation of {self.encoder} has no results: choose a protocol, for example knn")
        return next(iter(self.results.values()))

    @property
    def top1(self) -> float:
        """Top-1 accuracy of the first protocol, in [0, 1]."""
        return self.first.top1

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of ``top1``; None without a bootstrap."""
        return self.first.intervals.get(TOP1)

    def to_frame(self) -> pandas.DataFrame:
        """Convert the results to a pandas DataFrame with one row per protocol.

        The columns are ``protocol``, ``top1``, ``low`` and ``high`` (ends of the interval of ``top1``, NaN without a
        bootstrap), ``top5``, ``mean_class``, ``num_test`` and ``coverage``. Without labels the figures are in the
        columns ``teacher``, ``overlap``, ``low``, ``high``, ``cka``, ``effective_rank``, ``uniformity``, ``num_test``
        and ``coverage``: one row for each teacher that the network was compared with, and one row without any.

        Raises:
            UserError: pandas is not installed.
        """
        found = require_package("pandas", target="to_frame()", extra="pandas")
        without_labels = self.spread is not None and not self.results
        rows = self._rows_without_labels() if without_labels else list(map(_accuracy_row, self.results.values()))
        frame: pandas.DataFrame = found.DataFrame(rows, columns=_UNLABELLED_COLUMNS if without_labels else _COLUMNS)
        return frame

    def _rows_without_labels(self) -> list[tuple[Any, ...]]:
        assert self.spread is not None
        spread = (self.spread.effective_rank, self.spread.uniformity, self.num_test, self.coverage)
        pairs: list[tuple[Any, ...]] = [
            (pair.students[1], pair.overlap, *(pair.overlap_interval or (math.nan, math.nan)), pair.cka)
            for pair in self.agreement
        ]
        return [(*pair, *spread) for pair in pairs or [("", *[math.nan] * 4)]]

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary that ``json.dumps`` takes."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("results", "splits", "students"):
            values[name] = {key: part.to_json() for key, part in values[name].items()}
        for name in ("bootstrap", "spread"):
            values[name] = None if values[name] is None else dataclasses.asdict(values[name])
        for name in ("agreement", "gains"):
            values[name] = [part.to_json() for part in values[name]]
        # A reader finds format and version first in the file.
        return {"format": self.format, "version": self.version, **values, "num_unreadable": len(self.unreadable)}


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema (draft 2020-12) of ``Evaluation.to_json``."""
    return TypeAdapter(Evaluation).json_schema()


def read_evaluation(values: dict[str, Any]) -> Evaluation:
    """Read an evaluation from the output of ``Evaluation.to_json``.

    Raises:
        UserError: The values do not fit the schema (the error names the first field), or a newer version wrote them.
    """
    if isinstance(values.get("version"), int) and values["version"] > SCHEMA_VERSION:
        raise UserError(
            f"these results have schema version {values['version']}, this crossdistill reads up to {SCHEMA_VERSION}: "
            "update crossdistill"
        )
    try:
        return TypeAdapter(Evaluation).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"these results do not fit the schema: {path}: {first['msg'].lower()}; evaluate again"
        ) from error


def hits_from_scores(scores_bc: Tensor, labels_b: Tensor) -> Outcome:
    """Return for every clip whether its class is ranked first, and whether it is among the first five.

    The rank of the right class is the number of classes with a higher score, plus the number of lower class indices
    with an equal score: of equal scores the lower index comes first, on every device. A right class that scores -inf
    ("cannot be predicted") or NaN is never a hit.

    Args:
        scores_bc: [B, C] class scores, higher is better.
        labels_b: [B] int64 in [0, C).
    """
    num_classes = scores_bc.shape[1]
    labels_b = labels_b.to(scores_bc.device)
    right_b1 = scores_bc.gather(1, labels_b[:, None])
    is_lower_index_bc = torch.arange(num_classes, device=scores_bc.device) < labels_b[:, None]
    is_ahead_bc = (scores_bc > right_b1) | ((scores_bc == right_b1) & is_lower_index_bc)
    can_hit_b = right_b1[:, 0] > -torch.inf
    rank_b = is_ahead_bc.sum(1)
    hits = {TOP1: (rank_b < 1) & can_hit_b, TOP5: (rank_b < NUM_RANKED) & can_hit_b}
    return Outcome(
        hits={name: hit_b.cpu().double() for name, hit_b in hits.items()},
        labels_b=labels_b.cpu(),
        predicted_b=scores_bc.argmax(1).cpu(),
    )


def accuracy_from_scores(scores_bc: Tensor, labels_b: Tensor) -> Accuracies:
    """Compute the accuracies of [B, C] scores and [B] int64 labels; see ``hits_from_scores`` for equal scores."""
    return hits_from_scores(scores_bc, labels_b).accuracies()


def result_of(protocol: str, outcome: Outcome, details: dict[str, Any]) -> ProtocolResult:
    """Build a result from hits, without coverage, views and intervals."""
    found = outcome.accuracies()
    num_test = len(outcome.labels_b)
    return ProtocolResult(protocol, found.top1, found.top5, found.mean_class, num_test, details, outcome=outcome)
