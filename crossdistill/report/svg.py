"""SVG elements with escaped content, axis scales, ticks and number formats. CSS classes set the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Attribute = str | float | int | None


def element(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """Create an SVG or HTML element. Text and attributes are escaped; ``Markup`` is used as it is.

    Names of attributes have ``_`` for ``-``; a final ``_`` is dropped (``class_``). None omits an attribute.

    Example:
        >>> print(element("text", "a < b", x=1.5, class_="label"))
        <text x="1.5" class="label">a &lt; b</text>
    """
    pairs = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    # Tag names come from this package. Names from datasets and runs are escaped by `format` and `escape`.
    tag = Markup(name)
    return Markup("<{}{}>{}</{}>").format(tag, Markup("").join(pairs), join(children), tag)


def join(parts: Sequence[str | Markup]) -> Markup:
    """Concatenate elements; text is escaped."""
    return Markup("").join(escape(part) for part in parts)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """Create a line of text; ``anchor`` is start, middle or end."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def box(x: float, y: float, width: float, height: float, *children: str | Markup, **look: Attribute) -> Markup:
    """Create a rectangle from its upper left corner."""
    return element("rect", *children, x=x, y=y, width=width, height=height, **look)


SHAPES = ("circle", "square", "triangle", "diamond")  # also CSS classes


def shape(name: str, x: float, y: float, radius: float, *children: str | Markup, **look: Attribute) -> Markup:
    """Create a mark, one of ``SHAPES``, around a point; all have about the area of a circle with this radius in px."""
    if name == "circle":
        return element("circle", *children, cx=x, cy=y, r=radius, **look)
    if name == "square":
        side = radius * 1.75
        return box(x - side / 2, y - side / 2, side, side, *children, **look)
    reach = radius * 1.25
    corners = {
        "triangle": ((0, -reach), (-reach, 0.8 * reach), (reach, 0.8 * reach)),
        "diamond": ((0, -reach), (reach, 0), (0, reach), (-reach, 0)),
    }[name]
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners)
    return element("polygon", *children, points=points, **look)


def picture(width_px: float, height_px: float, *parts: str | Markup, label: str) -> Markup:
    """Create an SVG that is never shown larger than its own size; the label describes it for screen readers."""
    view, style = f"0 0 {width_px:g} {height_px:g}", f"max-width:{width_px:g}px"
    return element("svg", *parts, viewBox=view, style=style, role="img", aria_label=label)


def _plain(value: str | float | int) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """Map from values to pixels along an axis, linear or logarithmic."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value in px."""
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values within the scale."""
        return log_ticks(self.low, self.high) if self.is_log else nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten within a range."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within a range, and multiples of them if there are fewer than three."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(found) >= 3:
            return found
    return found or [low]


def short_number(value: float) -> str:
    """Format a number for an axis or a tile.

    Example:
        >>> short_number(73_032), short_number(1.2e6), short_number(0.05)
        ('73 k', '1.2 M', '0.05')
    """
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """Format a share in [0, 1] as a percentage."""
    return f"{100 * share:.{digits}f} %"


def whole_percent(share: float) -> str:
    """Format a share in [0, 1] as a percentage without decimals."""
    return percent(share, 0)
