"""The bootstrap against scipy's and a slow implementation; results and their schema."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from crossdistill.errors import UserError
from crossdistill.evaluation import intervals
from crossdistill.evaluation.evaluations import mean_of_splits
from crossdistill.evaluation.intervals import bootstrap_intervals, describe_bootstrap, units_of
from crossdistill.evaluation.results import (
    AgreementResult,
    Evaluation,
    Gain,
    Outcome,
    Units,
    json_schema,
    read_evaluation,
    result_of,
)
from crossdistill.evaluation.settings import ProtocolSettings
from crossdistill.evaluation.spread import FeatureSpread

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "results_schema.md"


def outcome(num=60, *, seed=0, num_groups=None, prefix="v"):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, num)
    hits = generator.random(num) < 0.3 + 0.15 * labels
    names = tuple(f"{prefix}{i if num_groups is None else i % num_groups}" for i in range(num))
    kind = "video" if num_groups is None else "group"
    values = {"top1": torch.tensor(hits).double(), "top5": torch.tensor(hits | (labels > 2)).double()}
    return Outcome(values, torch.tensor(labels), units=Units(kind, names))


def test_bootstrap__of_videos_is_that_of_scipy():
    made = outcome(200)
    found = bootstrap_intervals([made], num_draws=20_000)["top1"]
    theirs = bootstrap(
        (made.hits["top1"].numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.006)  # one clip is 0.005
    assert found[0] < made.accuracies().top1 < found[1]


@pytest.mark.parametrize("num_groups", [None, 7])
def test_bootstrap__equals_a_slow_implementation(num_groups):
    made = outcome(60, num_groups=num_groups)
    found = bootstrap_intervals([made], num_draws=50, seed=3)
    names = sorted(set(made.units.names))
    members = {name: [i for i, own in enumerate(made.units.names) if own == name] for name in names}
    generator = np.random.default_rng(3)
    draws = {name: [] for name in found}
    for _ in range(50):
        clips = [i for unit in generator.integers(len(names), size=len(names)) for i in members[names[unit]]]
        labels, hits = made.labels_b.numpy()[clips], made.hits["top1"].numpy()[clips]
        draws["top1"].append(hits.mean())
        draws["top5"].append(made.hits["top5"].numpy()[clips].mean())
        present = [hits[labels == c].mean() for c in np.unique(labels)]
        draws["mean_class"].append(np.mean(present))
    for name, values in draws.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9), name


def test_bootstrap__groups_widen_it_where_clips_of_a_group_are_alike():
    made = outcome(100)
    alike = torch.tensor([float(i % 10 < 5) for i in range(100)])
    by_video = replace(made, hits={"top1": alike, "top5": alike})
    by_group = replace(by_video, units=Units("group", tuple(f"g{i % 10}" for i in range(100))))
    widths = [np.ptp(bootstrap_intervals([each], num_draws=2000)["top1"]) for each in (by_video, by_group)]
    assert widths[1] > 2.5 * widths[0]  # the square root of ten


def test_bootstrap__does_not_depend_on_how_many_draws_are_made_at_once(monkeypatch):
    whole = bootstrap_intervals([outcome()], num_draws=97)
    monkeypatch.setattr(intervals, "_NUM_WEIGHTS_AT_ONCE", 60 * 10)
    assert bootstrap_intervals([outcome()], num_draws=97) == whole
    assert bootstrap_intervals([outcome()], num_draws=97, seed=1) != whole


def test_units_of__are_groups_where_there_are_some():
    assert units_of((["a", "b"], ["g", "h"])) == [Units("group", ("g", "h"))]
    assert units_of((["a", "b", "c"], ["g", None, "h"])) == [Units("group", ("g", "video b", "h"))]
    for groups in ([None, "g"], [None, None], ["g", "g"]):
        assert units_of((["a", "b"], groups)) == [Units("video", ("a", "b"))]
    # People who are held out in turn are one group in each set, and several in all.
    assert units_of((["a", "b"], ["g", "g"]), (["c"], ["h"])) == [Units("group", ("g", "g")), Units("group", ("h",))]


def evaluation(split="1", *, seed=0, prefix="v"):
    made = outcome(60, seed=seed, prefix=prefix)
    result = result_of("linear", made, {"recall": {"1": 0.5 + seed / 10}})
    result = replace(result, intervals=bootstrap_intervals([made], num_draws=200))
    facts = describe_bootstrap([made.units], num_draws=200, seed=0)
    videos = list(made.units.names)
    return Evaluation(
        "flow_r3d18",
        "toy",
        split,
        90,
        60,
        {},
        {"linear": result},
        bootstrap=facts,
        test_videos=videos,
        test_groups=[None] * len(videos),
    )


def test_mean_of_splits__averages_numbers_and_narrows_their_interval():
    by_split = {"1": evaluation("1"), "2": evaluation("2", seed=1, prefix="w")}
    mean = mean_of_splits(by_split, ProtocolSettings(num_bootstrap_draws=200))
    result, parts = mean.results["linear"], [each.results["linear"] for each in by_split.values()]
    assert result.top1 == pytest.approx(np.mean([part.top1 for part in parts]), abs=1e-15)
    assert result.details["recall"] == {"1": 0.55}
    assert (mean.split, mean.num_test, result.num_test, mean.bootstrap.num_units) == ("1 + 2", 120, 120, 120)
    low, high = result.intervals["top1"]
    assert low < result.top1 < high
    assert high - low < 0.85 * min(part.intervals["top1"][1] - part.intervals["top1"][0] for part in parts)
    # The same test set twice is no more than once: its videos are drawn together.
    twice = mean_of_splits({"1": evaluation(), "2": evaluation("2")}, ProtocolSettings(num_bootstrap_draws=200))
    assert twice.results["linear"].intervals == parts[0].intervals
    assert mean_of_splits({"1": by_split["1"]}, ProtocolSettings()) is by_split["1"]


def whole_evaluation():
    agreement = AgreementResult(("a", "b"), 60, 1.0, "1x1", 10, 0.5, (0.4, 0.6), 0.1, 0.7, {"wave": 0.5})
    one = evaluation()
    gains = [
        Gain(("b", "a"), "linear", 0.04, (-0.02, 0.1), 60, one.bootstrap),
        Gain(("b", "a"), "1-nn", 0.04, None, 60),
    ]
    return replace(
        one,
        agreement=[agreement],
        spread=FeatureSpread(12.5, 59, -1.5),
        gains=gains,
        splits={"1": one},
        students={"a": one},
        unreadable={"toy/x": "cut short"},
        num_unreadable=1,
    )


def test_schema__accepts_every_result_and_reads_it_back():
    values = json.loads(json.dumps(whole_evaluation().to_json()))
    assert read_evaluation(values).to_json() == values
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(json_schema()).validate(values)
    for break_it in (lambda v: v.pop("num_test"), lambda v: v["results"]["linear"].update(top1="a")):
        broken = json.loads(json.dumps(values))
        break_it(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(json_schema()).validate(broken)


def test_schema__refuses_unknown_fields_and_newer_versions_in_a_sentence():
    values = whole_evaluation().to_json()
    with pytest.raises(UserError, match=r"do not fit the schema: accuracy: "):
        read_evaluation({**values, "accuracy": 1})
    with pytest.raises(UserError, match="schema version 9, this crossdistill reads up to 1"):
        read_evaluation({**values, "version": 9})


def test_schema__is_the_documented_one():
    """A field that is added, renamed, removed or described anew changes the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, definition in json_schema()["$defs"].items():
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        rows = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| `")]
        documented = {field.strip("`"): what for _, field, _, what, _ in rows}
        described = {
            field: " ".join(values["description"].replace("``", "`").replace("None", "null").split())
            for field, values in definition["properties"].items()
        }
        assert documented == described, name


