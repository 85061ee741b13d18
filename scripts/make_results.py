"""Write the tables of docs/results and README.md, and the plots of docs/results, from the CSV files.

    python scripts/make_results.py           write
    python scripts/make_results.py --check   write nothing; exit with 1 if something is out of date

Each table is between ``<!-- table: NAME -->`` and ``<!-- end -->``. ``scripts/results_table.py`` makes the CSV files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from result_plots import GAIN_PLOTS, accuracy_plot, settings_plot, uses_plot
from result_rows import MEASURES, PICTURE_MEASURES, RESULTS, Row, measures_of, read, signed

ROOT = Path(__file__).resolve().parents[1]
PAGES = (*(RESULTS / f"{name}.md" for name in ("results", "biisc", "caltech101", "methods")), ROOT / "README.md")
PICTURES = "caltech101"
"""Tables of this name and of those that begin with it have the columns of the experiment on pictures."""
SETTINGS = "caltech101_settings"
"""Tables of this name have one line for each setting."""
MARK = re.compile(r"(<!-- table: ([\w ,-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NO_RUN = "*No run of these rows has ended.*"
INTERVAL, SEEDS = "95 % interval", "seeds ±"
README_USES = ("Shallower", "Lower precision", "Small video model", "Across modalities", "Self-distillation")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def gain_table(rows: Sequence[Row]) -> str:
    """A line for each measure of a student; also how long it was trained, where the file says so."""
    lines = []
    has_epochs = "epochs" in rows[0]
    for row in rows:
        names = [row["student"], row["teacher"]]
        for key, measure in measures_of(row).items():
            numbers = [row.get(f"{network}_{key}") or "–" for network in ("teacher", "baseline", "distilled")]
            gain = [signed(row[f"gain_{key}"]), interval(row, key), row.get(f"gain_{key}_sd") or "–"]
            epochs = f"{row['baseline_epochs'] or '–'} / {row['epochs']}" if has_epochs else ""
            trained = [row.get(f"seeds_{key}") or row["seeds"], epochs] if has_epochs else []
            lines.append([*names, measure, *numbers, *gain, *trained])
            names = ["", ""]
    header = ["student", "teacher", "measure", "teacher's", "baseline", "distilled", "gain", INTERVAL, SEEDS]
    return markdown(header + (["seeds", "epochs: baseline / distilled"] if has_epochs else []), lines, num_text=3)


def picture_table(rows: Sequence[Row]) -> str:
    """One line for each measure of a student, and how long and on what it was trained."""
    lines = []
    for row in rows:
        for key, measure in PICTURE_MEASURES.items():
            if not row.get(f"distilled_{key}"):
                continue
            networks = ("teacher", "untrained", "baseline", "distilled")
            numbers = [row.get(f"{network}_{key}") or "–" for network in networks]
            gain = [signed(row[f"gain_{key}"]), interval(row, key)] if row.get(f"gain_{key}") else ["–", "–"]
            about = [row["use"], row["student"]] if measure == "1-NN" else ["", ""]
            epochs = f"{row.get('baseline_epochs') or '–'} / {row['epochs']}"
            seeds = row.get(f"seeds_{key}") or row["seeds"]
            lines.append([*about, measure, *numbers, *gain, seeds, epochs, row["machine"]])
    header = ["learned from", "student", "measure", "teacher's", "untrained", "baseline", "distilled", "gain", INTERVAL]
    return markdown([*header, "seeds", "epochs: baseline / distilled", "machine"], lines, num_text=3)


def setting_table(rows: Sequence[Row]) -> str:
    """One line for each setting of the experiment on pictures."""
    lines = [
        [row["student"], *(row.get(f"distilled_{key}") or "–" for key in PICTURE_MEASURES)]
        + [signed(row[f"gain_{key}"]) for key in MEASURES]
        for row in rows
    ]
    gains = [f"gain, {measure}" for measure in MEASURES.values()]
    return markdown(["setting", *PICTURE_MEASURES.values(), *gains], lines, num_text=1)


def interval(row: Row, key: str) -> str:
    """The interval of a gain, or that it is a point estimate."""
    ends = [row.get(f"gain_{key}_{end}") or "" for end in ("low", "high")]
    return " to ".join(signed(end) for end in ends) if all(ends) else "point estimate"


def ablation_table() -> str:
    """Every objective, best in linear accuracy first."""
    keys = [f"distilled_{measure}{suffix}" for measure in ("1nn", "linear", "cluster") for suffix in ("", "_sd")]
    rows = [[row["run"], *(row[key] or "–" for key in keys), row["seeds"]] for row in read("ablations")]
    return markdown(["objective", "1-NN", "±", "linear", "±", "cluster", "±", "seeds"], rows, num_text=1)


def protocol_table(name: str) -> str:
    """One network under every protocol."""
    rows = [
        [row["protocol"], row["measure"], row["views"], row["train_views"], row["network"]]
        + [row[key] or "–" for key in ("percent", "low", "high", "sd")]
        for row in read(name)
    ]
    header = ["protocol", "measure", "test views", "training views", "network", "%", "low", "high", "±"]
    return markdown(header, rows, num_text=5)


def split_table() -> str:
    """Two splits and their mean."""
    keys = ("split_1", "split_2", "mean", "low", "high")
    rows = [[row["network"], row["protocol"], *(row[key] or "–" for key in keys)] for row in read("splits")]
    return markdown(["network", "protocol", "split 1", "split 2", "mean", "low", "high"], rows, num_text=2)


def runtime_table() -> str:
    """Time of one clip of each network in each runtime."""
    rows = [list(row.values()) for row in read("runtimes")]
    header = ["network", "view", "runtime", "bits", "ms", "÷ PyTorch fp32", "file, MB", "cosine"]
    return markdown(header, rows, num_text=4)


def method_table() -> str:
    """Every way to teach, best in the mean first: 1-NN / linear accuracy of each pair, and gains over the default."""
    rows = read("methods")
    if not rows:
        return NO_RUN
    pairs = [name.removesuffix("_1nn") for name in rows[0] if name.endswith("_1nn")]
    lines = []
    for row in rows:
        cells = [f"`{row['method']}`", signed(row["mean_gain"]) if row["mean_gain"] else "–"]
        for pair in pairs:
            keys = [f"{pair}_{measure}" for measure in ("1nn", "linear")]
            cells.append(" / ".join(row[key] for key in keys) if row[keys[0]] else "–")
            cells.append(" / ".join(signed(row[f"{key}_gain"]) for key in keys) if row[keys[0]] else "–")
        lines.append(cells)
    header = ["way to teach", "mean gain", *(name for pair in pairs for name in (pair.replace("-", " to "), "gain"))]
    return markdown(header, lines, num_text=1)


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
        "protocols": lambda: protocol_table("protocols"),
        "protocols_shallower": lambda: protocol_table("protocols_shallower"),
        "runtimes": runtime_table,
        "splits": split_table,
        "methods": method_table,
        "readme": readme_table,
    }
    if name in named:
        return named[name]()
    file, _, use = name.partition(" ")
    rows = [row for row in read(file) if use in ("", row["use"])]
    if not rows:
        return NO_RUN
    if file == SETTINGS:
        return setting_table(rows)
    return picture_table(rows) if file.startswith(PICTURES) else gain_table(rows)


def outputs() -> dict[Path, str]:
    """File to content."""
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    written = {page: MARK.sub(lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[4]}", content) for page, content in pages.items()}
    students = [path for path in RESULTS.glob(f"{PICTURES}*.csv") if path.stem != SETTINGS]
    plots = {path.with_suffix(".svg"): accuracy_plot(path.stem) for path in students}
    plots |= {RESULTS / "uses.svg": uses_plot(), RESULTS / f"{SETTINGS}.svg": settings_plot(SETTINGS)}
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
