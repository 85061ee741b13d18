"""Sections of the page for robustness, order, calibration and multi-label, if the run has their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from crossdistill.evaluation.perturbations import reason_texts
from crossdistill.evaluation.protocols.robustness import group_of
from crossdistill.evaluation.results import MEAN_AVERAGE_PRECISION, ProtocolResult
from crossdistill.evaluation.tables import average_precision_texts, calibration_texts, pair_texts, robustness_texts
from crossdistill.report.charts import MAX_STYLES, Series, axes, line_chart, style_of
from crossdistill.report.page import render
from crossdistill.report.results import ResultTable
from crossdistill.report.svg import Scale, box, element, join, percent, picture, text, whole_percent

LEADS = {
    "robustness": "Accuracy on perturbed test clips by severity; 0 is the clean clips. Absolute robustness is 1 minus "
    "the lost accuracy, relative robustness 1 minus the lost share of the clean accuracy (Schiappa et al., CVPR 2023). "
    "The classifier saw clean training clips alone.",
    "order": "Classes that are each other's time reversal, told apart by a classifier that chooses between the two "
    "(chance is 50 %), and accuracy over all classes when the frames are shuffled or reversed. A network that is blind "
    "to order takes a clip that is shown backwards for the same class.",
    "calibration": "Bars: accuracy of the test clips whose confidence is in the bin. Crosses: their mean confidence. A "
    "calibrated classifier has its bars on the diagonal. The expected calibration error (ECE) is the mean distance "
    "between the two over clips, in 15 bins; the temperature was fitted on training clips that the layer has not seen. "
    "The error of few clips is too large by chance; its interval is corrected for that, and can be below the error.",
    "multi-label": "Mean over classes of the average precision of one sigmoid for each class on frozen features. It is "
    "too large where classes have few clips; its interval is corrected for that, and can be below the value.",
}
SIDE_PX = 300
COUNTS_PX = 34


def results_with(tables: Sequence[ResultTable], detail: str) -> Iterator[tuple[str, ProtocolResult]]:
    """Yield title and result of all protocols that have a detail."""
    for table in tables:
        for role, evaluation in table.by_role.items():
            for name, result in evaluation.results.items():
                if detail in result.details:
                    yield f"{role}, {name}, {table.dataset}, split {table.split}", result


def robustness_section(tables: Sequence[ResultTable]) -> Markup:
    """Draw one chart for each group of families, and a table of all."""
    parts = []
    for title, result in results_with(tables, "families"):
        families, clean = result.details["families"], result.details["clean_top1"]
        groups = list(dict.fromkeys(group_of(family) for family in families))
        charts = [
            robustness_chart({f: found for f, found in families.items() if group_of(f) == group}, clean, title=group)
            for group in groups
        ]
        severities = list(next(iter(families.values()))["top1"])
        rows = [
            {"name": family, "texts": robustness_texts(found, [found["top1"][s] for s in severities])}
            for family, found in families.items()
        ]
        overall = {**result.details, "mean_top1": result.top1}
        rows.append({"name": "all", "texts": robustness_texts(overall, [None] * len(severities))})
        values = {
            "title": f"{title}: {percent(clean)} on clean clips",
            "heads": [*(f"severity {s}" for s in severities), "mean", "absolute", "relative"],
            "first": "family",
            "rows": rows,
            "note": "; ".join(f"left out: {text}" for text in reason_texts(result.details.get("left_out", {}))),
        }
        parts += [element("div", *charts, class_="pictures thirds"), render("measures.html", **values)]
    return join(parts)


def robustness_chart(families: dict[str, Any], clean: float, *, title: str) -> Markup:
    """Draw accuracy over severity, one line for each family, from the clean accuracy at 0."""
    series = []
    for i, (family, found) in enumerate(families.items()):
        x = [0.0, *(float(severity) for severity in found["top1"])]
        series.append(Series(family, x, [clean, *found["top1"].values()], style_of(i % MAX_STYLES)))
    title = title if len(families) > 1 else f"{title}: {next(iter(families))}"  # one line has no legend
    return line_chart(series, title=title, x_label="severity", y_format=whole_percent, width_px=340, height_px=220)


def order_section(tables: Sequence[ResultTable]) -> Markup:
    """Show the pairs of classes, and the accuracy of shuffled and reversed clips."""
    parts = []
    for title, result in results_with(tables, "pairs"):
        pairs = result.details["pairs"]
        rows = [{"name": " – ".join(row["classes"]), "texts": pair_texts(row)} for row in pairs]
        heads = ["top-1 of the two, %", "shown backwards: the other, %", "test clips"]
        values = {"title": f"{title}: {percent(result.top1)}", "heads": heads, "first": "classes", "rows": rows}
        parts.append(render("measures.html", **values, note=""))
    changed = list(results_with(tables, "drop"))
    if changed:
        rows = [
            {
                "name": title,
                "texts": [
                    percent(result.details["clean_top1"]),
                    percent(result.top1),
                    f"{100 * result.details['drop']:.1f}",
                ],
            }
            for title, result in changed
        ]
        heads = ["clean", "changed", "drop in points"]
        parts.append(render("measures.html", title="All classes", heads=heads, first="frames", rows=rows, note=""))
    return join(parts)


def calibration_section(tables: Sequence[ResultTable]) -> Markup:
    """Show the calibration error before and after the temperature, with reliability pictures of single splits."""
    rows, charts = [], []
    for title, result in results_with(tables, "ece"):
        details = result.details
        for (what, texts), suffix in zip(calibration_texts(result).items(), ("", "_scaled"), strict=True):
            rows.append({"name": f"{title}: {what}", "texts": texts})
            if "bins" in details:
                note = f"ECE {100 * details[f'ece{suffix}']:.2f} %"
                charts.append(reliability_chart(details[f"bins{suffix}"], title=f"{title}: {what}", note=note))
    heads = ["ECE, %", "interval", "negative log-likelihood"]
    table = render("measures.html", title="Calibration error", heads=heads, first="", rows=rows, note="")
    return join([table, element("div", *charts, class_="pictures")])


def multi_label_section(tables: Sequence[ResultTable]) -> Markup:
    """Show the mean average precision, with its interval."""
    rows = [
        {"name": title, "texts": [*average_precision_texts(result), str(result.num_test)]}
        for title, result in results_with(tables, MEAN_AVERAGE_PRECISION)
    ]
    heads = ["mean average precision, %", "interval", "test clips"]
    return render("measures.html", title="Several classes a video", heads=heads, first="", rows=rows, note="")


def reliability_chart(bins: Sequence[dict[str, float]], *, title: str, note: str) -> Markup:
    """Draw the accuracy of every bin of confidence over its width, its mean confidence, and the number of clips below.

    Args:
        bins: As ``reliability_bins`` returns them.
        title: Title of the picture.
        note: Small text beside it.
    """
    width, height = SIDE_PX + 64, SIDE_PX + 48 + COUNTS_PX
    across, up = Scale(0, 1, 52, 52 + SIDE_PX), Scale(0, 1, SIDE_PX + 10, 10)
    parts = axes(across, up, x_label="confidence", y_format=whole_percent, height_px=height)
    parts.append(
        element("line", x1=across(0), x2=across(1), y1=up(0), y2=up(1), class_="line chance", stroke="currentColor")
    )
    most = max(1.0, *(each["num"] for each in bins))
    for i, each in enumerate(bins):
        if not each["num"]:
            continue
        left, right = across(i / len(bins)), across((i + 1) / len(bins))
        said = f"{each['num']:g} clips: confidence {percent(each['confidence'])}, accuracy {percent(each['accuracy'])}"
        tooltip = element("title", said)
        top = up(each["accuracy"])
        parts.append(box(left + 1, top, right - left - 2, max(1.0, up(0) - top), tooltip, class_="bar student"))
        x, y = across(each["confidence"]), up(each["confidence"])
        parts.append(element("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="mark", fill="none"))
        size = COUNTS_PX * each["num"] / most
        look = {"class_": "bar random"}
        parts.append(box(left + 1, up(0) + 22, right - left - 2, max(1.0, size), element("title", said), **look))
    parts.append(text(across(0) - 7, up(0) + 34, "clips", anchor="end", class_="tick"))
    heading = element("h3", title, " ", element("small", note))
    return element("figure", heading, picture(width, height, *parts, label=f"{title}; {note}"))
