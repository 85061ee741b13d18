"""Line charts, charts of accuracies with intervals, and charts of accuracy over cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crossdistill.report.svg import SHAPES, Scale, element, percent, picture, shape, short_number, text, whole_percent

MAX_POINTS = 400  # of a line; longer lines are averaged
MAX_MARKED_POINTS = 12  # of a line whose points are all marked
NUM_MARKS = 6  # along a longer line, if its shape is not the default one
NUM_COLOURS = 8  # CSS classes series-0, series-1, …
MAX_STYLES = NUM_COLOURS * len(SHAPES)
"""Number of distinguishable combinations of colour and shape."""
MIN_DISTANCE_PX = 3.0  # between dots of equal cost; smaller than a dot, so that the cost stays readable
CHARACTER_PX = 7  # maximum width of a character of a group's title


@dataclass(frozen=True)
class Series:
    """A line of a chart. The style is its CSS classes of colour and shape."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str


@dataclass(frozen=True)
class Dot:
    """A measured share, with its interval if it has one. The style is its CSS classes of colour and shape."""

    name: str
    value: float
    interval: tuple[float, float] | None
    style: str


@dataclass(frozen=True)
class CostDot(Dot):
    """An accuracy with the cost of its network."""

    cost: float


def style_of(position: int) -> str:
    """Return the CSS classes of the n-th series, below ``MAX_STYLES``: first all colours, then the next shape."""
    colour, name = f"series-{position % NUM_COLOURS}", SHAPES[position // NUM_COLOURS]
    return colour if name == SHAPES[0] else f"{colour} {name}"


def draw_dot(x: float, y: float, radius: float, *children: str | Markup, style: str) -> Markup:
    """Draw a mark in the colour and shape of a style."""
    return shape(_shape_of(style), x, y, radius, *children, class_=f"dot {style}")


def _shape_of(style: str) -> str:
    return next((name for name in SHAPES if name in style.split()), SHAPES[0])


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """Create an HTML legend of names and styles; empty for a single item."""
    parts = [element("span", element("i", class_=f"key {style}"), name) for name, style in items]
    return element("p", *parts, class_="legend") if len(parts) > 1 else Markup("")


def thinned(series: Series) -> Series:
    """Average neighbouring points of a line with more than ``MAX_POINTS``."""
    size = math.ceil(len(series.x) / MAX_POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.x), size)
    x, y = ([sum(values[i : i + size]) / len(values[i : i + size]) for i in starts] for values in (series.x, series.y))
    return Series(series.name, x, y, series.style)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_format: Callable[[float], str] = short_number,
    width_px: int = 460,
    height_px: int = 240,
    is_log_x: bool = False,
) -> Markup:
    """Draw one or more lines of finite values over a common axis, with a title and a legend."""
    lines = [thinned(one) for one in series]
    xs, ys = [x for one in lines for x in one.x], [y for one in lines for y in one.y]
    low = min(0.0, *ys)
    high = max(ys) if max(ys) > low else low + 1
    across = Scale(min(xs), max(xs), 52, width_px - 12, is_log_x)
    up = Scale(low, high + 0.04 * (high - low), height_px - 38, 10)
    parts = axes(across, up, x_label=x_label, y_format=y_format, height_px=height_px)
    for one in lines:
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
        name = element("title", one.name)
        parts.append(element("polyline", name, points=points, class_=f"line {one.style}"))
        parts += [draw_dot(across(one.x[i]), up(one.y[i]), 3.2, name, style=one.style) for i in _marked(one)]
    chart = picture(width_px, height_px, *parts, label=title)
    return element("figure", element("h3", title), legend([(one.name, one.style) for one in series]), chart)


def _marked(series: Series) -> Sequence[int]:
    """Return the positions of marks: all points of a short line, a few of a long one that its colour does not tell."""
    num = len(series.x)
    if num <= MAX_MARKED_POINTS:
        return range(num)
    is_first_shape = _shape_of(series.style) == SHAPES[0]
    return [] if is_first_shape else [(2 * i + 1) * num // (2 * NUM_MARKS) for i in range(NUM_MARKS)]


def axes(across: Scale, up: Scale, *, x_label: str, y_format: Callable[[float], str], height_px: float) -> list[Markup]:
    """Draw a line at every tick of the vertical axis, with its value on the left, and the horizontal axis below."""
    left, right, y = across.start_px, across.end_px, up.start_px
    parts = []
    for tick in up.ticks(4):
        parts.append(element("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
        parts.append(text(left - 7, up(tick) + 4, y_format(tick), anchor="end", class_="tick"))
    parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="axis"))
    parts += [text(across(tick), y + 16, short_number(tick), anchor="middle", class_="tick") for tick in across.ticks()]
    return [*parts, text((left + right) / 2, height_px - 4, x_label, anchor="middle", class_="label")]


def vertical_grid(across: Scale, *, top: float, bottom: float, num_ticks: int = 5) -> list[Markup]:
    """Draw a line at every tick of a horizontal axis of shares, with its percentage below."""
    parts = []
    for tick in across.ticks(num_ticks):
        x = across(tick)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 16, whole_percent(tick), anchor="middle", class_="tick"))
    return parts


