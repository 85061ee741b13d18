"""The HTML report: its content, escaping, unavailable sections, and rendering in a browser."""

import csv
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from in_process import train
from killing import PATIENCE_SECONDS
from safetensors.torch import save_file

from crossdistill.commands.main import main as cli
from crossdistill.data.dataset import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import load_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.gains import paired_gains
from crossdistill.evaluation.results import Evaluation, ProtocolResult, read_evaluation
from crossdistill.evaluation.tables import gain_text
from crossdistill.modalities import MODALITIES
from crossdistill.quantization.quantize import quantize
from crossdistill.recipes.config import OptimizationConfig, RunConfig, parse
from crossdistill.report import analysis, comparison_page, cost, curves, frames, gallery, networks, record, run_page
from crossdistill.report.charts import (
    MAX_STYLES,
    CostDot,
    Dot,
    Series,
    cost_chart,
    interval_chart,
    line_chart,
    style_of,
    thinned,
)
from crossdistill.report.class_charts import confusion_chart, confusion_scale, point_chart
from crossdistill.report.facts import _objective
from crossdistill.report.networks import kind_of, load_teachers
from crossdistill.report.options import ReportOptions
from crossdistill.report.record import read_run
from crossdistill.report.svg import Scale, element, nice_ticks, percent, short_number
from crossdistill.report.sweep import differing_options
from crossdistill.types import ViewSpec

