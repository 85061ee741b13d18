"""Accuracy over cost: parameters, multiply-adds, time and size of file of several networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crossdistill.report.charts import CostDot, Dot, cost_chart
from crossdistill.report.cost import Cost
from crossdistill.report.svg import short_number


@dataclass(frozen=True)
class CostMeasure:
    """One kind of cost, with the labels of its axis and of the tile with the lowest cost."""

    name: str
    lowest: str
    value_of: Callable[[Cost], float]
    text_of: Callable[[float], str] = short_number
    is_time: bool = False


COSTS = (
    CostMeasure("parameters", "fewest parameters", lambda cost: float(cost.num_parameters)),
    CostMeasure("multiply-adds per clip", "fewest multiply-adds per clip", lambda cost: cost.gmacs * 1e9),
    CostMeasure(
        "time per clip in ms, PyTorch",
        "shortest time per clip in PyTorch",
        lambda cost: 1000 * cost.latency_seconds,
        "{:.3g} ms".format,
        is_time=True,
    ),
    CostMeasure(
        "time per clip in ms, fastest runtime",
        "shortest time per clip in a runtime",
        lambda cost: 1000 * (cost.exported_seconds or 0),
        "{:.3g} ms".format,
        is_time=True,
    ),
    CostMeasure(
        "size of the weight file in bytes",
        "smallest weight file",
        lambda cost: float(cost.num_bytes or 0),
        lambda value: f"{short_number(value)}B",
    ),
)


def cost_charts(networks: Sequence[tuple[Cost, Dot]]) -> list[Markup]:
    """Draw the accuracy of networks over each kind of cost that is known of at least one."""
    charts = []
    for measure in COSTS:
        values = [(measure.value_of(cost), dot) for cost, dot in networks]
        dots = [CostDot(dot.name, dot.value, dot.interval, dot.style, value) for value, dot in values if value]
        if dots:
            charts.append(cost_chart(dots, title=f"Accuracy over {measure.name}", x_label=measure.name))
    return charts
