"""Print evaluations as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crossdistill.evaluation.results import (
    MEAN_AVERAGE_PRECISION,
    TOP1,
    AgreementResult,
    Bootstrap,
    Evaluation,
    Gain,
    ProtocolResult,
)
from crossdistill.evaluation.spread import SPREAD_TITLES, spread_texts
from crossdistill.utils.console import console, print_table

FEW_UNITS = 20
"""Number of bootstrap units below which an interval by percentiles is itself rough."""


def print_evaluation(evaluation: Evaluation, name: str = "") -> None:
    """Print the tables of an evaluation and of its students and splits, with coverage and the kind of the intervals.

    ``name`` starts every title; if empty, titles name the encoder only.
    """
    names = short_names(list(evaluation.students))
    for folder, student in evaluation.students.items():
        print_evaluation(student, names[folder])
    name = name or " + ".join(names.values())
    for split in evaluation.splits.values():
        print_evaluation(split, name)
    who = f"{name} ({evaluation.encoder})" if name else evaluation.encoder
    title = f"{who} on {evaluation.dataset}, split {evaluation.split}, views {evaluation.views}"
    if evaluation.splits:
        title += " (mean)"
    interval = f"{evaluation.bootstrap.level:.0%} interval" if evaluation.bootstrap else "interval"
    rows = [_row(name, result) for name, result in evaluation.results.items() if "recall" not in result.details]
    if rows:
        print_table(title, ("protocol", "top-1", interval, "top-5", "mean class", "coverage"), rows)
    _print_recalls(title, list(evaluation.results.values()), interval)
    for result in evaluation.results.values():
        _print_robustness(title, result)
        _print_pairs(title, result)
        _print_calibration(title, result, interval)
        _print_average_precision(title, result, interval)
    _print_gains(evaluation)
    _print_agreement(evaluation)
    if evaluation.results or evaluation.agreement:
        _print_notes(evaluation)


def short_names(folders: Sequence[str]) -> dict[str, str]:
    """Map each folder to its last part, or to its whole path if two last parts are equal."""
    last = [Path(folder).name for folder in folders]
    return dict(zip(folders, last if len(set(last)) == len(last) else folders, strict=True))


def _row(name: str, result: ProtocolResult) -> tuple[str, ...]:
    top1 = f"{result.top1:.1%}"
    if len(result.details.get("draws", ())) > 1:
        top1 += f" ± {100 * result.details['sd']:.1f}"
    return (
        name,
        top1,
        _ends(result.intervals.get(TOP1)),
        f"{result.top5:.1%}",
        f"{result.mean_class:.1%}",
        f"{result.coverage:.1%}",
    )


def _ends(interval: tuple[float, float] | None, *, decimals: int = 1) -> str:
    return "–" if interval is None else "–".join(f"{100 * end:.{decimals}f}" for end in interval)


def _print_recalls(title: str, results: Sequence[ProtocolResult], interval: str) -> None:
    found = [result for result in results if "recall" in result.details]
    if not found:
        return
    ks = list(found[0].details["recall"])
    rows = []
    for result in found:
        recalls = (f"{result.details['recall'][k]:.1%}" for k in ks)
        rows.append((result.protocol, *recalls, _ends(result.intervals.get(TOP1)), f"{result.coverage:.1%}"))
    title = f"{title}: a video of the query's class among the k nearest, features centred"
    print_table(title, ("protocol", *(f"R@{k}" for k in ks), f"{interval} of R@1", "coverage"), rows)


def _print_robustness(title: str, result: ProtocolResult) -> None:
    families = result.details.get("families")
    if not families:
        return
    details = result.details
    severities = list(next(iter(families.values()))["top1"])
    rows = [
        (name, *robustness_texts(found, [found["top1"][s] for s in severities])) for name, found in families.items()
    ]
    rows.append(("all", *robustness_texts({**details, "mean_top1": result.top1}, [None] * len(severities))))
    header = ("family", *(f"severity {s}" for s in severities), "mean", "absolute", "relative")
    print_table(
        f"{title}: top-1 on perturbed clips in %, {100 * details['clean_top1']:.1f} on clean ones", header, rows
    )


def robustness_texts(found: Mapping[str, Any], top1: Sequence[float | None]) -> list[str]:
    """Write the accuracies of a family, their mean, and its absolute and relative robustness.

    Example:
        >>> found = {"mean_top1": 0.4, "absolute_robustness": 0.9, "relative_robustness": 0.8}
        >>> robustness_texts(found, [0.45, 0.35])
        ['45.0', '35.0', '40.0', '0.900', '0.800']
    """
    shares = (found["absolute_robustness"], found["relative_robustness"])
    texts = ["" if value is None else f"{100 * value:.1f}" for value in (*top1, found["mean_top1"])]
    return [*texts, *("–" if share is None else f"{share:.3f}" for share in shares)]


def _print_pairs(title: str, result: ProtocolResult) -> None:
    pairs = result.details.get("pairs")
    if pairs:
        rows = [(" – ".join(row["classes"]), *pair_texts(row)) for row in pairs]
        header = ("classes", "top-1 of the two", "shown backwards: the other", "test clips")
        print_table(f"{title}: classes that are each other's time reversal, in %", header, rows)


def pair_texts(row: Mapping[str, Any]) -> list[str]:
    """Write the figures of a pair of classes: accuracy, share of the partner when reversed, number of clips."""
    turned = row.get("partner_when_reversed")
    return [f"{100 * row['top1']:.1f}", "–" if turned is None else f"{100 * turned:.1f}", str(row["num_test"])]


def _print_calibration(title: str, result: ProtocolResult, interval: str) -> None:
    if "ece" in result.details:
        header = ("", "expected calibration error in %", interval, "negative log-likelihood")
        rows = [(name, *texts) for name, texts in calibration_texts(result).items()]
        print_table(f"{title}: calibration of a linear layer", header, rows)


def calibration_texts(result: ProtocolResult) -> dict[str, list[str]]:
    """Write the calibration error in percent, its interval and the log-likelihood, without and with the temperature.

    Example:
        >>> details = {"ece": 0.05, "nll": 0.7, "ece_scaled": 0.021, "nll_scaled": 0.6, "temperature": 1.5}
        >>> result = ProtocolResult("calibration", 0.5, 1.0, 0.5, 20, details, intervals={"ece": (0.0, 0.0625)})
        >>> calibration_texts(result)
        {'as trained': ['5.00', '0.00–6.25', '0.7000'], 'with temperature 1.500': ['2.10', '–', '0.6000']}
    """
    details = result.details
    known = f" {details['temperature']:.3f}" if "temperature" in details else ""
    return {
        name: [
            f"{100 * details[f'ece{suffix}']:.2f}",
            _ends(result.intervals.get(f"ece{suffix}"), decimals=2),
            f"{details[f'nll{suffix}']:.4f}",
        ]
        for name, suffix in (("as trained", ""), (f"with temperature{known}", "_scaled"))
    }


def _print_average_precision(title: str, result: ProtocolResult, interval: str) -> None:
    if MEAN_AVERAGE_PRECISION in result.details:
        value, ends = average_precision_texts(result)
        _print_line(f"{title}: mean average precision {value} %, {interval} {ends}")


def average_precision_texts(result: ProtocolResult) -> list[str]:
    """Write the mean average precision in percent, and its interval."""
    found = result.details[MEAN_AVERAGE_PRECISION]
    return [f"{100 * found:.1f}", _ends(result.intervals.get(MEAN_AVERAGE_PRECISION))]


def gain_text(gain: Gain) -> tuple[str, str]:
    """Write a gain in points, and its interval or that it is a point estimate.

    Example:
        >>> gain_text(Gain(("distilled", "labels"), "1-nn", 0.04, (-0.02, 0.1), 430))
        ('+4.0', '−2.0 to +10.0')
        >>> gain_text(Gain(("distilled", "labels"), "1-nn", -0.001, None, 430))
        ('−0.1', 'point estimate')
    """
    points = [f"{100 * value:+.1f}".replace("-", "−") for value in (gain.gain, *(gain.interval or ()))]
    return points[0], " to ".join(points[1:]) or "point estimate"


def _print_gains(evaluation: Evaluation) -> None:
    if not evaluation.gains:
        return
    names = short_names(list(evaluation.students))
    rows = [(names[g.students[0]], g.protocol, *gain_text(g), str(g.num_test)) for g in evaluation.gains]
    first = evaluation.gains[0]
    bootstrap = next((gain.bootstrap for gain in evaluation.gains if gain.bootstrap), None)
    interval = f"{bootstrap.level:.0%} interval" if bootstrap else "interval"
    title = f"points of top-1 over {names[first.students[1]]}: {evaluation.dataset}, split {evaluation.split}"
    print_table(title, ("student", "protocol", "gain", interval, "test clips"), rows)
    if bootstrap is not None:
        _print_line(bootstrap_note("gains, with both students on the same draws", bootstrap))


def _print_agreement(evaluation: Evaluation) -> None:
    if not evaluation.agreement:
        return
    names = short_names(sorted({student for agreement in evaluation.agreement for student in agreement.students}))
    rows = [
        (
            " – ".join(names[student] for student in agreement.students),
            f"{agreement.overlap:.1%}",
            _ends(agreement.overlap_interval),
            f"{agreement.chance_overlap:.1%}",
            f"{agreement.cka:.3f}",
            f"{agreement.coverage:.1%}",
        )
        for agreement in evaluation.agreement
    ]
    title = (
        f"shared neighbours among the {evaluation.agreement[0].k} nearest of a test clip, and linear CKA: "
        f"{evaluation.dataset}, split {evaluation.split}, views {evaluation.views}"
    )
    print_table(title, ("students", "shared", "interval", "chance", "CKA", "coverage"), rows)


def accuracy_text(accuracy: float, interval: Sequence[float] | None) -> str:
    """Write an accuracy in percent, with half the width of its interval.

    An interval without a width, as a bootstrap gives for 0 and 100 %, says nothing and is left out.

    Example:
        >>> accuracy_text(0.8731, (0.851, 0.893)), accuracy_text(0.8731, None), accuracy_text(1.0, (1.0, 1.0))
        ('87.3 ±2.1', '87.3', '100.0')
    """
    low, high = interval or (0.0, 0.0)
    return f"{100 * accuracy:.1f}" + (f" ±{50 * (high - low):.1f}" if high > low else "")


def print_unlabelled(title: str, by_role: Mapping[str, Evaluation]) -> None:
    """Print the figures of a run without labels: one row per network, a column for each teacher of the students."""
    pairs = [pair for evaluation in by_role.values() for pair in evaluation.agreement]
    teachers = list(dict.fromkeys(pair.students[1] for pair in pairs))
    rows = []
    for role, evaluation in by_role.items():
        found = {pair.students[1]: pair for pair in evaluation.agreement}
        shared = [_shared(found[teacher]) if teacher in found else ("", "", "") for teacher in teachers]
        spread = ("", "") if evaluation.spread is None else spread_texts(evaluation.spread)
        rows.append((role, evaluation.encoder, *chain.from_iterable(shared), *spread))
    if pairs:
        chance = (f"{pairs[0].chance_overlap:.1%}", "", "0.000") * len(teachers)
        rows.append(("unrelated spaces, expected", "", *chance, "", ""))
        title += f", neighbours in common among the {pairs[0].k} nearest"
    columns = chain.from_iterable((f"with {teacher}", "interval", "CKA") for teacher in teachers)
    print_table(title, ("", "encoder", *columns, *SPREAD_TITLES), rows)


def _shared(agreement: AgreementResult) -> tuple[str, str, str]:
    return f"{agreement.overlap:.1%}", _ends(agreement.overlap_interval), f"{agreement.cka:.3f}"


def bootstrap_note(what: str, bootstrap: Bootstrap) -> str:
    """Say what an interval was drawn from, and whether that is too little."""
    rough = "; intervals of so few units are rough, and rather too narrow" if bootstrap.num_units < FEW_UNITS else ""
    return f"{what}: {bootstrap.num_draws} test sets drawn from {bootstrap.num_units} {bootstrap.unit}s{rough}"


def reading_note(evaluation: Evaluation) -> str:
    """Say how many clips of both parts were embedded, and how many could not be read."""
    return (
        f"{evaluation.num_test} test clips evaluated against {evaluation.num_train} training clips; of both parts "
        f"{len(evaluation.unreadable)} could not be read"
    )


def _print_notes(evaluation: Evaluation) -> None:
    lines = [
        reading_note(evaluation),
    ]
    if evaluation.num_test_seen:
        lines.append(
            f"no test: the student was trained on {evaluation.num_test_seen} of these test clips, as training clips of "
            "another split; for numbers to publish, train one student for each split (docs/how_to/evaluate.md)"
        )
    bootstrap = evaluation.bootstrap
    if bootstrap is not None:
        lines.append(bootstrap_note("intervals", bootstrap))
    lines += [f"  {video}: {reason}" for video, reason in sorted(evaluation.unreadable.items())]
    for line in lines:
        _print_line(line)


def _print_line(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