EVIL = "<script>alert(1)</script>"
QUOTES = "a\"b'c&d"
STUDENT = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32]
TEACHER = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32]
FAST = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--tracker", "none", "--knn-clips", 0, "--log-every-steps", 1]
SECTIONS = ["accuracy", "run", "curves", "confusion", "change", "tsne", "gallery", "agreement", "spread", "cost"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.addresses, self.styles, self.text, self.unavailable = [], [], [], "", {}
        self._section, self._in_unavailable = None, False
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action", "data") if name in values]
        self.styles += [values["style"]] if "style" in values else []
        self._section = values["id"] if tag == "section" else self._section
        self._in_unavailable = tag == "p" and values.get("class") == "unavailable"

    def handle_data(self, data):
        self.text += data
        if self._in_unavailable and data.strip():
            self.unavailable[self._section] = data.strip()
            self._in_unavailable = False


@pytest.fixture(scope="module", autouse=True)
def short_timings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MAX_SECONDS", 0.01)
        patch.setattr(cost, "BATCH_SIZE", 2)
        patch.setattr(analysis, "NUM_ITERATIONS", 250)
        yield


def run_report(*options):
    cli(["report", *map(str, options), "--workers", "0"])


@pytest.fixture(scope="module")
def evil_data(toy_folder, tmp_path_factory):
    """A dataset whose first class and whose videos have names with HTML code."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    videos = tuple(replace(video, name=f"{QUOTES}{i}{EVIL}") for i, video in enumerate(manifest.videos))
    replace(manifest, classes=(EVIL, *manifest.classes[1:]), videos=videos).save()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, evil_data):
    """A distilled run with quotes in its name, and its supervised baseline."""
    folder = tmp_path_factory.mktemp("runs")
    common = [*FAST, *STUDENT, "--data", evil_data, "--objective", "compress-1q", "simreg"]
    torch.manual_seed(7)
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), folder / "teacher.safetensors")
    distilled, baseline = folder / f"run {QUOTES.replace('/', '')}", folder / "baseline"
    distil = [*TEACHER, "--teacher-weights", folder / "teacher.safetensors", "--bank-size", 24]
    train([*common, *distil, "--out", distilled, "--no-evaluate"])
    train([*common, "--supervised", "--out", baseline, "--no-evaluate"])
    return distilled, baseline


@pytest.fixture(scope="module")
def page(runs):
    """The page of the distilled run with its supervised baseline."""
    distilled, baseline = runs
    run_report(distilled, "--baseline", baseline, "--gallery", 3)
    return (distilled / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def comparison(runs, tmp_path_factory):
    """The page that compares the distilled run with its supervised baseline."""
    out = tmp_path_factory.mktemp("comparison") / "comparison.html"
    run_report(*runs, "--out", out)
    return out.read_text(encoding="utf-8")


def require_self_contained(content):
    found = Page(content)
    assert not {"script", "iframe", "object", "embed", "base"} & set(found.tags)
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert re.findall(r"url\((?!data:image/webp;base64,[A-Za-z0-9+/=]+\))", content) == []
    assert "@import" not in content and "Content-Security-Policy" in content
    return found


def test_page__has_all_sections_and_loads_nothing(page):
    found = require_self_contained(page)
    assert re.findall(r'<section id="([^"]+)"', page) == SECTIONS
    assert found.unavailable == {}
    assert found.tags.count("svg") > 10 and page.count("data:image/webp;base64,") >= 3 * 6 * 2  # RGB and flow
    assert page.index("colour scale of the confusion matrix") < page.index("rows are the true classes")
    for role in ("teacher", "supervised baseline", "student, distilled", "student, random"):
        assert role in found.text
    for words in ("retrieval, R@10", "95% interval", "Linear CKA", "complete configuration", "simreg"):
        assert words in found.text


def test_page__escapes_names_of_classes_files_and_runs(page):
    assert EVIL not in page and "alert(1)" in page
    found = Page(page)
    assert found.text.count(EVIL) > 5 and QUOTES in found.text
    assert "&lt;script&gt;" in page and f'"{QUOTES}' not in page


def test_page__shows_the_numbers_of_the_evaluation(runs, evil_data, page, tmp_path):
    out = tmp_path / "numbers.json"
    cli(["evaluate", str(runs[0]), "--data", str(evil_data), "--json", str(out), "--workers", "0"])
    evaluation = json.loads(out.read_text())
    linear = evaluation["results"]["linear"]
    low, high = linear["intervals"]["top1"]
    assert f"<b>{100 * linear['top1']:.1f}</b><small>{100 * low:.1f}–{100 * high:.1f}</small>" in page


def test_page__includes_evaluations_in_the_run_folder(runs, evil_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    values = [str(folder), "--data", str(evil_data), "--views", "2x1", "--protocols", "lowshot", "--shots", "2"]
    cli(["evaluate", *values, "--json", str(folder / "numbers.json"), "--bootstrap", "20", "--workers", "0"])
    run_report(folder, "--no-teacher", "--gallery", 0)
    found = Page((folder / "report.html").read_text())
    assert "low-shot 2, 2x1 views" in found.text
    assert set(found.unavailable) == {"change", "gallery", "agreement"}
    assert "--no-teacher" in found.unavailable["agreement"] and "--baseline" in found.unavailable["change"]


def test_page__gives_reasons_for_unavailable_sections(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    content = json.loads((folder / "config.json").read_text())
    content["configuration"]["data"]["data"] = [str(tmp_path / "gone")]
    content["configuration"]["pair"]["teacher_weights"] = [str(tmp_path / "lost.safetensors")]
    content["configuration"]["pair"]["of_another_version"] = 1
    (folder / "config.json").write_text(json.dumps(content))
    facts = json.loads((folder / "student" / "student.json").read_text())
    facts["training"]["teachers"][0]["weights"] = str(tmp_path / "gone" / "teacher.safetensors")
    (folder / "student" / "student.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text('{"step": 1, "lo')
    run_report(folder, "--out", tmp_path / "page.html")
    found = Page((tmp_path / "page.html").read_text())
    assert set(found.unavailable) == {
        "accuracy",
        "curves",
        "confusion",
        "change",
        "tsne",
        "gallery",
        "agreement",
        "spread",
    }
    assert str(tmp_path / "gone") in found.unavailable["tsne"] and "--data" in found.unavailable["gallery"]
    assert "lost.safetensors" in found.text and "pair.of_another_version" in found.text


def test_page__refuses_a_teacher_with_other_weights(runs, evil_data, tmp_path):
    folder = Path(shutil.copytree(runs[0], tmp_path / "run"))
    path = folder / "student" / "student.json"
    facts = json.loads(path.read_text())
    recorded = facts["training"]["teachers"][0]
    assert recorded["weights"] == str(runs[0].parent / "teacher.safetensors") and recorded["size_px"] == 32
    recorded["weights"] = str(tmp_path / "other.safetensors")
    torch.manual_seed(8)
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), tmp_path / "other.safetensors")
    path.write_text(json.dumps(facts))
    record = read_run(folder)
    (reason,) = load_teachers(record, load_student(folder), Manifest.load(evil_data), ReportOptions())
    assert "not those that the student learned from" in reason and recorded["weights_sha256"] in reason


def test_page__of_a_supervised_run_has_no_agreement_and_no_change(runs, tmp_path):
    run_report(runs[1], "--out", tmp_path / "baseline.html", "--gallery", 1)
    found = Page((tmp_path / "baseline.html").read_text())
    assert set(found.unavailable) == {"change", "agreement"}
    assert "learned from labels" in found.unavailable["agreement"]


def test_comparison__shows_every_run_once_per_table(comparison):
    found = require_self_contained(comparison)
    assert found.unavailable == {} and EVIL not in comparison
    num_protocols = 3  # linear, 1-NN, 20-NN; R@5 has no gain
    sections = ["runs", "accuracy", "gains", "cost", "curves", "classes"]
    assert re.findall(r'<section id="([^"]+)"', comparison) == sections
    # Accuracies and gains; both runs are one row of the costs, because they have the same network.
    assert comparison.count("</i>baseline</th>") == 1 + num_protocols
    assert found.tags.count("svg") >= 6


def test_comparison__begins_with_the_options_that_differ(runs, comparison):
    head = re.search(r'<section id="runs">.*?<thead>(.*?)</thead>', comparison, flags=re.DOTALL)[1]
    differ = ["teacher", "supervised", "teacher-weights", "teacher-frames", "teacher-size", "bank-size"]
    assert re.findall('<th class="words">(.*?)</th>', head) == differ
    rows = list(csv.DictReader(io.StringIO(unquote(re.search(r'href="data:text/csv;[^,]+,([^"]*)"', comparison)[1]))))
    assert [row["run"] for row in rows] == [run.name for run in runs]
    assert [row["supervised"] for row in rows] == ["no", "yes"] and [row["teacher_size"] for row in rows] == ["32", ""]
    for row in rows:
        value, low, high = (float(row[name]) for name in ("linear", "linear low", "linear high"))
        assert low <= value <= high
        assert f"<b>{100 * value:.1f}</b><small>{100 * low:.1f}–{100 * high:.1f}</small>" in comparison
        assert int(row["parameters"]) == load_student(runs[0]).num_parameters


def test_differing_options__compares_what_can_be_read():
    first, second = (RunConfig(optimization=OptimizationConfig(lr=lr)) for lr in (0.1, 1e-5))
    assert differing_options([first, None, second, first]) == {"lr": ["0.1", "?", "1e-05", "0.1"]}
    assert differing_options([first, first]) == differing_options([None, first]) == differing_options([None]) == {}


def compared(name, *, encoder="flow_r3d18", gmacs=1.0, seconds=0.01, top1=0.5):
    own = cost.Cost("student", encoder, None, 33, gmacs, seconds, 1 / seconds, None, "CPU")
    linear = ProtocolResult("linear", top1, 1.0, top1, 9, intervals={"top1": (top1 - 0.1, top1 + 0.1)})
    evaluation = Evaluation(encoder, "toy", "1", 9, 9, {}, {"linear": linear})
    return comparison_page.ComparedRun(name, "series-0", None, None, evaluation, own)


def test_cost__of_the_same_network_is_one_point():
    runs = [
        compared("a", top1=0.4, seconds=0.03),
        compared("b", top1=0.5, seconds=0.02),
        compared("larger", top1=0.6, gmacs=4.0, seconds=0.09),
        compared("c", top1=0.9, seconds=0.05),
    ]
    runs = comparison_page._with_common_costs(runs)
    assert [run.cost.latency_seconds for run in runs] == [0.02, 0.02, 0.09, 0.02]
    assert runs[0].cost.clips_per_second == 50
    content = str(comparison_page._costs(runs))
    num_charts = 3  # without the size of a file, which these networks do not have
    assert content.count('class="dot series-0"') == 2 * num_charts
    assert content.count("<title>a and 2 more: 60.0 %") == content.count("<title>larger: 60.0 %") == num_charts
    assert content.count("</i>a and 2 more</th>") == content.count("</i>larger</th>") == 1
    of_three = comparison_page._dot("three", [runs[0], runs[1], runs[3]])
    assert (of_three.value, of_three.interval) == (pytest.approx(0.6), (0.4, 0.9))
    assert comparison_page._dot("one", [runs[2]]).interval == (0.5, 0.7)


def test_page__draws_accuracy_over_the_cost_of_every_role(page):
    """A point of each network in each chart; their styles are those of the other charts of the page."""
    section = page.split('<section id="cost"')[1].split("</section>")[0]
    charts = re.findall(r"<figure><h3>Accuracy over ([^<]+)</h3>(.*?)</figure>", section, re.DOTALL)
    assert [name for name, _ in charts][:3] == ["parameters", "multiply-adds per clip", "time per clip in ms, PyTorch"]
    for _, chart in charts[:3]:
        names = re.findall(r"<title>([^:<]+): [0-9.]+ %, ", chart)
        assert {"student, distilled", "supervised baseline", "teacher", "student, random"} == set(names)
        assert chart.count('class="dot ') == len(names) == 4


def test_comparison__shows_gains_with_the_interval_of_pairs(runs, evil_data, tmp_path):
    """The table has the numbers of ``paired_gains``; a run of a former version has only a point estimate."""
    out, paths = tmp_path / "comparison.html", []
    for run in runs:
        paths.append(tmp_path / f"{run.name[:3]}.json")
        cli(["evaluate", str(run), "--data", str(evil_data), "--json", str(paths[-1]), "--workers", "0"])
    first, second = (read_evaluation(json.loads(path.read_text())) for path in paths)
    gain, interval = gain_text(paired_gains(second, first)["linear"])
    run_report(*runs, "--out", out)
    row = f'<td class="words">linear</td><td><b>{gain}</b></td><td>{interval}</td><td>{second.num_test}</td>'
    assert row in out.read_text() and " to " in interval


def test_command__shows_progress(runs, tmp_path, capsys):
    distilled, baseline = runs
    run_report(distilled, "--out", tmp_path / "one.html")
    printed = capsys.readouterr().out
    assert re.search(r"cost 3/3 networks", printed) and re.search(r"page 10/10 sections", printed)
    run_report(distilled, baseline, "--out", tmp_path / "two.html")
    printed = capsys.readouterr().out
    assert len(re.findall(r"cost 1/1 networks", printed)) == 2 and re.search(r"page 6/6 sections", printed)


def test_comparison__shows_folders_of_runs_with_equal_names(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/x", "b/x", "c/y"):
        shutil.copytree(runs[0] / "student", tmp_path / folder / "student")
    run_report("a/x", "b/x", "c/y")
    content = (tmp_path / "comparison.html").read_text()
    assert re.findall(r'<th><i class="key [^"]+"></i>([^<]+)', content)[:3] == ["a/x", "b/x", "y"]


def test_baseline__of_another_student_or_with_a_teacher_is_rejected(runs, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    facts = other / "student" / "student.json"
    facts.write_text(facts.read_text().replace('"flow_tiny3d_8"', '"rgb_tiny3d_8"'))
    for baseline, said in (
        (other, "trained rgb_tiny3d_8, not flow_tiny3d_8"),
        (runs[0], "was distilled from a teacher"),
    ):
        with pytest.raises(SystemExit):
            run_report(runs[0], "--baseline", baseline)
        assert f"{said}: give a run of the same student with --supervised" in capsys.readouterr().err


def test_comparison__without_dataset_or_results_shows_costs(runs, tmp_path, monkeypatch):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(runs[0] / "student", folder / "student")
    monkeypatch.chdir(tmp_path)
    run_report(*folders)
    found = Page((tmp_path / "comparison.html").read_text())
    assert set(found.unavailable) == {"accuracy", "gains", "curves", "classes"}
    assert "flow_tiny3d_8" in found.text


@pytest.mark.parametrize(("times", "is_close"), [([1.0], False), ([1.0, 1.09, 3.0], True), ([1.0, 1.2], False)])
def test_comparison__names_no_lowest_time_if_two_are_close(times, is_close):
    assert comparison_page._is_close(times) is is_close


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere"], "the folder nowhere does not exist"),
        (["."], "is not a run folder"),
        ([], "no run was given"),
        (["a", "b", "--baseline", "c"], "--baseline needs a single run"),
        (["a", "--clips", "0"], "--clips is 0"),
        (["a", "--gallery", "-1"], "--gallery is -1: give 0"),
        (["a", "b", "./a"], "the run a was given twice"),
        (["a", "--out", "."], "is a folder"),
        ([f"r{i}" for i in range(33)], "33 runs were given, but a comparison shows at most 32"),
    ],
)
def test_invalid_options__raise_one_sentence(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_report(*options)
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1


def test_data__that_is_not_a_dataset_is_rejected(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_report(runs[0], "--data", tmp_path)
    assert "is not a prepared dataset" in capsys.readouterr().err


def open_in_browser(content, folder):
    """Return the browser process and the hosts that it requested; all names resolve to a server of the test."""
    asked = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Host"])
            self.send_error(404)

        def log_message(self, *_):
            pass

    (folder / "page.html").write_text(content, encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        options += [f"--host-resolver-rules=MAP * 127.0.0.1:{server.server_address[1]}", "--window-size=1100,900"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += [f"--screenshot={folder / 'page.png'}", "--dump-dom", (folder / "page.html").as_uri()]
        environment = {**os.environ, "HOME": str(folder)}
        done = subprocess.run(
            [CHROMIUM, *options], capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment
        )
        server.shutdown()
    return done, asked


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_page__renders_in_a_browser_without_requests(page, tmp_path):
    (tmp_path / "control").mkdir()
    outside = "<p>hello</p><img src='http://pictures.example/a.png'>"
    control = set(open_in_browser(outside, tmp_path / "control")[1])
    assert "pictures.example" in control  # the server sees requests
    done, asked = open_in_browser(page, tmp_path)
    assert set(asked) <= control - {"pictures.example"}  # requests of the browser itself
    dom = Page(done.stdout)
    assert done.returncode == 0, done.stderr[-500:]
    assert "script" not in dom.tags and dom.tags.count("section") == len(SECTIONS)
    # The browser parsed names as text, not as elements, and kept every image.
    assert EVIL in dom.text and dom.tags.count("svg") == Page(page).tags.count("svg")
    import cv2

    picture = cv2.imread(str(tmp_path / "page.png"))
    assert picture.shape[1] == 1100 and picture.std() > 5


# Parts.


def test_cost__of_an_exported_network_is_that_of_the_fastest_runtime(monkeypatch):
    """Each runtime is opened on the network's own file; a network that cannot be exported says why."""
    pytest.importorskip("onnxruntime")
    seconds = iter((0.3, 0.2))
    monkeypatch.setattr(cost, "seconds_per_clip", lambda forward, clips: next(seconds))
    encoder = create_encoder("flow_tiny3d_8", num_frames=4, size_px=16)
    network = networks.Network("student, distilled", encoder, Path())
    opened = [SimpleNamespace(runtime=name, forward=None) for name in ("slow", "fast")]
    monkeypatch.setattr(cost, "open_in_all", lambda path: (opened, {}) if path.stat().st_size else None)
    found = cost.measure_cost(network, in_runtimes=True)
    assert (found.exported_seconds, found.runtime) == (0.2, "fast")
    assert cost.measure_cost(network).exported_seconds is None

    def fail(*arguments):
        raise UserError("this network has no ONNX file")

    monkeypatch.setattr(cost, "export_student", fail)
    found = cost.measure_cost(network, in_runtimes=True)
    assert (found.exported_seconds, found.runtime) == (None, "this network has no ONNX file")
    assert "Not exported: this network has no ONNX file." in run_page.cost_note([found])


def test_cost__of_equal_networks_has_the_shortest_times():
    """With the runtime that had the shortest; other networks keep their own."""
    own = cost.Cost("student", "flow_r3d10", None, 33, 1.0, 0.2, 5.0, 7, "CPU", exported_seconds=0.1, runtime="slow")
    other = replace(own, role="random", latency_seconds=0.3, num_bytes=None, exported_seconds=0.05, runtime="fast")
    larger = replace(own, role="teacher", gmacs=9.0)
    found = cost.with_common_times([own, other, larger])
    times = {"latency_seconds": 0.2, "exported_seconds": 0.05, "runtime": "fast"}
    assert found == [replace(own, **times), replace(other, **times), larger]


def test_cost__of_a_quantised_network_equals_that_of_floating_point():
    pytest.importorskip("brevitas")
    encoder = create_encoder("depth_tiny3d_8", num_frames=4, size_px=16).eval()
    execution = Execution.choose(encoder, device=torch.device("cpu"))
    counted = cost.count_gmacs(encoder, execution)
    quantize(encoder, "w4a8")
    assert counted > 0 and cost.count_gmacs(encoder, execution) == pytest.approx(counted)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_element__escapes_text_and_attributes():
    made = element("text", EVIL, element("b", "&"), x=1.5, font_size=12, class_=QUOTES, y=None)
    attributes = 'x="1.5" font-size="12" class="a&#34;b&#39;c&amp;d"'
    assert str(made) == f"<text {attributes}>&lt;script&gt;alert(1)&lt;/script&gt;<b>&amp;</b></text>"


def test_scales_and_numbers__closed_forms():
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and nice_ticks(3, 3) == [3]
    assert Scale(0, 10, 100, 200)(2.5) == 125 and Scale(1, 100, 0, 10, is_log=True)(10) == pytest.approx(5)
    assert all(1e3 <= tick <= 2e5 for tick in Scale(1e3, 2e5, 0, 1, is_log=True).ticks())
    assert [short_number(x) for x in (73032, 1.2e6, 0.05, 0, 2e-5)] == ["73 k", "1.2 M", "0.05", "0", "2e-5"]
    assert percent(0.7326) == "73.3 %"


def test_thinned__keeps_the_mean_with_few_points():
    series = Series("loss", range(10_000), [float(i % 7) for i in range(10_000)], "series-0")
    few = thinned(series)
    assert len(few.x) <= 400 and sum(few.y) / len(few.y) == pytest.approx(sum(series.y) / 10_000, abs=0.02)
    assert "nan" not in line_chart([Series("flat", [1], [0.0], "series-0")], title="t", x_label="x")


def test_confusion__counts_and_accuracies():
    counts = analysis.confusion_matrix(torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 2, 2, 2, 0]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(analysis.class_accuracies(counts), [0.5, np.nan, 2 / 3, np.nan])
    assert [(c.true, c.predicted, c.count, c.total) for c in analysis.worst_confusions(counts)] == [
        (0, 2, 1, 2),
        (2, 0, 1, 3),
    ]
    chart = confusion_chart(counts, ["a", "b", "c", "d"])
    assert chart.count('class="right"') == 2 and chart.count('class="wrong"') == 2 and "c → a: 1 of 3" in chart


def looks_of(chart):
    """Tag and classes of every mark: its visible style."""
    return set(re.findall(r'<(circle|rect|polygon)[^>]* class="dot ([^"]+)"', str(chart)))


def test_charts__give_every_run_its_own_style():
    looks = [style_of(i) for i in range(MAX_STYLES)]
    assert len(set(looks)) == MAX_STYLES > 8
    intervals = interval_chart([("linear", [Dot(f"r{i}", 0.5, None, look) for i, look in enumerate(looks)])], label="")
    costs = cost_chart(
        [CostDot(f"r{i}", 0.5, None, look, cost=10.0 + i) for i, look in enumerate(looks)], title="", x_label=""
    )
    xs = list(range(100))
    lines = line_chart([Series(f"r{i}", xs, xs, look) for i, look in enumerate(looks)], title="", x_label="")
    for chart in (intervals, costs):
        assert len(looks_of(chart)) == MAX_STYLES
        assert {tag for tag, _ in looks_of(chart)} == {"circle", "rect", "polygon"}
    assert len(looks_of(lines)) == MAX_STYLES - 8  # lines of the first shape have no marks
    style = (Path(record.__file__).parent / "templates" / "style.css").read_text()
    for name in ("square", "triangle", "diamond"):
        assert f".line.{name} {{ stroke-dasharray" in style and f".key.{name}" in style


def test_confusion_scale__matches_the_colours_of_the_cells():
    cells = str(confusion_chart(np.array([[1, 1], [0, 3]]), ["a", "b"]))
    scale = str(confusion_scale())
    for title, kind, share in (("a → b: 1 of 2", "wrong", "50 %"), ("b → b: 3 of 3", "right", "100 %")):
        (opacity,) = re.findall(rf'class="{kind}" fill-opacity="([\d.]+)"><title>{title}', cells)
        (same,) = re.findall(rf'class="{kind}" fill-opacity="([\d.]+)"><title>[^<]*: {share}', scale)
        assert opacity == same
    assert all(words in scale for words in ("correct", "incorrect", "share of the clips of the row"))


def test_map_chart__places_every_clip_inside():
    points = np.array([[0.0, -5.0], [3.0, 9.0], [1.0, 1.0]])
    chart = point_chart(points, [0, 9, 30], ["x", EVIL, "z"], title="t", note="n")
    places = [float(value) for value in re.findall(r'c[xy]="([\d.]+)"', chart)]
    assert chart.count("clip-mark") == 3 and all(0 < place < 430 for place in places) and EVIL not in chart


def test_draw_queries__covers_classes_and_is_deterministic():
    labels = [0] * 50 + [1] * 3 + [2] * 3
    drawn = gallery.draw_queries(labels, 6)
    assert drawn == gallery.draw_queries(labels, 6) and len(set(drawn)) == 6
    assert [labels[i] for i in drawn] == [0, 0, 1, 1, 2, 2]
    assert len(gallery.draw_queries(labels, 100)) == 56


def test_kind_of__every_role():
    kinds = [
        kind_of(role)
        for role in ("teacher 2", "proxy", "student, random", "supervised baseline", "student, distilled, round 2")
    ]
    assert kinds == ["teacher", "teacher", "random", "baseline", "student"]


def test_read_metrics__keeps_finite_numbers_of_complete_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": NaN, "lr": 0.1, "note": "x"}\n\n[1]\n{"loss": 1}\n{"step": 2, "loss": 3}\n{"st'
    )
    assert record.read_metrics(path) == ({"step": 1.0, "lr": 0.1}, {"step": 2.0, "loss": 3.0})


