"""Small SVG pictures: escaped elements, scales and ticks. Colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Attribute = str | float | int | None


def element(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """An SVG or HTML element; text and attributes are escaped, ``Markup`` is taken as it is.

    Args:
        name: Of the element.
        children: Inside of it.
        attributes: With ``_`` for ``-``, and one at the end dropped (``class_``); None leaves one out.
    """
    pairs = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    # The names are this package's own; what people named is escaped by format and escape.
    tag = Markup(name)
    return Markup("<{}{}>{}</{}>").format(tag, Markup("").join(pairs), join(children), tag)


def join(parts: Sequence[str | Markup]) -> Markup:
    """Elements after each other."""
    return Markup("").join(escape(part) for part in parts)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """A line of text; ``anchor`` is start, middle or end."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


SHAPES = ("circle", "square", "triangle", "diamond")
"""Of marks; also classes of the style sheet."""


def shape(name: str, x: float, y: float, radius: float, *children: str | Markup, **look: Attribute) -> Markup:
    """A mark around a point, of about the same area in every shape.

    Args:
        name: One of ``SHAPES``.
        x: Of its middle.
        y: Of its middle.
        radius: Of the circle.
        children: Inside of it, for example its title.
        look: More attributes.
    """
    if name == "circle":
        return element("circle", *children, cx=x, cy=y, r=radius, **look)
    if name == "square":
        side = radius * 1.75
        return element("rect", *children, x=x - side / 2, y=y - side / 2, width=side, height=side, **look)
    reach = radius * 1.25
    corners = {
        "triangle": ((0, -reach), (-reach, 0.8 * reach), (reach, 0.8 * reach)),
        "diamond": ((0, -reach), (reach, 0), (0, reach), (-reach, 0)),
    }[name]
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners)
    return element("polygon", *children, points=points, **look)


def picture(width_px: float, height_px: float, *parts: str | Markup, label: str) -> Markup:
    """A whole SVG, never shown larger than it is.

    Args:
        width_px: Of its own coordinates.
        height_px: Of its own coordinates.
        parts: Elements.
        label: What it shows, for who cannot see it.
    """
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width_px:g} {height_px:g}",
        style=f"max-width:{width_px:g}px",
        role="img",
        aria_label=label,
    )


def _plain(value: str | float | int) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """Values to places along an axis, linear or logarithmic."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale."""
        return log_ticks(self.low, self.high) if self.is_log else nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten within a range."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within a range, and 2 and 5 times them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(found) >= 3:
            return found
    return found or [low]


def short_number(value: float) -> str:
    """A number for an axis or a tile: 73 k, 1.2 M, 0.05."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.{digits}f} %"
