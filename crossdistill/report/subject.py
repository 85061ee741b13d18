"""All that is known of one run: its folder, its networks, their embeddings and costs, and reasons for what is not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.report.cost import Cost, measure
from crossdistill.report.record import SUPERVISED, AbsentError, RunRecord
from crossdistill.report.spaces import (
    RANDOM,
    STUDENT,
    TEACHER,
    TWIN,
    TWIN_ROLE,
    Network,
    Options,
    Space,
    embed,
    find_dataset,
    load_random,
    load_teachers,
    load_trained,
)
from crossdistill.utils.console import progress_bar

MAIN_PROTOCOLS = ("linear", "1-nn")
"""What one number of a run is, the first that there is."""


@dataclass
class Subject:
    """A run, filled step by step by ``gather``."""

    record: RunRecord
    twin: RunRecord | None = None
    manifest: Manifest | None = None
    spaces: list[Space] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    """Kind of network, or ``dataset``, to the sentence that says why it is not there."""

    def of_kind(self, kind: str) -> list[Space]:
        """The embeddings of the networks of a kind."""
        return [space for space in self.spaces if space.network.kind == kind]

    def require(self, kind: str) -> Space:
        """The first embedding of a kind; an ``AbsentError`` says why there is none."""
        found = self.of_kind(kind)
        if not found:
            raise AbsentError(self.reasons.get(kind) or self.reasons.get("dataset") or f"there is no {kind}.")
        return found[0]


def gather(
    record: RunRecord,
    *,
    twin: RunRecord | None,
    data: Path | None,
    options: Options,
    kinds: Iterable[str] = (STUDENT, RANDOM, TEACHER, TWIN),
) -> Subject:
    """Load, time and embed the networks of a run; what cannot be is left out with its reason.

    Args:
        record: The run.
        twin: The run of the same student that learned from labels.
        data: The dataset in place of the run's own.
        options: How networks are loaded.
        kinds: Of networks that are wanted.
    """
    subject = Subject(record, twin)
    try:
        subject.manifest = find_dataset(record, data)
    except AbsentError as error:
        subject.reasons["dataset"] = str(error)
    wanted = set(kinds)
    networks = list(_networks(subject, wanted, options))
    with progress_bar(unit="networks") as bar:
        subject.costs = [measure(network) for network in bar.track(networks, description=f"{record.name}, cost")]
    for network in networks:
        if subject.manifest is None:
            continue
        # Of several runs the student alone is embedded, and its role would say the same of each.
        description = network.role if len(wanted) > 1 else record.name
        config = twin.config if twin is not None and network.role == TWIN_ROLE else record.config
        try:
            subject.spaces.append(embed(network, subject.manifest, config, options, description=description))
        except AbsentError as error:
            subject.reasons[network.kind] = str(error)
    return subject


def _networks(subject: Subject, kinds: set[str], options: Options) -> Iterable[Network]:
    """Those that can be loaded, the student first; reasons of the others go into the subject."""
    record = subject.record
    try:
        student = load_trained(record, record.role, options)
    except AbsentError as error:
        # What the others are compared with is not there.
        subject.reasons |= dict.fromkeys((STUDENT, TEACHER, RANDOM, TWIN), str(error))
        return
    yield student
    if TWIN in kinds:
        if subject.twin is None:
            subject.reasons[TWIN] = "no twin was given: add --twin RUN with the same student trained from labels."
        else:
            yield from _try(subject, TWIN, lambda twin=subject.twin: load_trained(twin, TWIN_ROLE, options))
    if record.is_supervised:
        subject.reasons[TEACHER] = "the run learned from labels, not from a teacher."
        return
    if RANDOM in kinds:
        yield from _try(subject, RANDOM, lambda: load_random(record, options))
    if TEACHER in kinds:
        yield from _teachers(subject, student, options)


def _try(subject: Subject, kind: str, load: object) -> Iterable[Network]:
    try:
        yield load()  # type: ignore[operator]
    except AbsentError as error:
        subject.reasons[kind] = str(error)


def _teachers(subject: Subject, student: Network, options: Options) -> Iterable[Network]:
    try:
        for found in load_teachers(subject.record, student.encoder, subject.manifest, options):
            if isinstance(found, str):
                subject.reasons[TEACHER] = found
            else:
                yield found
    except AbsentError as error:
        subject.reasons[TEACHER] = str(error)


@dataclass(frozen=True)
class Table:
    """The evaluations of one dataset, by role."""

    dataset: str
    split: str
    by_role: dict[str, Evaluation]
    computed: tuple[str, ...] = ()
    """Protocols that were computed for the page, because the run's own results lack them or their interval."""