def test_curves__show_the_waiting_for_clips_in_percent_and_not_as_a_loss():
    lines = [{"step": step, "loss": 2.0, "data_wait": wait} for step, wait in ((1.0, 0.0), (2.0, 0.4))]
    drawn = curves.training_curves(lines)
    (waiting,) = re.findall(r"<h3>Time spent waiting for clips</h3>.*?</figure>", drawn, re.DOTALL)
    assert "40 %" in waiting and "data_wait" in waiting and drawn.count("data_wait") == waiting.count("data_wait")
    assert "waiting" not in curves.training_curves([{"step": 1.0, "loss": 2.0}])


def test_read_run__with_rounds_reads_the_last(runs, tmp_path):
    for number in (2, 10):
        shutil.copytree(runs[0], tmp_path / f"round-{number}")
    (tmp_path / "round-10" / "metrics.jsonl").write_text('{"step": 7, "loss": 1}\n')
    shutil.copytree(runs[0] / "student", tmp_path / "student")
    found = record.read_run(tmp_path)
    assert [row["step"] for row in found.metrics] == [7.0] and found.config is not None and found.student is not None
    shutil.copy(runs[0] / "config.json", tmp_path)  # as training writes it
    found = record.read_run(tmp_path)
    assert [row["step"] for row in found.metrics] == [7.0] and "The curves are those of round-10." in found.notes


