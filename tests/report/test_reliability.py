"""Sections of the page for robustness, order and calibration."""

import re
from dataclasses import replace

import pytest
import torch

from crossdistill.evaluation.protocols.calibration import reliability_bins
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.report.reliability import (
    SIDE_PX,
    calibration_section,
    multi_label_section,
    order_section,
    reliability_chart,
    results_with,
    robustness_section,
)
from crossdistill.report.results import ResultTable


def result(name, top1=0.5, **details):
    return ProtocolResult(name, top1, 1.0, top1, 20, details)


def tables(*results):
    by_name = {each.protocol: each for each in results}
    evaluation = Evaluation("net", "toy", "1", 8, 20, {}, by_name)
    return [ResultTable("toy", "1", {"student, distilled": evaluation})]


def family(*top1):
    by_severity = {str(i + 1): value for i, value in enumerate(top1)}
    mean = sum(top1) / len(top1)
    shares = {"absolute_robustness": 1 - (0.8 - mean), "relative_robustness": mean / 0.8}
    return {"top1": by_severity, "mean_top1": mean, **shares}


ROBUSTNESS = result(
    "robustness",
    0.45,
    clean_top1=0.8,
    absolute_robustness=0.65,
    relative_robustness=None,
    families={
        "jpeg": family(0.7, 0.5),
        "h264": family(0.6, 0.2),
        "freeze": family(0.4, 0.3),
        "<new>": family(0.1, 0.2),
    },
    left_out={"contrast": "because of <it>"},
)


def test_robustness__has_a_chart_for_each_group_and_a_row_for_each_family():
    page = str(robustness_section(tables(ROBUSTNESS)))
    assert re.findall(r"<h3>([^<]*)</h3>", page)[:3] == ["compression", "time: freeze", "&lt;new&gt;: &lt;new&gt;"]
    assert page.count("<polyline") == 4 and page.count("<figure>") == 3
    rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    assert rows[0] == ["family", "severity 1", "severity 2", "mean", "absolute", "relative"]
    assert rows[1] == ["jpeg", "70.0", "50.0", "60.0", "0.800", "0.750"]
    assert rows[-1] == ["all", "", "", "45.0", "0.650", "–"]
    assert "80.0 % on clean clips" in page and "left out: contrast: because of &lt;it&gt;" in page
    heights = re.search(r'<title>jpeg</title></polyline>|points="([^"]*)" class="line series-0"', page)
    ys = [float(point.split(",")[1]) for point in heights[1].split()]
    assert len(ys) == 3 and ys[0] < ys[1] < ys[2]  # the clean accuracy first, and lower ones further down


def test_order__shows_pairs_and_drops():
    pairs = [{"classes": ["open", "close"], "top1": 0.75, "partner_when_reversed": 0.25, "num_test": 8}]
    pairs.append({"classes": ["a", "b"], "top1": 1.0, "num_test": 4})
    shown = tables(
        result("order-pairs", 0.8, pairs=pairs), result("order-shuffled", 0.3, clean_top1=0.8, drop=0.5), ROBUSTNESS
    )
    page = str(order_section(shown))
    rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    assert rows[1:3] == [["open – close", "75.0", "25.0", "8"], ["a – b", "100.0", "–", "4"]]
    assert rows[-1][1:] == ["80.0 %", "30.0 %", "50.0"] and "order-shuffled" in rows[-1][0]
    assert [found.protocol for _, found in results_with(shown, "drop")] == ["order-shuffled"]


def test_reliability_picture__has_bars_of_the_accuracy_and_marks_of_the_confidence():
    scores = torch.tensor([[0.9, 0.1]] * 4 + [[0.35, 0.65]] * 2, dtype=torch.float64)
    bins = reliability_bins(scores, torch.tensor([0, 0, 0, 1, 0, 1]))
    page = str(reliability_chart(bins, title="as trained", note="ECE 1 %"))
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)" class="bar student"', page)
    heights = [float(height) / SIDE_PX for _, _, height in bars]
    assert heights == pytest.approx([0.5, 0.75], abs=1e-3) and page.count('class="mark"') == 2
    lefts = [(float(x) - 53) / SIDE_PX * 15 for x, _, _ in bars]
    assert [round(left) for left in lefts] == [9, 13]  # bins of 0.65 and 0.9
    assert "4 clips: confidence 90.0 %, accuracy 75.0 %" in page
    details = {"temperature": 2.0}
    for suffix in ("", "_scaled"):
        details |= {f"ece{suffix}": 0.1234, f"nll{suffix}": 0.5, f"bins{suffix}": bins}
    found = replace(result("calibration", **details), intervals={"ece": (0.0, 0.2)})
    section = str(calibration_section(tables(found)))
    assert section.count("<svg") == 2 and "ECE 12.34 %" in section
    rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in section.split("<tr>")[1:]]
    assert rows == [
        ["", "ECE, %", "interval", "negative log-likelihood"],
        ["student, distilled, calibration, toy, split 1: as trained", "12.34", "0.00–20.00", "0.5000"],
        ["student, distilled, calibration, toy, split 1: with temperature 2.000", "12.34", "–", "0.5000"],
    ]
    of_splits = result("calibration", **{name: value for name, value in details.items() if "bins" not in name})
    section = str(calibration_section(tables(of_splits)))
    assert "12.34" in section and "<svg" not in section


def test_multi_label__shows_the_mean_average_precision_with_its_interval():
    found = replace(
        result("multi-label", mean_average_precision=0.4567), intervals={"mean_average_precision": (0.4, 0.5)}
    )
    page = str(multi_label_section(tables(found)))
    rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    assert rows[1] == ["student, distilled, multi-label, toy, split 1", "45.7", "40.0–50.0", "20"]