def tables_of(subject: Subject) -> list[Table]:
    """One for each dataset that the run was evaluated on, or that the page embedded."""
    record = subject.record
    tables = [
        _with_twin(
            Table(next(iter(by_role.values())).dataset, next(iter(by_role.values())).split, dict(by_role)), subject
        )
        for by_role in record.results.values()
        if by_role
    ]
    for evaluation in record.more_results:
        tables = _with_more(tables, evaluation, record.role)
    whole = [space for space in subject.spaces if space.is_whole and space.evaluation is not None]
    if not whole or subject.manifest is None:
        return tables
    name = subject.manifest.dataset
    if all(table.dataset != name for table in tables):
        split = whole[0].evaluation.split if whole[0].evaluation else ""
        tables.append(Table(name, split, {}))
    return [_with_computed(table, whole) if table.dataset == name else table for table in tables]


def _with_twin(table: Table, subject: Subject) -> Table:
    for by_role in () if subject.twin is None else subject.twin.results.values():
        own = by_role.get(SUPERVISED)
        if own is not None and (own.dataset, own.split) == (table.dataset, table.split):
            return replace(table, by_role={**table.by_role, TWIN_ROLE: own})
    return table


def _with_more(tables: list[Table], evaluation: Evaluation, role: str) -> list[Table]:
    """With what ``crossdistill evaluate --json`` left in the run's folder."""
    if all(table.dataset != evaluation.dataset for table in tables):
        tables = [*tables, Table(evaluation.dataset, evaluation.split, {})]
    place = next(i for i, table in enumerate(tables) if table.dataset == evaluation.dataset)
    table = tables[place]
    own = table.by_role.get(role, replace(evaluation, results={}, split=table.split))
    named = {
        _full_name(name, result, evaluation.split, table.split): result for name, result in evaluation.results.items()
    }
    merged = replace(own, results={**own.results, **named}, bootstrap=own.bootstrap or evaluation.bootstrap)
    return [*tables[:place], replace(table, by_role={**table.by_role, role: merged}), *tables[place + 1 :]]


def _full_name(name: str, result: ProtocolResult, split: str, usual_split: str) -> str:
    views = "" if result.views == "1x1" else f", {result.views} views"
    return f"{name}{views}" if split == usual_split else f"{name}{views}, split {split}"


def _with_computed(table: Table, spaces: list[Space]) -> Table:
    by_role, added = dict(table.by_role), dict.fromkeys(table.computed)
    for space in spaces:
        computed = space.evaluation
        if computed is None or computed.split != table.split:
            continue
        own = by_role.get(space.role, replace(computed, results={}))
        # Numbers of other test clips than can be read now are computed anew, where they can be.
        is_same_set = own.num_test == computed.num_test
        kept = {name: result for name, result in own.results.items() if result.intervals and is_same_set}
        results = {**own.results, **computed.results, **kept}
        added |= dict.fromkeys(name for name in computed.results if name not in kept)
        base = own if is_same_set else computed
        by_role[space.role] = replace(base, results=results, bootstrap=base.bootstrap or computed.bootstrap)
    return replace(table, by_role=by_role, computed=tuple(added))


def main_result(evaluation: Evaluation) -> ProtocolResult | None:
    """The one number of an evaluation."""
    names = [name for name in MAIN_PROTOCOLS if name in evaluation.results]
    return evaluation.results[(names or list(evaluation.results))[0]] if evaluation.results else None