def test_evaluation__top1_and_interval_are_those_of_the_first_protocol():
    one = evaluation()
    other = replace(one.results["linear"], protocol="1-nn", top1=0.25, intervals={})
    both = replace(one, results={"1-nn": other, **one.results})
    assert (both.top1, both.interval) == (0.25, None)
    assert (one.top1, one.interval) == (one.results["linear"].top1, one.results["linear"].intervals["top1"])
    with pytest.raises(UserError, match="flow_r3d18 has no results: choose a protocol"):
        _ = replace(one, results={}).top1


def test_to_frame__has_one_row_per_protocol():
    pytest.importorskip("pandas")
    one = evaluation()
    linear = one.results["linear"]
    other = replace(linear, protocol="1-nn", intervals={}, coverage=0.5)
    frame = replace(one, results={"linear": linear, "1-nn": other}).to_frame()
    assert list(frame.columns) == ["protocol", "top1", "low", "high", "top5", "mean_class", "num_test", "coverage"]
    low, high = linear.intervals["top1"]
    assert frame.iloc[0].tolist() == ["linear", linear.top1, low, high, linear.top5, linear.mean_class, 60, 1.0]
    assert frame["protocol"].tolist() == ["linear", "1-nn"] and frame["coverage"].tolist() == [1.0, 0.5]
    assert frame["low"].isna().tolist() == frame["high"].isna().tolist() == [False, True]
    assert list(replace(one, results={}).to_frame().columns) == list(frame.columns)


def test_to_frame__without_pandas_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas, .*: run pip install 'crossdistill\[pandas\]'"):
        evaluation().to_frame()
