"""Everything that the page shows of one run: its folder, its networks, their embeddings and costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from crossdistill.data.manifest import Manifest
from crossdistill.recipes.data import evaluable
from crossdistill.report.cost import Cost, measure_cost, with_common_times
from crossdistill.report.embeddings import Embedding, embed, embed_without_labels
from crossdistill.report.networks import (
    BASELINE_ROLE,
    Kind,
    Network,
    ReportOptions,
    find_dataset,
    load_random,
    load_teachers,
    load_trained,
)
from crossdistill.report.record import RunRecord, UnavailableError
from crossdistill.utils.console import progress_bar


@dataclass
class RunData:
    """Data of one run, filled by ``collect``."""

    record: RunRecord
    baseline: RunRecord | None = None
    manifest: Manifest | None = None
    embeddings: list[Embedding] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    reasons: dict[Kind, str] = field(default_factory=dict)
    """Sentence with the reason for each kind of network that is unavailable."""
    no_dataset: str = ""
    """Sentence with the reason if there is no dataset."""

    @property
    def has_labels(self) -> bool:
        """Whether accuracies can be computed: the dataset has labels and both parts of the split, or is unknown."""
        return self.manifest is None or bool(evaluable([self.manifest], self.record.split))

    def of_kind(self, kind: Kind) -> list[Embedding]:
        """Return the embeddings of the networks of a kind."""
        return [embedding for embedding in self.embeddings if embedding.network.kind is kind]

    def require(self, kind: Kind) -> Embedding:
        """Return the first embedding of a kind, or raise an ``UnavailableError`` with the reason why there is none."""
        found = self.of_kind(kind)
        if not found:
            raise UnavailableError(self.reasons.get(kind) or self.no_dataset or f"there is no {kind}.")
        return found[0]


def collect(
    record: RunRecord, options: ReportOptions, *, baseline: RunRecord | None = None, kinds: Iterable[Kind] = tuple(Kind)
) -> RunData:
    """Load, time and embed the student and the given kinds of networks; those that are unavailable leave a reason.

    ``baseline`` is the run that trained the same student with labels.
    """
    run = RunData(record, baseline)
    try:
        run.manifest = find_dataset(record, options.data)
    except UnavailableError as error:
        run.no_dataset = str(error)
    wanted = set(kinds)
    networks = list(_load_networks(run, wanted, options))
    with progress_bar(unit="networks") as bar:
        shown = bar.track(networks, description=f"{record.name}, cost")
        run.costs = with_common_times([measure_cost(network, in_runtimes=options.runtimes) for network in shown])
    if run.manifest is None:
        return run
    for network in networks:
        # A comparison embeds only the student of each run, so the name of the run tells more than the role.
        description = network.role if len(wanted) > 1 else record.name
        config = baseline.config if baseline is not None and network.kind is Kind.BASELINE else record.config
        with _note_reason(run, network.kind):
            embed_one = embed if run.has_labels else embed_without_labels
            run.embeddings.append(embed_one(network, run.manifest, config, options, description=description))
    return run


def _load_networks(run: RunData, kinds: set[Kind], options: ReportOptions) -> Iterator[Network]:
    """Load the networks, the student first; the reasons for missing ones are added to the run."""
    record = run.record
    try:
        student = load_trained(record, record.role, options)
    except UnavailableError as error:
        # Every chart compares with the student, so no other network is needed without it.
        run.reasons |= dict.fromkeys(Kind, str(error))
        return
    yield student
    if Kind.BASELINE in kinds:
        advice = "add --baseline RUN, a --supervised run of the same student"
        with _note_reason(run, Kind.BASELINE):
            if run.baseline is None:
                raise UnavailableError(f"no supervised baseline was given: {advice}.")
            yield load_trained(run.baseline, BASELINE_ROLE, options)
    if record.is_supervised:
        run.reasons[Kind.TEACHER] = "the run learned from labels, not from a teacher."
        return
    if Kind.RANDOM in kinds:
        with _note_reason(run, Kind.RANDOM):
            yield load_random(record, options)
    if Kind.TEACHER in kinds:
        with _note_reason(run, Kind.TEACHER):
            for teacher in load_teachers(record, student.encoder, run.manifest, options):
                if isinstance(teacher, str):
                    run.reasons[Kind.TEACHER] = teacher
                else:
                    yield teacher


@contextmanager
def _note_reason(run: RunData, kind: Kind) -> Iterator[None]:
    """Store the message of an ``UnavailableError`` as the reason for a missing network."""
    try:
        yield
    except UnavailableError as error:
        run.reasons[kind] = str(error)
