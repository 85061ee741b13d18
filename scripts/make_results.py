"""Write the tables of docs/results and README.md, and the plots of docs/results, from the CSV files.

    python scripts/make_results.py           write
    python scripts/make_results.py --check   write nothing; exit with 1 if something is out of date

Each table is between ``<!-- table: NAME -->`` and ``<!-- end -->``. ``scripts/results_table.py`` makes the CSV files.
"""

from __future__ import annotations

import csv
import html
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (RESULTS / "results.md", RESULTS / "biisc.md", RESULTS / "caltech101.md", ROOT / "README.md")
PICTURES = "caltech101"
"""Tables of this name and of those that begin with it have the columns of the experiment on pictures."""
MARK = re.compile(r"(<!-- table: ([\w ,-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
MEASURES = {"1nn": "1-NN", "linear": "linear"}
LOW_SHOT = {"1shot": "1 label a class", "5shot": "5 labels a class", "10shot": "10 labels a class"}
INTERVAL, SEEDS = "95 % interval", "seeds ±"
README_USES = ("Shallower", "Lower precision", "Small video model", "Across modalities", "Self-distillation")

Row = dict[str, str]


def read(name: str) -> list[Row]:
    """The rows of docs/results/NAME.csv; none if no run has made it."""
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def signed(number: str) -> str:
    """A gain with its sign, in typographic minus."""
    return f"{float(number):+.1f}".replace("-", "−") if float(number) else "0.0"


def gain_table(rows: Sequence[Row]) -> str:
    """A line for each measure of a student; also how long it was trained, where the file says so."""
    lines = []
    has_epochs = "epochs" in rows[0]
    for row in rows:
        names = [row["student"], row["teacher"]]
        for key, measure in measures_of(row).items():
            numbers = [row.get(f"{network}_{key}") or "–" for network in ("teacher", "baseline", "distilled")]
            gain = [signed(row[f"gain_{key}"]), interval(row, key), row.get(f"gain_{key}_sd") or "–"]
            trained = [row["seeds"], f"{row['baseline_epochs'] or '–'} / {row['epochs']}"] if has_epochs else []
            lines.append([*names, measure, *numbers, *gain, *trained])
            names = ["", ""]
    header = ["student", "teacher", "measure", "teacher's", "baseline", "distilled", "gain", INTERVAL, SEEDS]
    return markdown(header + (["seeds", "epochs: baseline / distilled"] if has_epochs else []), lines, num_text=3)


def measures_of(row: Row) -> dict[str, str]:
    """Column to name of the measures in which a student has a gain."""
    return {key: measure for key, measure in (MEASURES | LOW_SHOT).items() if row.get(f"gain_{key}")}


PICTURE_MEASURES = MEASURES | {"cluster": "cluster"} | LOW_SHOT


def picture_table(rows: Sequence[Row]) -> str:
    """One line for each measure of a student, and how long and on what it was trained."""
    lines = []
    for row in rows:
        for key, measure in PICTURE_MEASURES.items():
            if not row.get(f"distilled_{key}"):
                continue
            networks = ("teacher", "untrained", "baseline", "distilled")
            numbers = [row[f"{network}_{key}"] or "–" for network in networks]
            gain = [signed(row[f"gain_{key}"]), interval(row, key)] if row.get(f"gain_{key}") else ["–", "–"]
            about = [row["use"], row["student"]] if measure == "1-NN" else ["", ""]
            epochs = f"{row['baseline_epochs'] or '–'} / {row['epochs']}"
            lines.append([*about, measure, *numbers, *gain, row["seeds"], epochs, row["machine"]])
    header = ["learned from", "student", "measure", "teacher's", "untrained", "baseline", "distilled", "gain", INTERVAL]
    return markdown([*header, "seeds", "epochs: baseline / distilled", "machine"], lines, num_text=3)


def interval(row: Row, key: str) -> str:
    """The interval of a gain, or that it is a point estimate."""
    ends = [row.get(f"gain_{key}_{end}") or "" for end in ("low", "high")]
    return " to ".join(signed(end) for end in ends) if all(ends) else "point estimate"


def ablation_table() -> str:
    """Every objective, best in linear accuracy first."""
    keys = [f"distilled_{measure}{suffix}" for measure in ("1nn", "linear", "cluster") for suffix in ("", "_sd")]
    rows = [[row["run"], *(row[key] or "–" for key in keys), row["seeds"]] for row in read("ablations")]
    return markdown(["objective", "1-NN", "±", "linear", "±", "cluster", "±", "seeds"], rows, num_text=1)


def protocol_table() -> str:
    """One network under every protocol."""
    rows = [
        [row["protocol"], row["measure"], row["views"], row["train_views"], row["network"]]
        + [row[key] or "–" for key in ("percent", "low", "high", "sd")]
        for row in read("protocols")
    ]
    header = ["protocol", "measure", "test views", "training views", "network", "%", "low", "high", "±"]
    return markdown(header, rows, num_text=5)


def split_table() -> str:
    """Two splits and their mean."""
    keys = ("split_1", "split_2", "mean", "low", "high")
    rows = [[row["network"], row["protocol"], *(row[key] or "–" for key in keys)] for row in read("splits")]
    return markdown(["network", "protocol", "split 1", "split 2", "mean", "low", "high"], rows, num_text=2)


def readme_table() -> str:
    """The first row of each use, linear accuracy, with the gain, its interval and its deviation over seeds."""
    rows = []
    for use in README_USES:
        row = next(row for row in read("utd_mhad") if row["use"] == use)
        gain = [signed(row["gain_linear"]), interval(row, "linear"), row["gain_linear_sd"]]
        numbers = [row[f"{network}_linear"] for network in ("teacher", "baseline", "distilled")]
        rows.append([use.lower(), row["teacher"], row["student"], *numbers, *gain])
    header = ["use", "teacher", "student", "teacher's", "supervised baseline", "distilled", "gain", INTERVAL, SEEDS]
    return markdown(header, rows, num_text=3)


def table(name: str) -> str:
    """The table of one mark."""
    named: dict[str, Callable[[], str]] = {
        "ablations": ablation_table,
        "protocols": protocol_table,
        "splits": split_table,
        "readme": readme_table,
    }
    if name in named:
        return named[name]()
    file, _, use = name.partition(" ")
    rows = [row for row in read(file) if use in ("", row["use"])]
    if not rows:
        return "*No run of these rows has ended.*"
    return picture_table(rows) if file.startswith(PICTURES) else gain_table(rows)


LEFT, RIGHT, TOP, ROW_HEIGHT = 400, 20, 86, 24
COLOURS = {"1nn": "#c2571a", "linear": "#1f5fbf", "1shot": "#8fb98f", "5shot": "#3d8c40", "10shot": "#1b4d1f"}
WIDTH = 780


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
        "UTD-MHAD, four test people. Point estimates; the lines are deviations over three seeds, no intervals.",
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


def svg(title: str, head: str, grid: Sequence[str], parts: Sequence[str], *, height: float) -> str:
    """The file of a plot."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12.5" role="img">'
        f"<title>{html.escape(title)}</title>"
        f'<rect width="100%" height="100%" fill="white"/>{head}{"".join(grid)}{"".join(parts)}</svg>\n'
    )


def outputs() -> dict[Path, str]:
    """File to content."""
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    written = {page: MARK.sub(lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[4]}", content) for page, content in pages.items()}
    plots = {path.with_suffix(".svg"): accuracy_plot(path.stem) for path in RESULTS.glob(f"{PICTURES}*.csv")}
    return written | plots | {RESULTS / f"{name}.svg": plot() for name, plot in GAIN_PLOTS.items()}


def main() -> None:
    """Write or check the files."""
    is_check = "--check" in sys.argv[1:]
    stale = [path for path, content in outputs().items() if not path.is_file() or path.read_text("utf-8") != content]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if is_check else 'written'}")
        if not is_check:
            path.write_text(outputs()[path], encoding="utf-8")
    if is_check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