@pytest.mark.parametrize("stream", ["rgb", "flow", "depth"])
def test_clip_strip__draws_every_stream(toy_folder, stream):
    modality = next(one for one in MODALITIES.values() if one.stream == stream and one.has_time)
    view = ViewSpec(modality.name, num_frames=4, stride=1, size_px=32, mean=modality.mean, std=modality.std)
    manifest = Manifest.load(toy_folder)
    if stream not in manifest.streams:
        pytest.skip(f"toyactions has no {stream}")
    strip = frames.clip_strip(entries_of(manifest, [0])[0], view)
    assert strip.startswith("data:image/webp;base64,") and len(strip) > 1000


def test_to_rgb__flow_depth_joints_and_other_streams():
    flow = np.full((8, 8, 2), 128, dtype=np.uint8)
    flow[:, 4:, 0] = 168
    still, moving = frames.flow_to_rgb([flow])[0][0, 0], frames.flow_to_rgb([flow])[0][0, 7]
    assert still.tolist() == [255, 255, 255] and moving.tolist() == [255, 0, 0]
    depth = np.array([[[0], [1000], [3000]]], dtype=np.uint16)
    unmeasured, near, far = frames.depth_to_rgb([depth])[0][0, :, 0].tolist()
    assert unmeasured == 0 < far < near
    joints = np.random.default_rng(0).integers(32000, 33500, (20, 1, 3)).astype(np.uint16)
    drawn = frames.skeleton_to_rgb([joints, joints])
    assert len(drawn) == 2 and drawn[0].shape == (112, 112, 3) and len(np.unique(drawn[0].reshape(-1, 3), axis=0)) > 3
    alone = frames.skeleton_to_rgb([np.repeat(joints, 2, axis=1)])  # the second body on the first
    assert np.array_equal(alone[0] != frames.BACKGROUND, drawn[0] != frames.BACKGROUND)
    beside = frames.skeleton_to_rgb([np.concatenate([joints, joints + 3000], axis=1)])[0] != frames.BACKGROUND
    assert beside[:56, 56:].any() and beside[56:, :56].any() and not beside[56:, 60:].any()
    strange = frames.first_channel_to_rgb([np.arange(12, dtype=np.uint16).reshape(3, 4, 1)])
    assert strange[0].min() == 0 and strange[0].max() == 255


def test_facts__say_how_teachers_are_standardised_and_a_bank_only_where_one_is_used():
    options = ["--teacher", "rgb_r3d10", "--student", "flow_r3d10", "--data", "x", "--bank-size", "24", "--objective"]
    assert _objective(parse([*options, "compress-1q", "simreg"])) == "compress-1q + simreg, bank size 24"
    assert _objective(parse([*options, "smooth-l1"])) == "smooth-l1, standardized: running"
