"""The plan of a large run: its tables follow from the measured figures that it names."""

import math
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "explanation"
KINETICS, LARGE = 650_000, 10_000_000
FRAMES, PIXELS = 301, 340 * 256 / (320 * 240)
"""Of a clip of 10 s, and its pixels divided by those that were measured."""
RGB_MS, BOTH_MS, RGB_KB, FLOW_KB, MANIFEST_BYTES = 3.8, 7.8, 2.17, 3.03, 495


def row_of(page, name):
    """Return the numbers of a row, without their units."""
    (line,) = [line for line in (PAGES / page).read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name}")]
    cells = line.strip("| ").split("|")[1:]
    return [float(found[0].replace(",", "")) if (found := re.search(r"\d[\d,.]*", cell)) else None for cell in cells]


def clip_and_totals(each, unit):
    """Return a figure of one clip and the sums over both datasets in another unit."""
    return [each, each * KINETICS / unit, each * LARGE / unit]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prepare RGB, core hours", clip_and_totals(FRAMES * PIXELS * RGB_MS / 1e3, 3600)),
        ("prepare RGB and flow, core", clip_and_totals(FRAMES * PIXELS * BOTH_MS / 1e3, 3600)),
        ("storage of RGB", clip_and_totals(FRAMES * PIXELS * RGB_KB / 1e3, 1e6)),
        ("storage of flow", clip_and_totals(FRAMES * PIXELS * FLOW_KB / 1e3, 1e6)),
        ("manifest |", clip_and_totals(MANIFEST_BYTES, 1e9)),
        ("teacher cache, 2,048 features in fp16", clip_and_totals(2 * 2048 / 1e3, 1e6)),
        ("the same in int8 |", clip_and_totals((2048 + 4) / 1e3, 1e6)),
        ("the same in int8 with 1x4x4 tokens", clip_and_totals(17 * (2048 + 4) / 1e3, 1e6)),
    ],
)
def test_rows__follow_from_the_measured_figures(name, expected):
    assert row_of("scale.md", name) == pytest.approx(expected, rel=0.035)  # two or three digits are shown


def test_shards_and_cores__follow_from_the_storage_and_the_core_hours():
    of_rgb, of_flow = row_of("scale.md", "storage of RGB"), row_of("scale.md", "storage of flow")
    streams = [rgb + flow for rgb, flow in zip(of_rgb, of_flow, strict=True)]
    assert row_of("scale.md", "shards of 1 GB")[1:] == pytest.approx([1e3 * value for value in streams[1:]], rel=0.01)
    hours = row_of("scale.md", "prepare RGB and flow, core")
    assert row_of("scale.md", "the same on 64 cores")[1:] == pytest.approx(
        [value / 64 for value in hours[1:]], rel=0.01
    )


@pytest.mark.parametrize(
    "name", ["motion-vectors", "dis, fast (default)", "dis, medium", "farneback", "raft, on a CPU", "tvl1"]
)
def test_flow__follows_from_the_time_of_a_pair(name):
    measured = row_of("stream_formats.md", {"raft, on a CPU": "raft"}.get(name, name))[0]
    expected = clip_and_totals((FRAMES - 1) * PIXELS * measured / 1e3, 3600)
    assert row_of("scale.md", name) == pytest.approx(expected, rel=0.02)


def test_prices_and_cores__follow_from_the_tables():
    page = " ".join((PAGES / "scale.md").read_text(encoding="utf-8").split())
    each, first, second = re.search(
        r"is ([\d.]+) dollars, .* cost (\d+) dollars .* and (\d+) for 10 million", page
    ).groups()
    hours = row_of("scale.md", "prepare RGB and flow, core")
    assert [float(first), float(second)] == pytest.approx([float(each) * value for value in hours[1:]], rel=0.02)
    small, large, gpu, one, two = map(
        int,
        re.search(
            r"reads (\d+) clips a second of 320×240 pixels, so about (\d+) of 340×256\. "
            r"A GPU that trains on (\d+) clips a second keeps (\d+) cores busy with RGB alone, and (\d+) with",
            page,
        ).groups(),
    )
    assert row_of("scale.md", "read a clip of 16 frames")[0] == small and large == pytest.approx(
        small / PIXELS, rel=0.01
    )
    assert (one, two) == (math.ceil(gpu / large), math.ceil(2 * gpu / large))
    requests, gigabytes = re.search(
        r"are ([\d,]+) requests and ([\d.]+) GB a second", page.split("8 such GPUs")[1]
    ).groups()
    assert int(requests.replace(",", "")) == 8 * 2 * gpu
    streams_mb = row_of("scale.md", "storage of RGB")[0] + row_of("scale.md", "storage of flow")[0]
    assert float(gigabytes) == pytest.approx(8 * gpu * streams_mb / 1e3, rel=0.05)


def test_figures__are_those_of_their_pages():
    speed = (PAGES / "speed.md").read_text(encoding="utf-8")
    assert "| rgb, 2 processes | 3.2 |" in speed and "| 495 | 495 | 495 |" in speed
    assert row_of("scale.md", "prepare RGB and flow (DIS), core time")[0] == BOTH_MS
    assert row_of("scale.md", "prepare RGB alone")[0] == RGB_MS == pytest.approx(2e3 / 3.2 / 165, rel=0.01)
    assert row_of("scale.md", "manifest with two streams")[0] == MANIFEST_BYTES