def interval_chart(groups: Sequence[tuple[str, Sequence[Dot]]], *, label: str) -> Markup:
    """Draw shares with their intervals in titled groups (for example protocols), one line per dot."""
    row_px, gap_px, width_px = 17, 12, 976
    left = max(150, min(width_px // 2, 28 + CHARACTER_PX * max(len(title) for title, _ in groups)))
    highest = max(value for _, dots in groups for dot in dots for value in (dot.value, *(dot.interval or ())))
    across = Scale(0, _round_up(highest), left, width_px - 64)
    y = 8.0
    parts: list[Markup] = []
    for title, dots in groups:
        parts.append(text(left - 14, y + row_px * len(dots) / 2 + 4, title, anchor="end", class_="group"))
        for dot in dots:
            parts.append(_interval(dot, across, y + row_px / 2))
            y += row_px
        y += gap_px
    grid = vertical_grid(across, top=4, bottom=y - 4, num_ticks=6)
    chart = picture(width_px, y + 18, *grid, *parts, label=label)
    styles = {dot.name: dot.style for _, dots in groups for dot in dots}
    return element("figure", legend(list(styles.items())), chart, class_="wide")


def _interval(dot: Dot, across: Scale, y: float) -> Markup:
    at = end = across(dot.value)
    parts = [draw_dot(at, y, 4.5, style=dot.style)]
    tooltip = f"{dot.name}: {percent(dot.value)}"
    if dot.interval is not None:
        low, end = (across(value) for value in dot.interval)
        parts.insert(0, element("line", x1=low, x2=end, y1=y, y2=y, class_=f"whisker {dot.style}"))
        tooltip += f" ({100 * dot.interval[0]:.1f}–{100 * dot.interval[1]:.1f})"
    parts.append(text(max(end, at) + 9, y + 4, f"{100 * dot.value:.1f}", class_="value"))
    return element("g", element("title", tooltip), *parts)


def _round_up(share: float) -> float:
    """Round up to a multiple of 0.1, at most 1."""
    return min(1.0, math.ceil(share * 10 + 1e-9) / 10)


def cost_chart(dots: Sequence[CostDot], *, title: str, x_label: str) -> Markup:
    """Draw accuracy over cost on a logarithmic axis, without a legend."""
    width_px, height_px = 460, 320
    costs = [dot.cost for dot in dots]
    across = Scale(min(costs) / 1.6, max(costs) * 1.6, 52, width_px - 14, is_log=True)
    bounds = [value for dot in dots for value in (dot.value, *(dot.interval or ()))]
    up = Scale(math.floor(min(bounds) * 10) / 10, _round_up(max(bounds)), height_px - 40, 12)
    parts = axes(across, up, x_label=x_label, y_format=whole_percent, height_px=height_px)
    ordered = sorted(dots, key=lambda one: -one.value)
    for x, dot in zip(_side_by_side([across(dot.cost) for dot in ordered]), ordered, strict=True):
        y = up(dot.value)
        if dot.interval is not None:
            low, high = (up(value) for value in dot.interval)
            parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {dot.style}"))
        tooltip = element("title", f"{dot.name}: {percent(dot.value)}, {short_number(dot.cost)}")
        parts.append(draw_dot(x, y, 5.5, tooltip, style=dot.style))
    return element("figure", element("h3", title), picture(width_px, height_px, *parts, label=title))


def _side_by_side(places: Sequence[float]) -> list[float]:
    """Move positions apart that would overlap."""
    moved: list[float] = []
    for place in places:
        near = sum(abs(place - other) < MIN_DISTANCE_PX for other in places[: len(moved)])
        moved.append(place + MIN_DISTANCE_PX * ((near + 1) // 2) * (1 if near % 2 else -1))
    return moved
