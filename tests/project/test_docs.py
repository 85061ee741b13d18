"""The documentation: generated pages are up to date, and the site builds without a warning and without the network."""

import argparse
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import crossdistill
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.objectives import OBJECTIVES
from crossdistill.recipes.config import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))
import choose_epochs  # noqa: E402
import draw_diagram  # noqa: E402
import make_reference  # noqa: E402
import make_results  # noqa: E402
import method_table  # noqa: E402
import result_plots  # noqa: E402
import result_runs  # noqa: E402
import results_table  # noqa: E402

CONFIG = ROOT / "configs" / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as ``make check`` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    done = subprocess.run([*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


# The site.


def test_site__has_every_page(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_site__loads_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*?\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*?rel=\"?(?:stylesheet|preload|icon|preconnect)\"?[^>]*", text)
        assert loaded, page
        assert not [one for one in loaded if re.search(r"(https?:)?//", one)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize(
    ("page", "complaint"),
    [("[x](nowhere.md)", "nowhere.md"), ("[x](index.md#nowhere)", "#nowhere"), ("::: crossdistill.nothing", "nothing")],
)
def test_build__fails_for_a_broken_link(tmp_path, page, complaint):
    pytest.importorskip("mkdocs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{page}\n")
    config = CONFIG.read_text(encoding="utf-8").partition("\nnav:")[0].replace("../docs", "docs")
    config = config.replace("../scripts", str(ROOT / "scripts"))
    (tmp_path / "mkdocs.yml").write_text(config.replace("../build", "build").replace("paths: [..]", f"paths: [{ROOT}]"))
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and complaint in done.stdout + done.stderr


def test_navigation__has_four_kinds_of_pages():
    nav = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]
    assert [title for entry in nav for title in entry][1:5] == ["Tutorials", "How to", "Reference", "Explanation"]
    for entry in nav[1:5]:
        ((title, pages),) = entry.items()
        folders = {Path(page).parent.name for entry in pages for page in entry.values()}
        assert folders == {title.lower().replace(" ", "_")} or folders == {f"{title.lower()}s".rstrip("s") + "s"}


# Pages that scripts write.


@pytest.mark.parametrize("name", ["train.md", "commands.md", "data_prep.md"])
def test_reference__is_up_to_date(name):
    page = make_reference.PAGES / name
    assert page.read_text(encoding="utf-8") == make_reference.pages()[name], "run scripts/make_reference.py"


def test_reference__names_every_option_of_the_help(capsys):
    """The tables come from the dataclasses, the help from tyro: both have the same options."""
    text = "".join(make_reference.pages().values())
    for name in make_reference.COMMANDS:
        with pytest.raises(SystemExit):
            make_reference.crossdistill([name, "--help"])
        help_text = capsys.readouterr().out.partition("╭")[2]
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?= )", help_text)) - {"--help", "--config"}:
            assert f"`{option}`" in text, (name, option)


@pytest.mark.parametrize("path", make_results.outputs(), ids=lambda path: path.name)
def test_results__tables_and_plot_are_those_of_the_csv_files(path):
    assert path.read_text(encoding="utf-8") == make_results.outputs()[path], "run scripts/make_results.py"


def test_results_page__has_every_row_of_the_csv_files():
    marks = {mark[1] for page in make_results.PAGES for mark in make_results.MARK.findall(page.read_text("utf-8"))}
    uses = {f"utd_mhad {row['use']}" for row in make_results.read("utd_mhad")}
    uses |= {f"biisc {use}" for use in rows_of_script("biisc")}
    uses |= {f"{make_results.SETTINGS} {row['use']}" for row in make_results.read(make_results.SETTINGS)}
    by_use = {"utd_mhad", "biisc", make_results.SETTINGS}
    files = {path.stem for path in make_results.RESULTS.glob("*.csv")} - by_use
    assert marks == {"readme"} | uses | files
    assert {row["use"] for row in make_results.read("biisc")} <= rows_of_script("biisc").keys()


def test_diagram__is_up_to_date():
    assert draw_diagram.PICTURE.read_text(encoding="utf-8") == draw_diagram.diagram(), "run scripts/draw_diagram.py"


def test_api__shows_every_public_name():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: crossdistill\.(\w+)$", page, flags=re.MULTILINE))
    public = {name for name in crossdistill.__all__ if not name.startswith("__")}
    assert shown == {name for name in public if not isinstance(getattr(crossdistill, name), ModuleType)}
    for name in public - shown:  # the page shows the functions of a module that is a public name
        assert f"::: crossdistill.{name}." in page
    for path in re.findall(r"^::: (crossdistill\.\w+)\.(\w+)$", page, flags=re.MULTILINE):
        assert hasattr(importlib.import_module(path[0]), path[1]), path


def test_objectives__stand_in_the_guide():
    guide = (DOCS / "how_to" / "choose_an_objective.md").read_text(encoding="utf-8")
    table = guide.partition("| objective |")[2].partition("\n\n")[0]
    assert set(
        re.findall(r"`([a-z0-9-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    ) == set(OBJECTIVES)


def test_objectives__stand_in_the_help_of_train():
    row = next(
        line
        for line in (DOCS / "reference" / "train.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `--objective`")
    )
    assert not [name for name in OBJECTIVES if not re.search(rf"[ :,]{name}[ ,;:.]", row)]


def test_guide_to_objectives__shows_lines_of_the_product():
    guide = (DOCS / "how_to" / "add_an_objective.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w/.]+)`\n\n```python\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for file, code in blocks:
        assert code.strip() in (ROOT / file).read_text(encoding="utf-8"), file


# What the results page says.


def test_results_page__counts_what_the_csv_file_holds():
    text = " ".join((DOCS / "results" / "results.md").read_text(encoding="utf-8").split())
    uses = {"Shallower", "Lower precision", "Small video model", "Across modalities"}
    rows = [row for row in make_results.read("utd_mhad") if row["use"] in uses]
    better = [sum(float(row[f"gain_{measure}"]) > 0 for row in rows) for measure in ("1nn", "linear")]
    assert (
        f"Of the {len(rows)} students that learned from one teacher of another network, {better[0]} are better than "
        f"their supervised baseline in 1-NN accuracy, and {better[1]} in linear accuracy." in text
    )


def test_csv_files__have_one_number_per_cell():
    for path in (DOCS / "results").glob("*.csv"):
        for row in make_results.read(path.stem):
            for name, cell in row.items():
                if re.search(r"1nn|linear$|cluster|_(sd|low|high)$|^(seeds|percent|low|high|sd|mean|split_\d)$", name):
                    assert re.fullmatch(r"|-?\d+(\.\d)?", cell), (path.name, name, cell)


def write_run_of_two_people(folder, run, digits, role):
    """Write ``results.json`` of a run with these hits of four clips each of Anna and Ben."""
    result = ProtocolResult("1-nn", digits.count("1") / 8, 1.0, 0.5, 8, hits=digits, details={"k": 1})
    videos, people = [f"v{i}" for i in range(8)], ["anna"] * 4 + ["ben"] * 4
    results = {"1-nn": result, "linear": result}
    evaluation = Evaluation("x", "toy", "1", 8, 8, {}, results, test_videos=videos, test_groups=people)
    (folder / run).mkdir(parents=True)
    (folder / run / "results.json").write_text(json.dumps({"data": {role: evaluation.to_json()}}))


def test_results_table__has_the_paired_interval_of_a_gain_over_people(tmp_path):
    """Hits of two seeds are averaged clip by clip, and two people are drawn: one gains nothing, one a quarter."""
    for run, digits in {"small-seed0": "11110000", "small-seed1": "11111010"}.items():
        write_run_of_two_people(tmp_path, run, digits, "student, distilled")
    for seed in (0, 1):
        write_run_of_two_people(tmp_path, f"labels-seed{seed}", "11110000", "student, supervised")
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.rows_of(results_table.collect([tmp_path]), {"use": [line]})
    # The second seed gains 2 of Ben's 4 clips: 1 of 8 clips as a mean of seeds; none if Anna is drawn twice.
    assert [row[f"gain_1nn{end}"] for end in ("", "_low", "_high")] == ["12.5", "0.0", "25.0"]
    row |= {"gain_linear_low": "", "gain_linear_high": ""}
    assert [make_results.interval(row, key) for key in ("1nn", "linear")] == ["0.0 to +25.0", "point estimate"]


def test_result_runs__a_file_gives_the_table_of_its_folders(tmp_path):
    """Two folders are kept one after the other; the file then gives the row, interval included, of both together."""
    folders = [tmp_path / "monday", tmp_path / "tuesday"]
    for seed, digits in enumerate(("11110000", "11111010")):
        write_run_of_two_people(folders[seed], f"small-seed{seed}", digits, "student, distilled")
        write_run_of_two_people(folders[seed], f"labels-seed{seed}", "11110000", "student, supervised")
    file = tmp_path / "kept" / "runs.json"
    assert [result_runs.keep(file, result_runs.runs_of_folder(folder)) for folder in folders] == [2, 4]
    assert result_runs.keep(file, result_runs.runs_of_folder(folders[0])) == 4
    assert "details" not in file.read_text() and file.read_text().count("anna") == 4
    uses = {"use": [{"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}]}
    (row,), (expected,) = (list(results_table.rows_of(results_table.collect(p), uses)) for p in ([file], folders))
    assert row == expected and row["gain_1nn_high"] == "25.0"


def test_result_runs__of_another_program_have_a_student_and_an_evaluation_alone(tmp_path):
    write_run_of_two_people(tmp_path, "lightly-seed1", "11110000", "student, distilled")
    folder = tmp_path / "lightly-seed1"
    evaluation = next(iter(json.loads((folder / "results.json").read_text()).values()))["student, distilled"]
    (folder / "results.json").unlink()
    assert not list(result_runs.runs_of_folder(tmp_path))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "student").mkdir()
    (folder / "student" / "student.json").write_text('{"training": {"supervised": false, "epochs": 200}}')
    (run,) = result_runs.runs_of_folder(tmp_path)
    assert (run.run, run.seed, run.epochs, run.evaluations) == ("lightly", 1, "200", {"student, distilled": evaluation})


def test_results_table__new_rows_replace_those_with_no_more_seeds():
    old = [{"use": "u", "student": name, "teacher": "t", "seeds": "3", "gain_linear": "1.0"} for name in ("a", "b")]
    new = [
        {"use": "u", "student": name, "teacher": "t", "seeds": seeds, "epochs": "50", "gain_linear": "2.0"}
        for name, seeds in (("a", "1"), ("b", "3"), ("c", "1"))
    ]
    found = results_table.updated(old, new)
    assert [(row["student"], row["gain_linear"], row["epochs"]) for row in found] == [
        ("a", "1.0", ""), ("b", "2.0", "50"), ("c", "2.0", "50")]  # fmt: skip
    assert {tuple(row) for row in found} == {("use", "student", "teacher", "seeds", "epochs", "gain_linear")}


def test_results_table__a_later_run_replaces_an_earlier_one_whole(tmp_path):
    for name, epochs, results in (("first", 5, {"1-nn": 0.5, "linear": 0.6}), ("second", 9, {"linear": 0.7})):
        folder = tmp_path / name / "small-seed0"
        folder.mkdir(parents=True)
        evaluation = {"results": {protocol: {"top1": top1} for protocol, top1 in results.items()}}
        (folder / "results.json").write_text(json.dumps({"data": {"student, distilled": evaluation}}))
        facts = {"configuration": {"optimization": {"epochs": epochs}}, "environment": {"gpus": [name], "cpu": "x"}}
        (folder / "config.json").write_text(json.dumps(facts))
    network = results_table.collect([tmp_path / "first", tmp_path / "second"])["small"]["student, distilled"]
    assert (network.epochs, network.machines, dict(network.accuracies)) == ({"9"}, {"second"}, {"linear": {0: 70.0}})
    with pytest.raises(SystemExit, match="third is not there: give folders of runs"):
        results_table.collect([tmp_path / "first", tmp_path / "third"])


def test_results_table__takes_mean_deviation_and_gain_over_common_seeds(tmp_path):
    runs = {
        "small-seed0": {"teacher": 0.9, "student, random": 0.1, "student, distilled": 0.5},
        "small-seed1": {"teacher": 0.9, "student, random": 0.2, "student, distilled": 0.7},
        "small-seed2": {"teacher": 0.9, "student, random": 0.3, "student, distilled": 0.9},
        "labels-seed0": {"student, supervised": 0.4},
        "labels-seed1": {"student, supervised": 0.7},
    }
    for name, roles in runs.items():
        (tmp_path / name).mkdir()
        results = {p: {"top1": None} for p in results_table.PROTOCOLS.keys() - results_table.LOW_SHOT}
        content = {
            "data": {
                role: {"encoder": "x", "results": {p: {**results[p], "top1": top1} for p in results}}
                for role, top1 in roles.items()
            }
        }
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.rows_of(results_table.collect([tmp_path]), {"use": [line]})
    assert (row["distilled_1nn"], row["distilled_1nn_sd"], row["seeds"]) == ("70.0", "20.0", "3")
    assert (row["gain_linear"], row["gain_linear_sd"]) == ("5.0", "7.1")
    assert (row["teacher_cluster_sd"], row["second_teacher_1nn"], row["untrained_1nn"]) == ("0.0", "", "20.0")
    assert list(results_table.without_empty([row])[0]) == [
        name for name in make_results.read("utd_mhad")[0] if not results_table.OPTIONAL.search(name)
    ]


def test_results_table__compares_low_shot_with_a_network_trained_on_the_same_labels(tmp_path):
    """``evaluation.json`` holds what the reproducing script evaluates after training; it replaces ``results.json``.

    The network with all labels has fewer seeds than the one with few, and the student has one more than both.
    """
    five_shot = {"small-seed0": 0.5, "labels-seed0": 0.9, "labels-shots5-seed0": 0.3}
    for run, top1 in {**five_shot, "small-seed1": 0.6, "labels-shots5-seed1": 0.5, "small-seed2": 0.9}.items():
        role = "student, distilled" if run.startswith("small") else "student, supervised"
        folder = tmp_path / run
        folder.mkdir()
        before, after = ({"results": {"linear": {"top1": linear}}} for linear in (0.1, 0.6))
        after["results"]["lowshot-5"] = {"top1": top1}
        environment = {"gpus": [], "cpu": "one"}
        config = {"configuration": {"optimization": {"epochs": 7}}, "environment": environment}
        files = {"results.json": {"data": {role: before}}, "evaluation.json": after, "config.json": config}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.without_empty(
        list(results_table.rows_of(results_table.collect([tmp_path]), {"use": [line]}))
    )
    assert (row["distilled_linear"], row["baseline_5shot"], row["gain_5shot"]) == ("60.0", "40.0", "15.0")
    assert (row["distilled_5shot"], row["seeds_5shot"], row["seeds"]) == ("55.0", "2", "3")
    assert (row["epochs"], row["machine"]) == ("7", "one")
    assert "distilled_1shot" not in row


def test_results_table__intervals_of_low_shot_gains_are_those_of_the_compared_networks(tmp_path):
    """The network of all labels has other hits than that of one label a class, which the student is compared with."""
    hits = {"small": "1111", "labels": "1111", "labels-shots1": "1000"}
    for run, digits in hits.items():
        result = ProtocolResult("lowshot-1", digits.count("1") / 4, 1.0, 0.5, 4, hits=digits)
        videos, people = ["a", "b", "c", "d"], ["anna", "anna", "ben", "ben"]
        evaluation = Evaluation(
            "x", "toy", "1", 8, 4, {}, {"lowshot-1": result}, test_videos=videos, test_groups=people
        )
        (tmp_path / f"{run}-seed0").mkdir()
        role = "student, distilled" if run == "small" else "student, supervised"
        content = json.dumps({"data": {role: evaluation.to_json()}})
        (tmp_path / f"{run}-seed0" / "results.json").write_text(content)
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.rows_of(results_table.collect([tmp_path]), {"use": [line]})
    assert [row[f"gain_1shot{end}"] for end in ("", "_low", "_high")] == ["75.0", "50.0", "100.0"]
    assert (row["baseline_1shot"], row["seeds"], row["gain_1nn"]) == ("25.0", "1", "")


def test_results_table__reads_the_first_dataset_and_compares_with_another_student(tmp_path):
    """A student of several datasets counts on the first of --data; its baseline may be a distilled student."""
    for run, top1 in {"student": 0.75, "its teacher": 0.5}.items():
        of_sets = {
            path: {"student, distilled": {"results": {"linear": {"top1": value}}}}
            for path, value in {"data": top1, "fuel": 0.1}.items()
        }
        (tmp_path / f"{run}-seed0").mkdir()
        (tmp_path / f"{run}-seed0" / "results.json").write_text(json.dumps(of_sets))
    line = {"student": "s", "teacher": "t", "run": "student", "baseline": "its teacher"}
    line["baseline_role"] = "student, distilled"
    (row,) = results_table.rows_of(results_table.collect([tmp_path]), {"use": [line]})
    assert (row["distilled_linear"], row["baseline_linear"], row["gain_linear"]) == ("75.0", "50.0", "25.0")


def test_gain_table_and_plot__show_few_labels_of_one_seed(monkeypatch):
    """Columns that no row fills are not in the file: deviations of one seed, and low-shot accuracy of teachers."""
    row = {"use": "Few labels", "student": "s", "teacher": "t", "seeds": "1", "baseline_epochs": "50", "epochs": "100"}
    row |= {"gain_1nn": "", "gain_linear": "", "gain_5shot": "12.5", "gain_5shot_low": "3.0", "gain_5shot_high": "20.0"}
    row |= {"baseline_5shot": "30.0", "distilled_5shot": "42.5"}
    line = make_results.gain_table([row]).splitlines()[-1]
    assert line == "| s | t | 5 labels a class | – | 30.0 | 42.5 | +12.5 | +3.0 to +20.0 | – | 1 | 50 / 100 |"
    monkeypatch.setattr(result_plots, "read", lambda name: [row])
    drawn = result_plots.gain_plot("biisc", "below")
    assert result_plots.Axis.around([row]) == result_plots.Axis(0, 15)
    assert drawn.count(f'r="4" fill="{result_plots.COLOURS["5shot"]}"') == 2 and "5 labels a class" in drawn
    assert f'cx="{result_plots.Axis(0, 15).x_of(12.5):.1f}"' in drawn


def test_bench_runtimes__a_network_without_a_view_is_one_sentence():
    with warnings.catch_warnings():  # the script silences its process
        import bench_runtimes
    assert bench_runtimes.case_of("depth_tiny3d_8:16x48") == ("depth_tiny3d_8", 16, 48)
    with pytest.raises(argparse.ArgumentTypeError, match="rgb_r3d10 has no view: give network:FRAMESxPIXELS, for ex"):
        bench_runtimes.case_of("rgb_r3d10")


def test_uses_plot__puts_students_at_the_time_of_the_fastest_runtime(monkeypatch):
    """Two students of one network stand 14 apart; the first stands where the fastest runtime puts it."""
    names = ("network", "view", "runtime", "bits", "ms")
    times = [(*key.split()[:2], runtime, key.split()[2], ms) for key in set(result_plots.NETWORKS.values())
             for runtime, ms in (("slow", "4.0"), ("fast", "1.0"))]  # fmt: skip
    row = {"teacher": "t", "teacher_linear": "90.0", "baseline_linear": "60.0", "distilled_linear": "70.0"}
    row |= {"student": "depth 0.07 M", "distilled_linear_sd": "2.5"}
    files = {"runtimes": [dict(zip(names, cells, strict=True)) for cells in times]}
    files["utd_mhad"] = [row | {"use": use} for use in result_plots.USES]
    monkeypatch.setattr(result_plots, "read", files.__getitem__)
    drawn, plane = result_plots.uses_plot(), result_plots.Plane()
    first = plane.x_of(1.0)
    for i, colour in enumerate(result_plots.USES.values()):
        for percent, shape in ((60.0, 'r="4.5" fill="white"'), (70.0, f'r="5" fill="{colour}"')):
            assert f'<circle cx="{first + 14 * i:.1f}" cy="{plane.y_of(percent):.1f}" {shape}' in drawn
    top, low = plane.y_of(72.5), plane.y_of(67.5)
    assert f'y1="{top:.1f}" y2="{low:.1f}" stroke-width="5"' in drawn


def test_settings_plot__orders_each_panel_by_its_number(monkeypatch):
    settings = {
        "Temperature": ["temperature 0.1", "temperature 0.02"],
        "Memory bank": ["bank of all pictures", "bank of 256"],
        "Stored crops": ["16 crops of each picture", "1 crop of each picture"],
        "Shares of Caltech-101": ["100 % and the pile", "100 % of the pictures", "25 % of the pictures"],
    }
    rows = [
        {"use": use, "student": name, "distilled_1nn": str(50 + i), "distilled_linear": str(60 + i)}
        for use, names in settings.items()
        for i, name in enumerate(names)
    ]
    monkeypatch.setattr(result_plots, "read", lambda name: rows)
    drawn = result_plots.settings_plot("caltech101_settings")
    labels = re.findall(r'y="318.0" text-anchor="middle" [^>]*>([^<]+)<', drawn)
    assert labels == ["0.02", "0.1", "256", "all", "1", "16", "25 %", "100 %", "100 % + pile"]
    heights = [[float(pair.split(",")[1]) for pair in line.split()] for line in re.findall(r'points="([^"]+)"', drawn)]
    # From 50 at the bottom (300) to 65 at the top (96). The row that the file has first is the last of its panel.
    assert heights[:2] == [[286.4, 300.0], [150.4, 164.0]] and heights[-1] == [136.8, 150.4, 164.0]


def test_setting_table__has_one_line_for_each_setting():
    row = {"use": "Temperature", "student": "temperature 1", "distilled_1nn": "50.0", "distilled_linear": "60.0"}
    row |= {"distilled_5shot": "40.0", "gain_1nn": "-3.0", "gain_linear": "1.0"}
    line = make_results.setting_table([row]).splitlines()[-1]
    assert line == "| temperature 1 | 50.0 | 60.0 | – | – | 40.0 | – | −3.0 | +1.0 |"


def evaluation_of(digits):
    """An evaluation of one clip of each person, with these hits in 1-NN and linear accuracy."""
    results = {
        name: ProtocolResult(name, digits.count("1") / len(digits), 1.0, 0.5, len(digits), hits=digits)
        for name in ("1-nn", "linear")
    }
    names = [f"v{i}" for i in range(len(digits))]
    return Evaluation("x", "toy", "1", 8, len(digits), {}, results, test_videos=names, test_groups=names)


def test_choose_epochs__takes_the_length_after_which_accuracy_stops_rising():
    hits = {25: "1" * 10 + "0" * 90, 50: "1" * 40 + "0" * 60, 100: "1" * 60 + "0" * 40, 200: "0" + "1" * 60 + "0" * 39}
    chosen, lines = choose_epochs.choose({length: evaluation_of(digits) for length, digits in hits.items()})
    assert chosen == 100
    assert len(lines) == 2 + len(hits) and lines[2].startswith("| 25 | 10.0 | +50.0 ± ")
    # Half of the clips are gained: the standard error of 100 independent clips.
    error = float(re.search(r"± ([\d.]+)", lines[2])[1])
    assert error == pytest.approx(100 * (0.5 * 0.5 / 100) ** 0.5, abs=0.4)


def test_choose_epochs__one_measure_that_rises_is_enough():
    short, long = evaluation_of("10" * 50), evaluation_of("10" * 50)
    long.results["linear"] = evaluation_of("1" * 100).results["linear"]
    assert choose_epochs.choose({25: short, 50: long})[0] == 50
    assert choose_epochs.choose({25: long, 50: short})[0] == 25


def test_choose_epochs__prints_the_number_alone(tmp_path, monkeypatch, capsys):
    for length, digits in {25: "1000", 50: "1110"}.items():
        (tmp_path / f"{length}.json").write_text(json.dumps(evaluation_of(digits * 25).to_json()))
    words = [f"{length}={tmp_path / str(length)}.json" for length in (25, 50)]
    monkeypatch.setattr(sys, "argv", ["choose_epochs.py", *words])
    choose_epochs.main()
    assert capsys.readouterr().out == "50\n"


def rows_of_script(name):
    """Use to rows of a file of rows."""
    return yaml.safe_load((ROOT / f"scripts/rows_{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["caltech101", "biisc", "utd_mhad"])
def test_script__has_a_run_for_every_row_of_its_table(name, tmp_path):
    clips = {"caltech101": ("a/1.jpg", "a/2.jpg"), "biisc": ("A/S1_1.mp4", "A/S2_1.mp4"), "utd_mhad": ("", "")}
    for part, line in zip(("train", "test"), clips[name], strict=True):
        (tmp_path / f"{part}.txt").write_text(f"{line}\n")
    given = {"caltech101": [tmp_path, tmp_path, tmp_path / "weights"], "biisc": [tmp_path], "utd_mhad": [tmp_path]}
    script = [ROOT / f"scripts/reproduce_{name}.sh", *given[name], tmp_path / "out", "0"]
    every = {"ROWS": "lengths all lightly choose", "LIGHTLY_PYTHON": "echo"}
    variables = {"caltech101": every, "biisc": {"WEIGHTS": str(tmp_path / "weights")}, "utd_mhad": {"ROWS": "all"}}
    environment = {**os.environ, "PYTHON": "echo", **variables[name]}

    def output_of(**more):
        return subprocess.run(script, env=environment | more, check=True, capture_output=True).stdout.decode()

    lightly = r"train_with_lightly.py \S+ \S+"  # its folder is no option

    def runs_of(shown):
        found = re.findall(rf"(?:train.py.* --out|{lightly}) (.+?)-seed0 ", shown)
        return [run.removeprefix(f"{tmp_path}/out/") for run in found]

    shown = output_of()
    trained = [line for line in shown.splitlines() if "train.py" in line]
    runs = runs_of(shown)
    piles = {"caltech101": ("40k", "101k")}.get(name, ())
    named = {run for pile in piles for run in runs_of(output_of(ROWS="pile", PILE_NAME=pile))}
    if name == "caltech101":
        named |= set(runs_of(output_of(ROWS="labels alone", RATE_NAME="0.001")))
    rows = [line for lines in rows_of_script(name).values() for line in lines]
    wanted = {line[key] for line in rows for key in ("run", "baseline", "teacher_run") if key in line}
    few = {run for run in runs if run.startswith(tuple(line["baseline"] for line in rows)) and "-shots" in run}
    assert len(set(runs)) == len(runs) or name == "utd_mhad"  # its last part trains missing teachers
    assert wanted <= {*runs, *named} and few
    assert all(f"{run}-seed0/evaluation.json" in shown for run in few)
    held = [line for line in shown.splitlines() if "-length50-" in line and "choose_epochs" not in line]
    assert len(held) == (6 if name == "caltech101" else 0) and all("--split 1@25% " in line for line in held)
    options = {word[2:].replace("-", "_") for line in trained for word in line.split() if word.startswith("--")}
    assert options - {"resume", "config"} <= {
        entry.name for kind in SECTIONS.values() for entry in dataclasses.fields(kind)
    }


def test_results_table__columns_have_the_seeds_of_the_student(tmp_path):
    def write(run, role, digits):
        (tmp_path / run).mkdir()
        content = {"data": {role: evaluation_of(digits).to_json()}}
        (tmp_path / run / "results.json").write_text(json.dumps(content))

    write("base-seed0", "student, supervised", "1" * 50 + "0" * 50)
    write("base-seed1", "student, supervised", "1" * 90 + "0" * 10)
    write("ours-seed0", "student, distilled", "1" * 70 + "0" * 30)
    lines = {"use": [{"student": "s", "teacher": "t", "run": "ours", "baseline": "base"}]}
    (row,) = results_table.rows_of(results_table.collect([tmp_path]), lines)
    assert (row["baseline_1nn"], row["distilled_1nn"], row["gain_1nn"], row["seeds"]) == ("50.0", "70.0", "20.0", "1")


def test_compare_methods__trains_and_compares_every_method_on_every_pair(tmp_path):
    script = [ROOT / "scripts/compare_methods.sh", tmp_path / "out"]
    environment = {**os.environ, "PYTHON": "echo", "UTD_MHAD": "utd", "BIISC": "bii"}
    shown = subprocess.run(script, env=environment, check=True, capture_output=True).stdout.decode().splitlines()
    trained = {found[1]: line for line in shown if (found := re.search(r"train.py.* --out \S+/out/(.+?)-1@", line))}
    options = {word[2:].replace("-", "_") for line in trained.values() for word in line.split() if word[:2] == "--"}
    assert options - {"resume", "no_evaluate"} <= {
        entry.name for kind in SECTIONS.values() for entry in dataclasses.fields(kind)
    }
    pairs = ("skeleton-depth", "depth-depth", "flow-flow", "flow-rgb")
    methods = re.search(r'^all="(.*?)"', script[0].read_text("utf-8"), re.DOTALL | re.MULTILINE)[1].split()
    assert {f"{pair} {method}" for pair in pairs for method in [*methods, "labels"]} <= trained.keys()
    compared = [line for line in shown if "crossdistill evaluate" in line]
    assert len(compared) == len(pairs) * (len(methods) + 1)
    assert all("--split 1@" in line for line in [*trained.values(), *compared])  # never the test clips
    # A network that mixes clips, or a teacher that has not seen them, needs a teacher that runs.
    assert all(("--teacher-cache" in line) != ("--mix" in line) for name, line in trained.items() if "mix" in name)
    assert "--teacher-size 20" in trained["skeleton-depth folds"] and "weights" not in trained["skeleton-depth folds"]


def test_method_table__best_mean_gain_first_and_no_mean_of_some_pairs(tmp_path):
    default, better = "10" * 50, "1110" * 25
    files = {"a-b default": default, "c-d default": default, "a-b better": better, "c-d better": default}
    for folder, more in (("0", {"a-b half": "1" * 100}), ("1", {}), ("no default", {"a-b better": "1" * 100})):
        (tmp_path / folder).mkdir()
        for name, digits in (more if folder == "no default" else files | more).items():
            (tmp_path / folder / f"{name}.json").write_text(json.dumps(evaluation_of(digits).to_json()))
    pairs = ["a-b", "c-d"]
    rows = method_table.rows_of(method_table.read_methods(sorted(tmp_path.iterdir()), pairs), pairs)
    assert [(row["method"], row.get("mean_gain")) for row in rows] == [
        ("better", "12.50"),
        ("default", "0.00"),
        ("half", None),
    ]
    assert rows[0]["a-b_1nn"] == "75.0" and rows[0]["a-b_1nn_gain"] == "25.0" and rows[0]["c-d_linear_gain"] == "0.0"
    assert float(rows[0]["a-b_linear_low"]) > 15 and float(rows[0]["a-b_linear_high"]) < 35
    assert [row["a-b_seeds"] for row in rows] == ["2", "2", "1"]
