"""Training curves of a run: losses, accuracies during training, learning rate, speed and waiting over steps."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from crossdistill.report.charts import Series, line_chart, style_of
from crossdistill.report.record import MetricsLine, UnavailableError
from crossdistill.report.svg import element, short_number, whole_percent

LR, KNN, SPEED, WAIT = "lr", "knn", "clips_per_second", "data_wait"
ACCURACIES = {KNN: "1-NN of held-out clips", "accuracy": "training batches"}
NOT_LOSSES = ("step", "epoch", "seconds", LR, SPEED, WAIT, "bank_fill", "grad_norm", *ACCURACIES)


def training_curves(metrics: Sequence[MetricsLine]) -> Markup:
    """Draw all curves of a run."""
    if not metrics:
        raise UnavailableError("the run has no metrics.jsonl with a complete line.")
    shown = {"Loss": _losses(metrics), "Accuracy during training": list(ACCURACIES)}
    shown |= {"Learning rate": [LR], "Clips per second": [SPEED], "Time spent waiting for clips": [WAIT]}
    charts = [_chart(title, metrics, keys) for title, keys in shown.items()]
    return element("div", *charts, class_="pictures")


def _losses(metrics: Sequence[MetricsLine]) -> list[str]:
    keys = dict.fromkeys(key for line in metrics for key in line if key not in NOT_LOSSES)
    terms = [key for key in keys if key != "loss"]
    # A single term equals the loss.
    return ["loss", *terms] if len(terms) > 1 else ["loss"] if "loss" in keys else terms


def _chart(title: str, metrics: Sequence[MetricsLine], keys: Sequence[str]) -> Markup:
    """Draw lines of several keys; nothing if no line of metrics has one of them."""
    points = [(ACCURACIES.get(key, key), *points_of(metrics, key)) for key in keys]
    found = [(name, steps, values) for name, steps, values in points if steps]
    if not found:
        return Markup("")
    series = [Series(name, steps, values, style_of(i)) for i, (name, steps, values) in enumerate(found)]
    y_format = whole_percent if keys[0] in (WAIT, *ACCURACIES) else short_number
    return line_chart(series, title=title, x_label="step", y_format=y_format)


def points_of(metrics: Sequence[MetricsLine], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the lines that contain a key."""
    chosen = [line for line in metrics if key in line]
    return [line["step"] for line in chosen], [line[key] for line in chosen]
