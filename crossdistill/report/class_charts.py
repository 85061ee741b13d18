"""Charts with one entry per class: confusion matrix, bars by class, and points of t-SNE.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from numpy.typing import NDArray

from crossdistill.report.charts import vertical_grid
from crossdistill.report.svg import SHAPES, Scale, box, element, join, picture, shape, text, whole_percent

MAX_NAMED_CLASSES = 45  # beside the confusion matrix
MAX_BARS = 60
SCALE_STEPS = 10
MAX_NAME_LETTERS = 32
# Readable on light and dark backgrounds. Together with the four shapes they distinguish 36 classes.
COLOURS = ("#4c78d8", "#e0803a", "#3a9e6e", "#d0495a", "#8a63c9", "#b08a2a", "#2a9db5", "#d067a8", "#7d8790")


@dataclass(frozen=True)
class Bar:
    """Bar of one class, with a tick at a second value."""

    name: str
    value: float
    tick: float | None = None
    tooltip: str = ""


def shortened(name: str) -> str:
    """Cut a class name to the length that fits beside a row."""
    return name if len(name) <= MAX_NAME_LETTERS else name[: MAX_NAME_LETTERS - 1] + "…"


def confusion_chart(counts_cc: NDArray, classes: Sequence[str]) -> Markup:
    """Draw a confusion matrix: the number of clips [C, C] by true class (row) and predicted class (column)."""
    num = len(classes)
    is_named = num <= MAX_NAMED_CLASSES
    cell = max(4.0, min(24.0, 560 / num))
    left, top = (max(len(shortened(name)) for name in classes) * 6.3 + 14, 0) if is_named else (14, 0)
    side = cell * num
    parts = [box(left, top, side, side, class_="plane")]
    for row in range(num):
        total = counts_cc[row].sum()
        for column in counts_cc[row].nonzero()[0].tolist():
            count = int(counts_cc[row, column])
            title = element("title", f"{classes[row]} → {classes[column]}: {count} of {int(total)}")
            look = {"class_": "right" if row == column else "wrong", "fill_opacity": _opacity(float(count / total))}
            x, y = left + column * cell + 0.5, top + row * cell + 0.5
            parts.append(box(x, y, cell - 1, cell - 1, title, **look))
    height = side + 8.0
    if is_named:
        parts += [text(left - 8, (i + 0.5) * cell + 4, shortened(classes[i]), anchor="end") for i in range(num)]
        parts += [_slanted(left + (i + 0.62) * cell, side + 10, shortened(classes[i])) for i in range(num)]
        height = side + max(len(shortened(name)) for name in classes) * 5.2 + 22
    label = f"confusion matrix of {num} classes; rows are the true classes"
    return picture(left + side + 12, height, *parts, label=label)


def confusion_scale() -> Markup:
    """Draw the colour scale of ``confusion_chart``."""
    cell, left, top = 22, 150, 2
    shares = [step / SCALE_STEPS for step in range(1, SCALE_STEPS + 1)]
    parts = []
    for row, (kind, name) in enumerate((("right", "correct"), ("wrong", "incorrect"))):
        y = top + row * (cell + 2)
        parts.append(text(left - 8, y + cell / 2 + 4, name, anchor="end"))
        for i, share in enumerate(shares):
            title = element("title", f"{name}: {whole_percent(share)}")
            parts.append(box(left + i * cell, y, cell - 1, cell, title, class_=kind, fill_opacity=_opacity(share)))
    right, below = left + SCALE_STEPS * cell, top + 2 * (cell + 2)
    words = "share of the clips of the row; no colour: 0 %"
    numbers = [
        text(left + (i + 0.5) * cell, below + 12, whole_percent(shares[i]), anchor="middle", class_="tick")
        for i in (0, SCALE_STEPS // 2 - 1, SCALE_STEPS - 1)
    ]
    parts.append(text(right + 18, top + cell + 5, words, class_="label"))
    return picture(right + 270, below + 28, join(parts), *numbers, label="colour scale of the confusion matrix")


def _opacity(share: float) -> float:
    """Opacity of a cell by its share of the row; linear, and visible for the smallest share."""
    return 0.12 + 0.88 * share


def _slanted(x: float, y: float, content: str) -> Markup:
    return element("text", content, x=x, y=y, text_anchor="end", transform=f"rotate(-58 {x:.1f} {y:.1f})")


ROW_PX, NAMES_PX, BARS_WIDTH_PX = 19, 224, 760  # of charts of bars


def change_chart(bars: Sequence[Bar], *, label: str) -> Markup:
    """Draw changes from -1 to 1, the best first; bars to the right are gains."""
    shown = _best_and_worst(bars)
    reach = max(0.05, *(abs(bar.value) for bar in shown))
    across = Scale(-reach, reach, NAMES_PX + 46, BARS_WIDTH_PX - 46)
    height = ROW_PX * len(shown) + 6
    parts = [element("line", x1=across(0), x2=across(0), y1=0, y2=height, class_="axis")]
    for i, bar in enumerate(shown):
        y = i * ROW_PX + 3
        start, end = sorted((across(0), across(bar.value)))
        is_gain = bar.value >= 0
        number = f"{100 * bar.value:+.0f}".replace("-", "−") if bar.value else "0"
        x, anchor = (end + 6, "start") if is_gain else (start - 6, "end")
        parts.append(text(NAMES_PX - 4, y + 13, shortened(bar.name), anchor="end"))
        parts.append(_bar(bar, start, end, y, class_="gain" if is_gain else "loss"))
        parts.append(text(x, y + 13, number, anchor=anchor, class_="value"))
    return picture(BARS_WIDTH_PX, height, *parts, label=label)


def bar_chart(bars: Sequence[Bar], *, label: str, style: str) -> Markup:
    """Draw a share from 0 to 1 for each class, with a tick at a second value."""
    shown = _best_and_worst(bars)
    across = Scale(0, 1, NAMES_PX, BARS_WIDTH_PX - 50)
    height = ROW_PX * len(shown) + 22
    parts = vertical_grid(across, top=0, bottom=height - 20)
    for i, bar in enumerate(shown):
        y = i * ROW_PX + 2
        parts.append(text(NAMES_PX - 8, y + 13, shortened(bar.name), anchor="end"))
        parts.append(_bar(bar, NAMES_PX, across(bar.value), y, class_=f"bar {style}"))
        if bar.tick is not None:
            x = across(bar.tick)
            parts.append(element("line", x1=x, x2=x, y1=y, y2=y + 17, class_="mark"))
    return picture(BARS_WIDTH_PX, height, *parts, label=label)


def _bar(bar: Bar, start: float, end: float, y: float, *, class_: str) -> Markup:
    """Draw a bar between two positions; even an empty one is visible."""
    return box(start, y + 2, max(1.0, end - start), 13, element("title", bar.tooltip), rx=2, class_=class_)


def _best_and_worst(bars: Sequence[Bar]) -> list[Bar]:
    """Sort bars, the best first; with more than ``MAX_BARS`` keep the best and the worst half."""
    ordered = sorted(bars, key=lambda bar: -bar.value)
    half = MAX_BARS // 2
    return ordered if len(ordered) <= MAX_BARS else [*ordered[:half], *ordered[-half:]]


def point_chart(points_n2: NDArray, labels: Sequence[int], names: Sequence[str], *, title: str, note: str) -> Markup:
    """Draw clips as points of a plane, in coordinates [N, 2] of any scale. ``note`` is small text beside the title.

    Each clip has a label, -1 if it is unknown, and a name for its tooltip.
    """
    size, margin = 430, 12
    low, high = points_n2.min(0), points_n2.max(0)
    spread = (high - low).clip(min=1e-9)
    places = margin + (points_n2 - low) / spread * (size - 2 * margin)
    marks = [_mark(float(x), float(y), label, name) for (x, y), label, name in zip(places, labels, names, strict=True)]
    frame = box(0.5, 0.5, size - 1, size - 1, rx=6, class_="plane")
    heading = element("h3", title, " ", element("small", note))
    return element("figure", heading, picture(size, size, frame, *marks, label=title))


def _mark(x: float, y: float, label: int, tooltip: str) -> Markup:
    """Draw a clip in the colour and shape of its class; the combinations repeat after 36 classes."""
    title = element("title", tooltip) if tooltip else ""
    look = {"fill": COLOURS[label % len(COLOURS)] if label >= 0 else COLOURS[-1], "class_": f"clip-mark c{label}"}
    name = SHAPES[label // len(COLOURS) % len(SHAPES)] if label >= 0 else SHAPES[0]
    return shape(name, x, y, 4.2, title, **look)


def class_legend(classes: Sequence[str]) -> Markup:
    """Create a legend of all classes; its style fades the points of other classes while one class is hovered."""
    size: dict[str, str | int] = {"viewBox": "0 0 14 14", "width": 14, "height": 14, "aria_hidden": "true"}
    items = [
        element("li", element("svg", _mark(7, 7, i, ""), **size), name, class_=f"c{i}")
        for i, name in enumerate(classes)
    ]
    rules = "".join(f".projections:has(.c{i}:hover) .clip-mark:not(.c{i}){{opacity:.1}}" for i in range(len(classes)))
    return element("ul", *items, class_="classes") + element("style", Markup(rules))
