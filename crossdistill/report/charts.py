"""Charts of numbers: lines, intervals, and cost against accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from crossdistill.report.svg import SHAPES, Scale, element, join, percent, picture, shape, short_number, text

MAX_POINTS = 400
MAX_MARKED_POINTS = 12
NUM_COLOURS = 8
"""Of the style sheet's classes ``series-0`` …"""
MAX_TOLD_APART = NUM_COLOURS * len(SHAPES)
"""Things of equal rank that look different."""
NUM_MARKS = 6
"""Along a long line of a shape of its own."""
DODGE_PX = 3.0
"""Between dots of the same cost: less than a dot, so that none seems to be elsewhere."""
CHARACTER_PX = 7
"""Of a group's title, at most."""


@dataclass(frozen=True)
class Series:
    """A line, with the classes of its colour and shape."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Dot:
    """A measured share, with its interval where it has one."""

    name: str
    value: float
    ends: tuple[float, float] | None
    colour: str


@dataclass(frozen=True)
class CostDot:
    """What a network costs and what it gets right."""

    name: str
    cost: float
    accuracy: float
    ends: tuple[float, float] | None
    colour: str


def colour_of(position: int) -> str:
    """The classes of the n-th of several things of equal rank: a colour, and where colours begin anew the next shape.

    Args:
        position: Below ``MAX_TOLD_APART``.
    """
    colour, name = f"series-{position % NUM_COLOURS}", SHAPES[position // NUM_COLOURS]
    return colour if name == SHAPES[0] else f"{colour} {name}"


def draw_dot(x: float, y: float, radius: float, *children: str | Markup, colour: str) -> Markup:
    """A mark of the shape and colour that the classes ``colour`` name."""
    return shape(_shape_of(colour), x, y, radius, *children, class_=f"dot {colour}")


def _shape_of(colour: str) -> str:
    return next((name for name in SHAPES if name in colour.split()), SHAPES[0])


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """Names with their colours, as HTML; of one thing alone there is nothing to tell apart."""
    parts = [element("span", element("i", class_=f"key {colour}"), name) for name, colour in items]
    return element("p", *parts, class_="legend") if len(parts) > 1 else Markup("")


def thinned(series: Series) -> Series:
    """Means of neighbouring points where there are more than a picture can show."""
    size = math.ceil(len(series.x) / MAX_POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.x), size)
    x, y = ([sum(values[i : i + size]) / len(values[i : i + size]) for i in starts] for values in (series.x, series.y))
    return Series(series.name, x, y, series.colour)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_format: Callable[[float], str] = short_number,
    width_px: int = 460,
    height_px: int = 240,
    is_log_x: bool = False,
    from_zero: bool = True,
) -> Markup:
    """Lines over a common axis, with a title and a legend.

    Args:
        series: At least one, of finite values.
        title: Above it.
        x_label: Below it.
        y_format: How the values of the vertical axis are written.
        width_px: Of the picture.
        height_px: Of the picture.
        is_log_x: Whether the horizontal axis is logarithmic.
        from_zero: Whether the vertical axis begins at 0.
    """
    lines = [thinned(one) for one in series]
    xs, ys = [x for one in lines for x in one.x], [y for one in lines for y in one.y]
    low = min(0.0, *ys) if from_zero else min(ys)
    high = max(ys) if max(ys) > low else low + 1
    across = Scale(min(xs), max(xs), 52, width_px - 12, is_log_x)
    up = Scale(low, high + 0.04 * (high - low), height_px - 38, 10)
    parts = [horizontal_grid(up, left=52, right=width_px - 12, text_of=y_format)]
    parts += [x_axis(across, y=height_px - 38, label=x_label, height_px=height_px)]
    for one in lines:
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
        name = element("title", one.name)
        parts.append(element("polyline", name, points=points, class_=f"line {one.colour}"))
        parts += [draw_dot(across(one.x[i]), up(one.y[i]), 3.2, name, colour=one.colour) for i in _marked(one)]
    chart = picture(width_px, height_px, *parts, label=title)
    return element("figure", element("h3", title), legend([(s.name, s.colour) for s in series]), chart)


def _marked(series: Series) -> Sequence[int]:
    """Positions of the points with a mark: all of a short line, some of a long one whose colour another line has."""
    num = len(series.x)
    if num <= MAX_MARKED_POINTS:
        return range(num)
    is_first_shape = _shape_of(series.colour) == SHAPES[0]
    return [] if is_first_shape else [(2 * i + 1) * num // (2 * NUM_MARKS) for i in range(NUM_MARKS)]


def horizontal_grid(up: Scale, *, left: float, right: float, text_of: Callable[[float], str]) -> Markup:
    """Lines at the ticks of a vertical axis, with their values on the left."""
    parts = []
    for tick in up.ticks(4):
        parts.append(element("line", x1=left, x2=right, y1=up(tick), y2=up(tick), class_="grid"))
        parts.append(text(left - 7, up(tick) + 4, text_of(tick), anchor="end", class_="tick"))
    return join(parts)


def x_axis(across: Scale, *, y: float, label: str, height_px: float) -> Markup:
    """The horizontal axis."""
    parts = [element("line", x1=across.start_px, x2=across.end_px, y1=y, y2=y, class_="axis")]
    parts += [text(across(tick), y + 16, short_number(tick), anchor="middle", class_="tick") for tick in across.ticks()]
    middle = (across.start_px + across.end_px) / 2
    return join([*parts, text(middle, height_px - 4, label, anchor="middle", class_="label")])


def interval_chart(groups: Sequence[tuple[str, Sequence[Dot]]], *, label: str, width_px: int = 976) -> Markup:
    """Shares with their intervals, in groups: one line for each dot.

    Args:
        groups: Title of the group (a protocol, say) and its dots.
        label: What the chart shows.
        width_px: Of the picture.
    """
    row_px, gap_px = 17, 12
    left = max(150, min(width_px // 2, 28 + CHARACTER_PX * max(len(title) for title, _ in groups)))
    across = Scale(0, _round_up(max(_high(dot) for _, dots in groups for dot in dots)), left, width_px - 64)
    y = 8.0
    parts: list[Markup] = []
    for title, dots in groups:
        parts.append(text(left - 14, y + row_px * len(dots) / 2 + 4, title, anchor="end", class_="group"))
        for dot in dots:
            parts.append(_interval(dot, across, y + row_px / 2))
            y += row_px
        y += gap_px
    lines = [
        element("line", x1=across(tick), x2=across(tick), y1=4, y2=y - 4, class_="grid") for tick in across.ticks(6)
    ]
    names = [text(across(tick), y + 12, percent(tick, 0), anchor="middle", class_="tick") for tick in across.ticks(6)]
    chart = picture(width_px, y + 18, *lines, *parts, *names, label=label)
    colours = {dot.name: dot.colour for _, dots in groups for dot in dots}
    return element("figure", legend(list(colours.items())), chart, class_="wide")


def _interval(dot: Dot, across: Scale, y: float) -> Markup:
    at = across(dot.value)
    parts = [draw_dot(at, y, 4.5, colour=dot.colour)]
    end = at
    said = f"{dot.name}: {percent(dot.value)}"
    if dot.ends is not None:
        low, end = (across(value) for value in dot.ends)
        parts.insert(0, element("line", x1=low, x2=end, y1=y, y2=y, class_=f"whisker {dot.colour}"))
        said += f" ({100 * dot.ends[0]:.1f}–{100 * dot.ends[1]:.1f})"
    parts.append(text(max(end, at) + 9, y + 4, f"{100 * dot.value:.1f}", class_="value"))
    return element("g", element("title", said), *parts)


def _high(dot: Dot) -> float:
    return dot.value if dot.ends is None else max(dot.value, dot.ends[1])


def _round_up(share: float) -> float:
    """To the next tenth, at most 1."""
    return min(1.0, math.ceil(share * 10 + 1e-9) / 10)


def cost_chart(dots: Sequence[CostDot], *, title: str, x_label: str, width_px: int = 460) -> Markup:
    """Accuracy over cost, the cost on a logarithmic axis; a legend has to say which dot is which."""
    height_px = 320
    costs = [dot.cost for dot in dots]
    across = Scale(min(costs) / 1.6, max(costs) * 1.6, 52, width_px - 14, is_log=True)
    bounds = [value for dot in dots for value in (dot.accuracy, *(dot.ends or ()))]
    up = Scale(math.floor(min(bounds) * 10) / 10, _round_up(max(bounds)), height_px - 40, 12)
    parts = [
        horizontal_grid(up, left=52, right=width_px - 14, text_of=lambda share: percent(share, 0)),
        x_axis(across, y=height_px - 40, label=x_label, height_px=height_px),
    ]
    ordered = sorted(dots, key=lambda one: -one.accuracy)
    places = _side_by_side([across(dot.cost) for dot in ordered])
    for x, dot in zip(places, ordered, strict=True):
        y = up(dot.accuracy)
        if dot.ends is not None:
            low, high = (up(value) for value in dot.ends)
            parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {dot.colour}"))
        said = element("title", f"{dot.name}: {percent(dot.accuracy)}, {short_number(dot.cost)}")
        parts.append(draw_dot(x, y, 5.5, said, colour=dot.colour))
    return element("figure", element("h3", title), picture(width_px, height_px, *parts, label=title))


def _side_by_side(places: Sequence[float]) -> list[float]:
    """Moved apart where several would stand on each other."""
    moved: list[float] = []
    for place in places:
        near = sum(abs(place - other) < DODGE_PX for other in places[: len(moved)])
        moved.append(place + DODGE_PX * ((near + 1) // 2) * (1 if near % 2 else -1))
    return moved
