"""Draw docs/diagram.svg: how a student learns a teacher's similarities to the memory bank.

python scripts/draw_diagram.py
"""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "diagram.svg"
WIDTH, HEIGHT = 880, 330
INK, SOFT, RULE = "#1d2430", "#5b6472", "#9aa3b0"
TEACHER, STUDENT, BANK = "#c2571a", "#1f5fbf", "#2b7a4b"


def box(x: int, y: int, width: int, height: int, colour: str, lines: list[str]) -> str:
    """A rounded box with a bold first line and smaller ones below it."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="white" stroke="{colour}" '
        'stroke-width="2"/>'
    ]
    start = y + height / 2 - 8.5 * (len(lines) - 1) + 5
    for i, line in enumerate(lines):
        style = f'font-weight="600" fill="{colour}"' if i == 0 else f'font-size="12.5" fill="{SOFT}"'
        parts.append(f'<text x="{x + width / 2}" y="{start + 18 * i}" text-anchor="middle" {style}>{line}</text>')
    return "".join(parts)


def arrow(path: str, *, colour: str = RULE, is_dashed: bool = False) -> str:
    """A line with a head."""
    dash = ' stroke-dasharray="5 4"' if is_dashed else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash} marker-end="url(#head)"/>'


def bars(x: int, base: int, heights: list[int], colour: str) -> str:
    """A distribution over six anchors."""
    return "".join(
        f'<rect x="{x + 15 * i}" y="{base - height}" width="11" height="{height}" fill="{colour}" opacity=".85"/>'
        for i, height in enumerate(heights)
    )


def note(x: int, y: int, line: str, *, anchor: str = "middle", colour: str = SOFT) -> str:
    """Small text."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12.5" fill="{colour}">{line}</text>'


def diagram() -> str:
    """The whole picture."""
    parts = [
        box(16, 116, 132, 88, INK, ["one moment", "of a video, in two", "modalities or sizes"]),
        box(232, 34, 150, 74, TEACHER, ["teacher", "frozen, any size"]),
        box(232, 212, 150, 74, STUDENT, ["student", "trained, any input"]),
        box(458, 108, 150, 104, BANK, ["memory bank", "embeddings of", "earlier clips", "(the anchors)"]),
        arrow("M148 140 C190 130 190 71 226 71"),
        arrow("M148 180 C190 190 190 249 226 249"),
        arrow("M382 71 C420 71 430 112 452 128", colour=TEACHER),
        arrow("M382 249 C420 249 430 208 452 192", colour=STUDENT),
        note(176, 100, "e.g. RGB", anchor="end"),
        note(176, 232, "e.g. flow", anchor="end"),
        arrow("M608 128 C640 112 640 71 672 71", colour=TEACHER),
        arrow("M608 192 C640 208 640 249 672 249", colour=STUDENT),
        bars(690, 98, [14, 52, 9, 30, 7, 18], TEACHER),
        bars(690, 276, [20, 40, 14, 33, 11, 16], STUDENT),
        note(733, 30, "teacher's similarities", colour=TEACHER),
        note(733, 300, "student's similarities", colour=STUDENT),
        arrow("M733 222 L733 186", colour=STUDENT),
        arrow("M733 112 L733 144", colour=TEACHER),
        f'<text x="733" y="170" text-anchor="middle" font-weight="600" fill="{INK}">loss: make them equal</text>',
        arrow("M733 307 V314 Q733 321 726 321 H313 Q306 321 306 314 V292", colour=RULE, is_dashed=True),
        note(520, 315, "gradient"),
    ]
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="15" role="img">'
        "<title>The student learns the teacher's similarities to a memory bank</title>"
        f'<defs>{head}</defs><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(diagram(), encoding="utf-8")
