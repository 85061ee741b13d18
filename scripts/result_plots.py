"""Plots of docs/results as SVG."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from result_rows import LOW_SHOT, MEASURES, PICTURE_MEASURES, Row, measures_of, read, signed

LEFT, RIGHT, TOP, ROW_HEIGHT = 440, 20, 86, 24
COLOURS = {"1nn": "#c2571a", "linear": "#1f5fbf", "1shot": "#8fb98f", "5shot": "#3d8c40", "10shot": "#1b4d1f"}
WIDTH = 820


@dataclass(frozen=True)
class Axis:
    """Points of gain that a plot shows."""

    low: float
    high: float

    def x_of(self, points: float) -> float:
        """Position of a gain in the plot."""
        clipped = min(max(points, self.low), self.high)
        return LEFT + (clipped - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    @staticmethod
    def around(rows: Sequence[Row]) -> Axis:
        """Hold all gains of a file with their deviations, in steps of 5 points."""
        ends = [0.0]
        for row in rows:
            for key in measures_of(row):
                gain, deviation = float(row[f"gain_{key}"]), float(row.get(f"gain_{key}_sd") or 0)
                ends += [gain - deviation, gain + deviation]
        return Axis(5 * (min(ends) // 5), -5 * (-max(ends) // 5) or 5)


def text(x: float, y: float, content: str, *, anchor: str = "start", more: str = "") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(content)}</text>'


def gain_mark(row: Row, key: str, y: float, axis: Axis) -> str:
    """A dot with one deviation to either side; an arrow where the gain lies outside the axis."""
    gain, deviation, colour = float(row[f"gain_{key}"]), float(row.get(f"gain_{key}_sd") or 0), COLOURS[key]
    if gain < axis.low:
        x = axis.x_of(axis.low)
        arrow = (
            f'<path d="M{x + 12:.1f} {y - 4} L{x + 2:.1f} {y} L{x + 12:.1f} {y + 4}" fill="none" stroke="{colour}"/>'
        )
        shift = 18 if key == "1nn" else 108  # both arrows point at the same place
        return arrow + text(x + shift, y + 4, f"{signed(row[f'gain_{key}'])} ± {deviation}", more=f'fill="{colour}"')
    ends = f'x1="{axis.x_of(gain - deviation):.1f}" x2="{axis.x_of(gain + deviation):.1f}"'
    return (
        f'<line {ends} y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2" opacity=".5"/>'
        f'<circle cx="{axis.x_of(gain):.1f}" cy="{y}" r="4" fill="{colour}"/>'
    )


def gain_plot(name: str, below: str, *, axis: Axis | None = None) -> str:
    """Gains of a file over the supervised baseline, use by use.

    Args:
        name: Name of the CSV file.
        below: The line below the title.
        axis: Points that are shown; all if absent.
    """
    rows = read(name)
    axis = axis or Axis.around(rows)
    parts, y, last = [], float(TOP), ""
    for row in rows:
        if row["use"] != last:
            y += 14
            parts.append(text(16, y + 5, row["use"], more='font-weight="600"'))
            y, last = y + ROW_HEIGHT, row["use"]
        keys = list(measures_of(row))
        more = max(0, 5 * (len(keys) - 2))  # a row of two marks is the usual one
        y += more
        parts.append(text(LEFT - 12, y + 4, f"{row['teacher']} → {row['student']}", anchor="end", more='fill="#444"'))
        first = y - 5 * (len(keys) - 1)
        parts += [gain_mark(row, key, first + 10 * i, axis) for i, key in enumerate(keys)]
        y += more + ROW_HEIGHT
    grid = []
    step = 2 if axis.high - axis.low <= 16 else 5
    for points in range(int(axis.low), int(axis.high) + 1, step):
        x, colour = axis.x_of(points), "#888" if points == 0 else "#e4e4e4"
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{y:.1f}" stroke="{colour}"/>')
        grid.append(text(x, y + 18, signed(str(points)).removesuffix(".0"), anchor="middle", more='fill="#555"'))
    shown = [key for key in COLOURS if any(key in measures_of(row) for row in rows)]
    key = "".join(
        f'<circle cx="{20 + 120 * i}" cy="60" r="4" fill="{COLOURS[name]}"/>'
        + text(30 + 120 * i, 64, (MEASURES | LOW_SHOT)[name])
        for i, name in enumerate(shown)
    )
    title = text(
        16,
        26,
        "Gain of the distilled student over its supervised baseline, points",
        more='font-size="16" font-weight="600"',
    )
    caption = "Gain of the distilled student over its supervised baseline"
    about = text(16, 44, below, more='fill="#555"')
    return svg(caption, f"{title}{about}{key}", grid, parts, height=y + 34)


GAIN_PLOTS: dict[str, Callable[[], str]] = {
    "gains": lambda: gain_plot(
        "utd_mhad",
        "UTD-MHAD, four test people. The lines are deviations over three seeds, not the intervals of the tables.",
        axis=Axis(-6, 10),
    ),
    "biisc": lambda: gain_plot("biisc", "BII Sneeze-Cough, five test people. The lines are deviations over seeds."),
}


def accuracy_plot(name: str) -> str:
    """Untrained, labelled and distilled student beside its teacher, measure by measure."""
    colours = {"untrained": "#b0b0b0", "baseline": "#c2571a", "distilled": "#1f5fbf", "teacher": "#444"}
    left, right, y, parts = 330.0, 30.0, 84.0, []

    def x_at(percent: float) -> float:
        return left + percent / 100 * (WIDTH - left - right)

    for row in read(name):
        for key, measure in PICTURE_MEASURES.items():
            shown = {network: float(row[cell]) for network in colours if row.get(cell := f"{network}_{key}")}
            if "distilled" not in shown:
                continue
            if measure == "1-NN":
                y += 12
                parts.append(text(16, y + 4, row["student"], more='font-weight="600"'))
                parts.append(text(16, y + 24, row["use"], more='fill="#444"'))
            parts.append(text(left - 12, y + 4, measure, anchor="end", more='fill="#444"'))
            ends = f'x1="{x_at(min(shown.values())):.1f}" x2="{x_at(max(shown.values())):.1f}"'
            parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="#ddd"/>')
            parts += [f'<circle cx="{x_at(v):.1f}" cy="{y}" r="4" fill="{colours[n]}"/>' for n, v in shown.items()]
            y += 20
    grid = []
    for percent in range(0, 101, 20):
        line = f'x1="{x_at(percent):.1f}" x2="{x_at(percent):.1f}" y1="72" y2="{y}"'
        grid.append(f'<line {line} stroke="#e4e4e4"/>')
        grid.append(text(x_at(percent), y + 18, str(percent), anchor="middle", more='fill="#555"'))
    names = {"untrained": "untrained", "baseline": "with labels", "distilled": "without labels", "teacher": "teacher"}
    key = "".join(
        f'<circle cx="{20 + 120 * i}" cy="52" r="4" fill="{colours[n]}"/>' + text(30 + 120 * i, 56, names[n])
        for i, n in enumerate(colours)
    )
    title = "Caltech-101: top-1 accuracy of students in percent"
    return svg(title, text(16, 26, title, more='font-size="16" font-weight="600"') + key, grid, parts, height=y + 34)


SETTINGS = ("Temperature", "Memory bank", "Stored crops", "Shares of Caltech-101")


def settings_plot(name: str) -> str:
    """Accuracy of one student by temperature, bank, stored crops and share of the pictures: a panel each."""
    uses = [row["use"] for row in read(name)]
    groups = {use: [row for row in read(name) if row["use"] == use] for use in SETTINGS if use in uses}
    shown = [float(row[f"distilled_{key}"]) for rows in groups.values() for row in rows for key in MEASURES]
    low, high = 5 * (min(shown, default=0.0) // 5), -5 * (-max(shown, default=5.0) // 5)
    top, bottom, gap = 96.0, 300.0, 24.0
    width = (WIDTH - 72) / max(1, len(groups)) - gap

    def y_at(percent: float) -> float:
        return bottom - (percent - low) / (high - low) * (bottom - top)

    grid, parts = [], []
    for percent in range(int(low), int(high) + 1, 5):
        y = y_at(percent)
        grid.append(f'<line x1="44" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        grid.append(text(36, y + 4, str(percent), anchor="end", more='fill="#555"'))
    for panel, (use, rows) in enumerate(groups.items()):
        left = 60 + panel * (width + gap)
        by_value = sorted(rows, key=lambda row: setting_of(row["student"])[0])
        xs = [left + width * (i + 0.5) / len(by_value) for i in range(len(by_value))]
        parts.append(text(left + width / 2, top - 10, use, anchor="middle", more='font-weight="600"'))
        names = [setting_of(row["student"])[1] for row in by_value]
        parts += [text(x, bottom + 18, n, anchor="middle", more='fill="#555"') for x, n in zip(xs, names, strict=True)]
        for key in MEASURES:
            points = [(x, y_at(float(row[f"distilled_{key}"]))) for x, row in zip(xs, by_value, strict=True)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[key]}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[key]}"/>' for x, y in points]
    legend = "".join(
        f'<circle cx="{20 + 120 * i}" cy="52" r="4" fill="{COLOURS[k]}"/>' + text(30 + 120 * i, 56, measure)
        for i, (k, measure) in enumerate(MEASURES.items())
    )
    title = "Caltech-101: accuracy of a ResNet-18 without labels, in percent, by setting"
    head = text(16, 26, title, more='font-size="16" font-weight="600"') + legend
    return svg(title, head, grid, parts, height=bottom + 34)


def setting_of(student: str) -> tuple[float, str]:
    """The number of a setting such as ``bank of 256``, for its place and its label; "all" is the largest."""
    number = re.search(r"\d+(\.\d+)?", student)
    if number is None:
        return math.inf, "all"
    is_more = "and the pile" in student
    unit = " %" if "%" in student else ""
    return float(number[0]) + is_more, f"{number[0]}{unit}{' + pile' if is_more else ''}"


NETWORKS = {
    "depth 1.16 M": "depth_tiny3d_32 16x48x48 fp32",
    "skeleton 0.90 M": "skeleton_r3d10 16x20x20 fp32",
    "depth 0.07 M": "depth_tiny3d_8 16x48x48 fp32",
    "depth 0.07 M, 8×32×32": "depth_tiny3d_8 8x32x32 fp32",
    "depth 0.07 M, 8×32×32, w8a8": "depth_tiny3d_8 8x32x32 int8",
    "depth 0.07 M, 8×32×32, round 1": "depth_tiny3d_8 8x32x32 fp32",
}
"""A network of utd_mhad.csv, and its name, view and precision in runtimes.csv."""
USES = {
    "Shallower": "#1f5fbf",
    "Lower precision": "#c2571a",
    "Small video model": "#3d8c40",
    "Across modalities": "#8a4fb0",
    "Self-distillation": "#b08d00",
}


@dataclass(frozen=True)
class Plane:
    """Milliseconds on a logarithmic axis to the right, percent upwards."""

    milliseconds: tuple[float, ...] = (0.25, 0.5, 1, 2, 4, 8)
    percents: range = range(55, 96, 5)
    left: float = 64
    right: float = WIDTH - 24
    top: float = 92
    bottom: float = 452

    def x_of(self, ms: float) -> float:
        """Position of a time in the plot."""
        lowest, highest = self.milliseconds[0], self.milliseconds[-1]
        return self.left + math.log(ms / lowest) / math.log(highest / lowest) * (self.right - self.left)

    def y_of(self, percent: float) -> float:
        """Position of an accuracy in the plot."""
        lowest, highest = self.percents[0], self.percents[-1]
        return self.bottom - (percent - lowest) / (highest - lowest) * (self.bottom - self.top)

    def grid(self) -> list[str]:
        """Lines and numbers of both axes."""
        parts = []
        for percent in self.percents:
            y = self.y_of(percent)
            parts.append(f'<line x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
            parts.append(text(self.left - 8, y + 4, str(percent), anchor="end", more='fill="#555"'))
        for ms in self.milliseconds:
            x = self.x_of(ms)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}" stroke="#e4e4e4"/>')
            parts.append(text(x, self.bottom + 18, f"{ms:g}", anchor="middle", more='fill="#555"'))
        middle = (self.left + self.right) / 2
        return [*parts, text(middle, self.bottom + 38, "ms per clip, one thread", anchor="middle", more='fill="#555"')]


def fastest_ms() -> dict[str, float]:
    """Network, view and precision to milliseconds of one clip in the fastest runtime."""
    fastest: dict[str, float] = {}
    for row in read("runtimes"):
        key, ms = f"{row['network']} {row['view']} {row['bits']}", float(row["ms"])
        fastest[key] = min(ms, fastest.get(key, ms))
    return fastest


def student_mark(row: Row, x: float, plane: Plane, colour: str) -> str:
    """An open dot for the baseline, a filled one for the distilled student, a band for the deviation of the latter."""
    baseline, distilled = (plane.y_of(float(row[f"{network}_linear"])) for network in ("baseline", "distilled"))
    half = plane.y_of(0) - plane.y_of(float(row["distilled_linear_sd"]))
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" stroke="{colour}"'
    return (
        f'{line} y1="{baseline:.1f}" y2="{distilled:.1f}" stroke-width="2"/>'
        f'{line} y1="{distilled - half:.1f}" y2="{distilled + half:.1f}" stroke-width="5" opacity=".25"/>'
        f'<circle cx="{x:.1f}" cy="{baseline:.1f}" r="4.5" fill="white" stroke="{colour}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{distilled:.1f}" r="5" fill="{colour}"/>'
    )


def teacher_mark(row: Row, x: float, plane: Plane) -> str:
    """A named square."""
    y = plane.y_of(float(row["teacher_linear"]))
    name = text(x - 10, y + 4, f"teacher, {row['teacher']}", anchor="end", more='fill="#444"')
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="#444"/>{name}'


def uses_plot() -> str:
    """Accuracy over time of teacher, baseline and distilled student in the first row of each use."""
    plane, fastest = Plane(), fastest_ms()
    first = {row["use"]: row for row in reversed(read("utd_mhad"))}
    teachers, students, taken = dict[str, str](), [], list[float]()
    for use, colour in USES.items():
        row = first[use]
        x = plane.x_of(fastest[NETWORKS[row["student"]]])
        while any(abs(x - other) < 14 for other in taken):  # students of equal cost stand beside each other
            x += 14
        taken.append(x)
        students.append(student_mark(row, x, plane, colour))
        if row["teacher"] in NETWORKS:
            teachers[row["teacher"]] = teacher_mark(row, plane.x_of(fastest[NETWORKS[row["teacher"]]]), plane)
    key = "".join(
        f'<circle cx="{20 + 150 * i}" cy="66" r="5" fill="{colour}"/>' + text(30 + 150 * i, 70, use.lower())
        for i, (use, colour) in enumerate(USES.items())
    )
    title = "Linear accuracy of the five uses over time in the fastest runtime, UTD-MHAD"
    about = "Filled: distilled without labels, with the deviation over three seeds. Open: the same network with labels."
    head = text(16, 26, title, more='font-size="16" font-weight="600"') + text(16, 44, about, more='fill="#555"')
    return svg(title, head + key, plane.grid(), [*teachers.values(), *students], height=plane.bottom + 52)


def svg(title: str, head: str, grid: Sequence[str], parts: Sequence[str], *, height: float) -> str:
    """The file of a plot."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12.5" role="img">'
        f"<title>{html.escape(title)}</title>"
        f'<rect width="100%" height="100%" fill="white"/>{head}{"".join(grid)}{"".join(parts)}</svg>\n'
    )
